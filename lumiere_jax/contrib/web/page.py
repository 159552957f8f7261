"""The page itself: tabs to fill in, a queue, and what has been made."""

from collections.abc import Callable, Sequence
import dataclasses
import os
from pathlib import Path
import secrets
import sys
import tempfile
import time
import traceback

import gradio as gr
from gradio.components import Component

from lumiere_jax.contrib.web import components
from lumiere_jax.contrib.web.examples import PROMPTS, Example, draw
from lumiere_jax.contrib.web.forms import SEEDS, read
from lumiere_jax.contrib.web.jobs import Cancelled, JobQueue, Maker
from lumiere_jax.contrib.web.labels import STAGES, words
from lumiere_jax.contrib.web.mask_editor import canvas
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.results import Results
from lumiere_jax.contrib.web.tabs import ADVANCED, TABS, Tab
from lumiere_jax.errors import UserError
from lumiere_jax.inference.cascade import Progress
from lumiere_jax.inference.pipeline import Pipeline

TITLE = "Lumiere"


CSS = """
footer { display: none !important; }
#anew { align-self: center; }
"""


_DAY_S = 24 * 3600


_ERROR_S = 20.0


_TELL_S = 0.2  # A fast model would keep the browser busy drawing bars.


# Of what does not wait for its turn. Gradio could answer it without any queue,
# but then the page would not show its errors.
_AT_ONCE = {
  "concurrency_limit": 4,
  "show_progress": "hidden",
  "api_visibility": "private",
}


_PROGRESS = gr.Progress()


_AROUND = dict.fromkeys(("left", "top", "right", "bottom"), 64)


_STYLES = (
  "There is no style to choose: start the server with --style=NAME=PATH, a "
  "style's name and folder, once for each."
)


_OURS = "This went wrong on the server; its log says how"


def build(
  pipeline: Pipeline, options: Options, desk: JobQueue | None = None
) -> gr.Blocks:
  """The page.

  Args:
    pipeline: a loaded one, or whatever has its methods.
    options: what it lets in, and offers.
    desk: keeps jobs and results; None: one with a new folder, which is left
      behind.
  """
  if desk is None:
    folder = Path(tempfile.mkdtemp(prefix="lumiere_app_"))
    desk = JobQueue(folder, options.queue + options.jobs)
  os.environ |= {
    # Read where parts of the page are made, and at every request: uploads and
    # results are kept there.
    "GRADIO_TEMP_DIR": os.fspath(desk.folder),
    "GRADIO_EXAMPLES_CACHE": os.fspath(desk.folder / "examples"),
    # Gradio would make a table of all jobs after each, which nobody sees here.
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(sys.maxsize),
  }
  small = tuple(side // pipeline.upscale for side in pipeline.resolution())
  drawn = draw(desk.folder / "drawn", pipeline.frames({}), small)
  page = gr.Blocks(
    title=TITLE,
    analytics_enabled=False,
    delete_cache=(_DAY_S // 24, _DAY_S),
  )
  with page:
    _Page(pipeline, options, desk, drawn)
    page.unload(_forget(desk))
  page.queue(
    max_size=2 * (options.queue + options.jobs),  # the desk says so before
    default_concurrency_limit=options.jobs,
    api_open=False,
  )
  return page


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parts:
  """Of one tab: what is filled in, what is pressed and where it says how it
  goes."""

  inputs: dict[str, Component]
  make: gr.Button
  cancel: gr.Button
  status: gr.Textbox


class _Page:
  """Lays out the parts, and says what each does."""

  def __init__(
    self,
    pipeline: Pipeline,
    options: Options,
    desk: JobQueue,
    drawn: list[Example],
  ):
    self._pipeline, self._options = pipeline, options
    self._desk, self._drawn = desk, drawn
    self._maker = Maker(pipeline, options)
    gr.Markdown(_about(pipeline))
    with gr.Row():
      with gr.Column(scale=3):
        with gr.Tabs(overflow_behavior="wrap"):
          tabs = {k: self._tab(k, tab) for k, tab in TABS.items()}
        shared = self._shared()
      with gr.Column(scale=2, min_width=360):
        self._results = Results(desk)
    for task, parts in tabs.items():
      self._act(task, parts, shared)

  def _field(self, name: str) -> Component:
    return components.make(name, self._pipeline, self._options)

  def _rows(
    self, rows: Sequence[str | tuple[str, ...]]
  ) -> dict[str, Component]:
    parts = {}
    for row in rows:
      with gr.Row():
        for name in (row,) if isinstance(row, str) else row:
          parts[name] = self._field(name)
    return parts

  def _tab(self, task: str, tab: Tab) -> _Parts:
    with gr.Tab(tab.title), gr.Column(elem_id=task):
      gr.Markdown(tab.about)
      possible = task != "stylize" or bool(self._options.styles)
      if not possible:
        gr.Markdown(_STYLES)
      inputs = self._rows(tab.fields)
      with gr.Row():
        make = gr.Button("Make", variant="primary", interactive=possible)
        cancel = gr.Button("Cancel")
      status = gr.Textbox(
        label="Status", interactive=False, lines=2, elem_classes="status"
      )
      gr.Examples(
        self._examples(task, tab.examples),
        [inputs[name] for name in tab.examples],
        cache_examples=False,
        api_visibility="private",
      )
    return _Parts(inputs=inputs, make=make, cancel=cancel, status=status)

  def _examples(self, task: str, names: Sequence[str]) -> list[list]:
    if names == ("prompt",):
      return [[prompt] for prompt in PROMPTS]
    rows = [vars(drawn) | _AROUND for drawn in self._drawn]
    if task == "super_resolve":
      rows = [row | {"video": row["small_video"]} for row in rows]
    return [[row[name] for name in names] for row in rows]

  def _shared(self) -> dict[str, Component]:
    """Seed, negative prompt and settings, the same for all tabs."""
    with gr.Row():
      seed = self._field("seed")
      anew = gr.Button(
        "New seed", size="sm", scale=0, min_width=100, elem_id="anew"
      )
      negative = self._field("negative_prompt")
    anew.click(lambda: secrets.randbelow(SEEDS), None, seed, **_AT_ONCE)
    with gr.Accordion("Advanced", open=False):
      advanced = self._rows(ADVANCED)
    return {"seed": seed, "negative_prompt": negative} | advanced

  def _act(
    self, task: str, parts: _Parts, shared: dict[str, Component]
  ) -> None:
    """What the buttons of a tab do."""
    filled = parts.inputs | shared
    check, run, cancel = self._functions(task, list(filled))
    checked = parts.make.click(
      check,
      [*filled.values()],
      parts.status,
      api_name=f"check_{task}",
      **_AT_ONCE,
    )
    ran = checked.success(
      run,
      None,
      [parts.status, *self._results.parts],
      show_progress_on=parts.status,
      concurrency_id="sampling",
      concurrency_limit=self._options.jobs,
      api_name=f"make_{task}",
      api_visibility="private",
    )
    parts.cancel.click(
      cancel,
      None,
      parts.status,
      cancels=ran,
      api_name=f"cancel_{task}",
      **_AT_ONCE,
    )
    if "strokes" in parts.inputs:
      field = "image" if "image" in parts.inputs else "video"
      parts.inputs[field].change(
        self._canvas(field),
        parts.inputs[field],
        parts.inputs["strokes"],
        api_name=f"canvas_{task}",
        **_AT_ONCE,
      )

  def _functions(self, task: str, names: list[str]) -> tuple[Callable, ...]:
    """What is called when a job is asked for, when its turn has come, and when
    it is cancelled."""

    def check(request: gr.Request, *values) -> str:
      filled = dict(zip(names, values, strict=True))
      return self._check(task, filled, request.session_hash)

    def run(request: gr.Request, progress: gr.Progress = _PROGRESS) -> list:
      return self._run(task, request.session_hash, progress)

    def cancel(request: gr.Request) -> str:
      found = self._desk.cancel(request.session_hash, task)
      return "Cancelled." if found else "There is nothing to cancel."

    return check, run, cancel

  def _check(self, task: str, filled: dict, session: str) -> str:
    asked = lambda folder: read(
      task, filled, self._pipeline, self._options, folder
    )
    try:
      self._desk.enter(session, task, asked)
    except UserError as error:
      raise _shown(error) from error
    return "In the queue."

  def _run(self, task: str, session: str, progress: gr.Progress) -> list:
    job = self._desk.begin(session, task)
    if job is None:
      return [gr.skip(), *self._results.unchanged]

    told_s = 0.0

    def tell(at: Progress) -> None:
      nonlocal told_s
      if time.monotonic() - told_s > _TELL_S or at.done == at.total:
        told_s = time.monotonic()
        progress((at.done, at.total), desc=STAGES[at.stage], unit="steps")

    progress(0.0, desc="Beginning; a new size or length takes longer")
    try:
      report = self._maker.make(job, self._desk, tell)
    except Cancelled:
      return ["Cancelled.", *self._results.unchanged]
    except UserError as error:
      raise _shown(error) from error
    except Exception as error:
      traceback.print_exc()
      raise gr.Error(_OURS, print_exception=False) from error
    finally:
      self._desk.leave(job)
    return [report, *self._results.newest(session)]

  def _canvas(self, field: str) -> Callable[[str | None], dict | None]:
    """What the paint lies on, of the file that was uploaded."""

    def background(path: str | None) -> dict | None:
      if path is None:
        return None
      try:
        pixels = canvas(path, field, self._options.limits)
      except UserError as error:
        raise _shown(error) from error
      return {"background": pixels, "layers": [], "composite": None}

    return background


def _about(pipeline: Pipeline) -> str:
  frames, (height, width) = pipeline.frames({}), pipeline.resolution()
  return (
    f"**{TITLE}**: {frames} frames of {width}x{height}, {pipeline.fps:g} a "
    "second, unless you ask for another length"
  )


def _shown(error: UserError) -> gr.Error:
  return gr.Error(words(error), duration=_ERROR_S, print_exception=False)


def _forget(desk: JobQueue) -> Callable:
  def gone(request: gr.Request) -> None:
    desk.forget(request.session_hash)

  return gone
