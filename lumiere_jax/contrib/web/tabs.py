"""What there is to fill in, by tab."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tab:
  """One of `TABS`.

  Attributes:
    title: of the tab.
    about: what it does, in a sentence.
    fields: what there is to fill in, in this order; one tuple is a row.
    examples: fields that an example fills in.
  """

  title: str
  about: str
  fields: tuple[str | tuple[str, ...], ...]
  examples: tuple[str, ...] = ("prompt",)

  @property
  def names(self) -> list[str]:
    """Of all its fields."""
    rows = [[row] if isinstance(row, str) else row for row in self.fields]
    return [name for row in rows for name in row]


_EDGE = ("feather", "composited")


TABS: dict[str, Tab] = {
  "text_to_video": Tab(
    title="Text to video",
    about="A video of what the prompt says.",
    fields=("prompt",),
  ),
  "image_to_video": Tab(
    title="Image to video",
    about="A video that begins with a picture, ends with one, or both.",
    fields=("prompt", ("image", "last_image"), "composited"),
    examples=("prompt", "image", "last_image"),
  ),
  "extend": Tab(
    title="Extend",
    about="Goes on with a video from its last frames.",
    fields=("prompt", "video", ("times", "context"), "composited"),
    examples=("prompt", "video"),
  ),
  "inpaint": Tab(
    title="Inpaint",
    about="Makes a part of a video anew: paint over it, in the first frame.",
    fields=("prompt", "video", "strokes", ("box", "mask"), _EDGE),
    examples=("prompt", "video", "box"),
  ),
  "outpaint": Tab(
    title="Outpaint",
    about="Shows more around a video: pixels of it to add on each side.",
    fields=("prompt", "video", ("left", "top", "right", "bottom"), _EDGE),
    examples=("prompt", "video", "left", "top", "right", "bottom"),
  ),
  "cinemagraph": Tab(
    title="Cinemagraph",
    about="A picture that moves where it is painted over, and nowhere else.",
    fields=("prompt", "image", "strokes", ("box", "mask"), _EDGE),
    examples=("prompt", "image", "box"),
  ),
  "stylize": Tab(
    title="Stylize",
    about="A video of what the prompt says, in a style.",
    fields=("prompt", ("style", "alpha")),
  ),
  "video_to_video": Tab(
    title="Video to video",
    about="Makes a video over after a prompt.",
    fields=("prompt", "video", "strength"),
    examples=("prompt", "video"),
  ),
  "super_resolve": Tab(
    title="Super-resolve",
    about="Makes a video larger. The prompt, what it shows, may be empty.",
    fields=("prompt", "video"),
    examples=("prompt", "video"),
  ),
  "panorama": Tab(
    title="Panorama",
    about="A video that is wider than the model makes by itself.",
    fields=("prompt", "width"),
  ),
  "text_to_image": Tab(
    title="Text to picture",
    about="A picture of what the prompt says.",
    fields=("prompt",),
  ),
}


ADVANCED = (
  ("steps", "ssr_steps", "sampler"),
  ("guidance_scale", "ssr_guidance_scale", "guidance_rescale"),
  ("guidance_from", "guidance_to"),
  ("oscillate_after", "oscillate_low"),
  ("num_frames", "window", "overlap", "tile_overlap"),
  ("noise_level", "percentile", "max_value"),
)
"""Rows of settings; empty is as trained."""
