"""The tasks of `sample`: a dataclass for each, with its inputs as fields."""

from collections.abc import Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lumiere_jax.errors import UserError, check_choice, option, suggest
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.media.images import read_image
from lumiere_jax.media.masks import box_mask, parse_box, parse_expand, read_mask
from lumiere_jax.media.video_reader import probe, read_clip, read_video
from lumiere_jax.options import check_values, documented, options_of, setting
from lumiere_jax.typing import Clip, Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A task and its inputs, as users give them: paths, numbers, text.

  Attributes:
    name: of the task, as in `TASKS`.
    picture: whether it makes pictures.
    prompted: whether it needs a prompt.
    one_of: inputs of which exactly one has to be given.
  """

  name: ClassVar[str] = ""
  picture: ClassVar[bool] = False
  prompted: ClassVar[bool] = True
  one_of: ClassVar[tuple[str, ...]] = ()

  def check(self) -> None:
    """Raises a UserError where an input is missing or out of range."""
    options = options_of(type(self))
    needed = [(name,) for name, info in options.items() if info.required]
    for names in (*needed, *filter(None, [self.one_of])):
      given = [name for name in names if getattr(self, name)]
      if len(given) != 1:
        raise UserError(
          " or ".join(map(option, names)),
          f"is {'given twice' if given else 'missing'}: "
          f"{option('task', self.name)} needs one",
        )
    check_values(self)

  def run(
    self, pipeline: Pipeline, prompt: str, how: SampleOptions
  ) -> np.ndarray:
    """Reads the input files and makes uint8 videos, or pictures."""
    raise NotImplementedError


# Inputs that several tasks share.
_video = functools.partial(
  setting, "", "Input video, of any size and frame rate.", required=True
)


_image = functools.partial(
  setting,
  "",
  "Picture for the first frame, of any size.",
  label="Picture",
  group="pictures",
)


_mask_file = functools.partial(
  setting,
  "",
  "Picture or video: white where pixels are generated.",
  group="mask",
)


_box = functools.partial(
  setting,
  "",
  "x0,y0,x1,y1 in pixels of the picture or video, for a mask.",
  hint="x0,y0,x1,y1 in pixels, in place of paint",
  group="mask",
)


_feather = functools.partial(
  setting,
  0,
  "Width in pixels over which generated pixels fade into given ones.",
  least=0,
  hint="pixels over which the edge fades",
  group="edge",
)


_uncomposited = functools.partial(
  setting,
  False,
  "Leave given pixels as the model made them, instead of putting them back.",
  group="edge",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToVideo(Task):
  """Makes a video of what the prompt says."""

  name = "text_to_video"

  def run(self, pipeline, prompt, how):
    return pipeline.text_to_video(prompt, **how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage(Task):
  """Makes a picture of what the prompt says."""

  name = "text_to_image"
  picture = True

  def run(self, pipeline, prompt, how):
    return pipeline.text_to_image(prompt, **how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToVideo(Task):
  """Makes a video that begins with a picture, ends with one, or both."""

  name = "image_to_video"
  image: str = _image()
  last_image: str = setting(
    "",
    "Picture for the last frame.",
    label="Last picture",
    hint="optional",
    group="pictures",
  )
  uncomposited: bool = _uncomposited()

  def run(self, pipeline, prompt, how):
    read = lambda path: read_image(path) if path else None
    return pipeline.image_to_video(
      prompt,
      read(self.image),
      last_image=read(self.last_image),
      composited=not self.uncomposited,
      **how,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extend(Task):
  """Continues a video from its last frames."""

  name = "extend"
  video: str = _video()
  times: int = setting(
    1,
    "How often the video is continued.",
    least=1,
    hint="how often it is continued",
    group="extend",
  )
  context: int = setting(
    16,
    "Last frames that each continuation is conditioned on.",
    least=1,
    hint="last frames that it continues from",
    group="extend",
  )
  uncomposited: bool = _uncomposited()

  def run(self, pipeline, prompt, how):
    return pipeline.extend(
      prompt,
      _read_video(pipeline, self.video),
      times=self.times,
      context=self.context,
      composited=not self.uncomposited,
      **how,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpaint(Task):
  """Generates the masked part of a video anew."""

  name = "inpaint"
  one_of = ("mask", "box")
  video: str = _video()
  mask: str = _mask_file()
  box: str = _box()
  feather: int = _feather()
  uncomposited: bool = _uncomposited()

  def run(self, pipeline, prompt, how):
    video = _read_video(pipeline, self.video, pipeline.frames(how))
    return pipeline.inpaint(
      prompt,
      video,
      ~_mask(pipeline, self, video.shape[:3], how),
      feather=self.feather,
      composited=not self.uncomposited,
      **how,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outpaint(Task):
  """Extends the frame: pixels of the video to add on each side."""

  name = "outpaint"
  video: str = _video()
  expand: str = setting(
    "",
    "left,top,right,bottom: pixels to add around the video.",
    required=True,
    label="Edges",
  )
  feather: int = _feather()
  uncomposited: bool = _uncomposited()

  def run(self, pipeline, prompt, how):
    return pipeline.outpaint(
      prompt,
      _read_video(pipeline, self.video, pipeline.frames(how)),
      parse_expand(self.expand),
      feather=self.feather,
      composited=not self.uncomposited,
      **how,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cinemagraph(Task):
  """Makes a picture move inside the mask and nowhere else."""

  name = "cinemagraph"
  one_of = ("mask", "box")
  image: str = _image(required=True)
  mask: str = _mask_file()
  box: str = _box()
  feather: int = _feather()
  uncomposited: bool = _uncomposited()

  def run(self, pipeline, prompt, how):
    image = read_image(self.image)
    return pipeline.cinemagraph(
      prompt,
      image,
      ~_mask(pipeline, self, (1, *image.shape[:2]), how)[0],
      feather=self.feather,
      composited=not self.uncomposited,
      **how,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stylize(TextToVideo):
  """Makes a video of what the prompt says, in a style.

  Other tasks take styles too; this one needs one.
  """

  name = "stylize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoToVideo(Task):
  """Changes a video to match the prompt."""

  name = "video_to_video"
  video: str = _video()
  strength: float = setting(
    0.7,
    "How much noise is added to the video, above 0 to 1; 1 keeps nothing of "
    "it.",
    above=0,
    most=1,
    hint="how much is changed",
  )

  def run(self, pipeline, prompt, how):
    return pipeline.video_to_video(
      prompt,
      _read_video(pipeline, self.video, pipeline.frames(how)),
      strength=self.strength,
      **how,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolve(Task):
  """Enlarges a video. The prompt, what it shows, may be empty."""

  name = "super_resolve"
  prompted = False
  video: str = _video()

  def run(self, pipeline, prompt, how):
    video = _read_video(pipeline, self.video)
    return pipeline.super_resolve(video, prompt=prompt, **how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panorama(Task):
  """Makes a video wider than the model's own frames."""

  name = "panorama"
  width: int = setting(
    0, "Width of the panorama in pixels.", least=1, required=True
  )

  def run(self, pipeline, prompt, how):
    return pipeline.panorama(prompt, width=self.width, **how)


TASKS: dict[str, type[Task]] = {
  task.name: documented(task)
  for task in (
    TextToVideo,
    TextToImage,
    ImageToVideo,
    Extend,
    Inpaint,
    Outpaint,
    Cinemagraph,
    Stylize,
    VideoToVideo,
    SuperResolve,
    Panorama,
  )
}


DEFAULTS = {
  name: getattr(task, name)
  for task in TASKS.values()
  for name in options_of(task)
}
"""The inputs of all tasks, with their defaults."""


def make_task(name: str, inputs: Mapping[str, Any]) -> Task:
  """Builds a task; what is missing is left to `Task.check`.

  Args:
    name: of the task.
    inputs: by name. Those that the task does not take are an error, unless
      they have the default of the tasks that take them: front ends offer the
      inputs of all tasks.
  """
  check_choice(option("task"), name, TASKS)
  known = options_of(TASKS[name])
  for extra in sorted(inputs.keys() - known.keys()):
    if extra not in DEFAULTS or inputs[extra] != DEFAULTS[extra]:
      takes = ", ".join(map(option, sorted(known)))
      raise UserError(
        option(extra),
        f"is not an input of {option('task', name)}{suggest(extra, known)}",
        f"it takes {takes or 'the prompt alone'}",
      )
  return TASKS[name](**{k: v for k, v in inputs.items() if k in known})


def _read_video(pipeline: Pipeline, path: str, most: int = 0) -> Clip:
  """At the frame rate of the model; at most `most` frames, 0 is all.

  One frame more is read if there is one, so that truncation can be reported.
  Arrays and folders of pictures have no rate: all their frames are read.
  """
  if path.endswith(".npy") or Path(path).is_dir():
    video, _ = read_video(path)
    return video[: most + 1] if most else video
  frames = probe(path).frames_at(pipeline.fps)
  if most:
    frames = min(frames, most + 1)
  return read_clip(path, start_s=0.0, num_frames=frames, fps=pipeline.fps)


def _mask(
  pipeline: Pipeline,
  inputs: Inpaint | Cinemagraph,
  shape: tuple[int, int, int],
  how: SampleOptions,
) -> Mask:
  """Of an input of `shape` (t, h, w); the Python API takes its inverse."""
  frames, *size = shape
  resolution = pipeline.resolution(how.get("settings"))
  if inputs.box:
    box = parse_box(inputs.box)
    return box_mask(box, tuple(size), resolution, frames)
  return read_mask(inputs.mask, resolution, frames)
