"""The tasks of `sample`: a dataclass for each, with its inputs as fields."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lumiere_jax.errors import (
  UserError,
  capture_notices,
  check_choice,
  notice,
  option,
  suggest,
)
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.sample_options import settings_of, with_settings
from lumiere_jax.media.images import read_image
from lumiere_jax.media.masks import box_mask, parse_box, parse_expand, read_mask
from lumiere_jax.media.video_reader import probe, read_clip, read_video
from lumiere_jax.options import check_values, documented, options_of, setting
from lumiere_jax.typing import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A task and its inputs, as users give them: paths, numbers, text.

  Attributes:
    name: of the task, as in `TASKS`.
    picture: whether it makes pictures.
    prompted: whether it needs a prompt.
    one_of: inputs of which exactly one has to be given.
    method: of the pipeline that does it; '' is the one called as the task.
    whole_video: whether all frames of a video are read, not just as many as
      the model makes.
  """

  name: ClassVar[str] = ""
  picture: ClassVar[bool] = False
  prompted: ClassVar[bool] = True
  one_of: ClassVar[tuple[str, ...]] = ()
  method: ClassVar[str] = ""
  whole_video: ClassVar[bool] = False

  def check(self) -> None:
    """Raises a UserError where an input is missing or cannot be used."""
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
    with capture_notices(lambda line: None):  # `run` gives them
      for name, read in _READERS.items():
        if text := getattr(self, name, ""):
          read(text)

  def check_settings(self, pipeline: Pipeline, how: SampleOptions) -> None:
    """Raises a UserError where a loaded pipeline cannot sample so.

    Where the size or the stages depend on the inputs, `run` raises it.
    """
    if not self.picture and not {"image", "video"} & vars(self).keys():
      pipeline.plan(settings_of(how))
      negative_prompt = how.get("negative_prompt", "")
      pipeline.check_negative_prompt(negative_prompt, settings_of(how))

  def run(
    self, pipeline: Pipeline, prompt: str, how: SampleOptions
  ) -> np.ndarray:
    """Reads the input files and makes uint8 videos, or pictures."""
    given: dict[str, Any] = dict(vars(self))
    for name in ("image", "last_image"):
      if name in given:
        given[name] = read_image(given[name]) if given[name] else None
    if "video" in given:
      most = 0 if self.whole_video else pipeline.frames(how)
      given["video"] = _read_video(given["video"], pipeline.fps, most)
    if "expand" in given:
      given["expand"] = parse_expand(given["expand"])
    if "mask" in given:
      size = pipeline.resolution(settings_of(how))
      box = given.pop("box")
      if "video" in given:
        frames, height, width, _ = given["video"].shape
      else:
        frames, (height, width, _) = 1, given["image"].shape
      mask = (
        box_mask(parse_box(box), (height, width), size, frames)
        if box
        else read_mask(given["mask"], size, frames)
      )
      # The Python API takes the inverse, and of a picture one frame.
      given["mask"] = ~mask if "video" in given else ~mask[0]
    if "uncomposited" in given:
      given["composited"] = not given.pop("uncomposited")
    task = getattr(pipeline, self.method or self.name)
    return task(prompt=prompt, **given, **how)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage(Task):
  """Makes a picture of what the prompt says."""

  name = "text_to_image"
  picture = True


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

  def check(self) -> None:
    """See `Task.check`."""
    if not self.image and not self.last_image:
      raise UserError(
        option("image"), "is missing", "give one to begin with, or to end with"
      )
    super().check()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extend(Task):
  """Continues a video from its last frames."""

  name = "extend"
  whole_video = True
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stylize(TextToVideo):
  """Makes a video of what the prompt says, in a style.

  Other tasks take styles too; this one needs one.
  """

  name = "stylize"
  method = "text_to_video"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolve(Task):
  """Enlarges a video. The prompt, what it shows, may be empty."""

  name = "super_resolve"
  prompted = False
  whole_video = True
  video: str = _video()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panorama(Task):
  """Makes a video wider than the model's own frames."""

  name = "panorama"
  width: int = setting(
    0, "Width of the panorama in pixels.", least=1, required=True
  )

  def check_settings(self, pipeline: Pipeline, how: SampleOptions) -> None:
    """See `Task.check_settings`."""
    size = pipeline.resolution(settings_of(how))[0], self.width
    super().check_settings(pipeline, with_settings(how, size=size))


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

_READERS: dict[str, Callable[[str], object]] = {
  "image": read_image,
  "last_image": read_image,
  "video": lambda path: _read_video(path, fps=1.0, most=1),
  "mask": lambda path: read_mask(path, (8, 8), 1),
  "box": parse_box,
  "expand": parse_expand,
}
"""Input -> reads enough of it to know that it can be used."""

DEFAULTS = {
  name: getattr(task, name)
  for task in TASKS.values()
  for name in options_of(task)
}
"""The inputs of all tasks, with their defaults."""


def make_task(name: str, inputs: Mapping[str, Any]) -> Task:
  """Builds a task; what is missing is left to `Task.check`.

  Inputs that the task does not take are an error, unless they have the default
  of the tasks that take them: front ends offer the inputs of all tasks.
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


def _read_video(path: str, fps: float, most: int) -> Clip:
  """A video at a frame rate; at most `most` frames, 0 is all.

  One frame more is read if there is one, so that truncation can be reported.
  Arrays and folders of pictures have no rate: all their frames are read.
  """
  if path.endswith(".npy") or Path(path).is_dir():
    video, _ = read_video(path)
    return video[: most + 1] if most else video
  info = probe(path)
  if info.left_out_s:
    notice(
      f"{option('video', path)}: {info.left_out_s:.2f} s cannot be decoded, "
      "because a recording begins between key frames; they are left out"
    )
  frames = info.frames_at(fps)
  if most:
    frames = min(frames, most + 1)
  return read_clip(path, start_s=0.0, num_frames=frames, fps=fps)
