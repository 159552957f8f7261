"""Where the page shows what was made in this session."""

import gradio as gr

from lumiere_jax.contrib.web.jobs import JobQueue, Made

_HEIGHT = 340


class Results:
  """One result, large and with its file, and all of them, the newest first."""

  def __init__(self, desk: JobQueue):
    """Lays out the parts.

    Args:
      desk: keeps the results.
    """
    self._desk = desk
    self._video = gr.Video(
      label="Result",
      autoplay=True,
      loop=True,
      interactive=False,
      height=_HEIGHT,
      buttons=[],
      elem_id="video",
    )
    self._picture = gr.Image(
      label="Result",
      interactive=False,
      height=_HEIGHT,
      visible=False,
      buttons=[],
      elem_id="picture",
    )
    self._download = gr.DownloadButton(
      "Download", interactive=False, elem_id="download"
    )
    self._gallery = gr.Gallery(
      label="Made in this session, the newest first",
      columns=3,
      fit_columns=False,
      object_fit="contain",
      height=260,
      allow_preview=False,
      interactive=False,
      buttons=[],
      elem_id="made",
    )

    def choose(event: gr.SelectData, request: gr.Request) -> list:
      made = desk.made(request.session_hash)
      return _shown(made[event.index]) if event.index < len(made) else _same(3)

    self._gallery.select(
      choose, None, self.parts[:3], show_progress="hidden", queue=False
    )

  @property
  def parts(self) -> list:
    """What `newest` gives values for."""
    return [self._video, self._picture, self._download, self._gallery]

  def newest(self, session: str) -> list:
    """Values of `parts` that show the newest result of a session."""
    made = self._desk.made(session)
    if not made:
      return self.unchanged
    items = [(one.path, one.caption) for one in made]
    return [*_shown(made[0]), items]

  @property
  def unchanged(self) -> list:
    """Values of `parts` that leave them as they are."""
    return _same(len(self.parts))


def _shown(made: Made) -> list:
  still = made.path.endswith(".png")
  shown = {"label": made.caption}
  return [
    gr.Video(None if still else made.path, visible=not still, **shown),
    gr.Image(made.path if still else None, visible=still, **shown),
    gr.DownloadButton(value=made.path, interactive=True),
  ]


def _same(count: int) -> list:
  return [gr.skip()] * count
