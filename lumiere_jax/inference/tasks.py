"""The tasks of `sample`: what each needs of the user's files, and makes."""

from collections.abc import Callable
import dataclasses
from pathlib import Path

import numpy as np

from lumiere_jax.errors import UserError, option, suggest
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.media.images import read_image
from lumiere_jax.media.masks import box_mask, parse_box, parse_expand, read_mask
from lumiere_jax.media.video_reader import probe, read_clip, read_video
from lumiere_jax.typing import Clip, Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """What the tasks take besides the prompt, as the user says it.

  Attributes:
    image: file of the first frame.
    last_image: file of the last frame.
    video: file, or whatever else PyAV opens.
    mask: picture or video, white where pixels are made anew.
    box: x0,y0,x1,y1 in pixels of the picture or video, in place of a mask.
    expand: left,top,right,bottom pixels to add around the video.
    feather: pixels over which the edge of what is made fades.
    strength: in (0, 1], how much of a video is made over.
    times: how often a video is gone on with.
    context: last frames that are gone on from.
    width: of a panorama, in pixels.
    uncomposited: leaves given pixels as the model made them.
  """

  image: str = ""
  last_image: str = ""
  video: str = ""
  mask: str = ""
  box: str = ""
  expand: str = ""
  feather: int = 0
  strength: float = 0.7
  times: int = 1
  context: int = 16
  width: int = 0
  uncomposited: bool = False


Make = Callable[[Pipeline, Inputs, str, SampleOptions], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One of `TASKS`.

  Attributes:
    make: (pipeline, inputs, prompt, how) -> uint8 videos, or pictures.
    needs: inputs that have to be given; of 'a or b' one.
    takes: inputs that may be given.
    picture: whether it makes pictures.
    prompted: whether a prompt has to be given.
  """

  make: Make
  needs: tuple[str, ...] = ()
  takes: tuple[str, ...] = ()
  picture: bool = False
  prompted: bool = True

  def check(self, name: str, inputs: Inputs) -> None:
    """Raises a UserError for inputs that lack, or that it does not take."""
    default = Inputs()
    given = {k for k, v in vars(inputs).items() if v != getattr(default, k)}
    known = set(self.takes)
    for need in self.needs:
      ways = need.split(" or ")
      known.update(ways)
      if len(given & set(ways)) != 1:
        names = " or ".join(option(way) for way in ways)
        state = "missing" if not given & set(ways) else "given twice"
        raise UserError(names, f"is {state}: {option('task')}={name} needs one")
    for extra in sorted(given - known):
      raise UserError(
        option(extra),
        f"means nothing to {option('task')}={name}, which takes "
        + (", ".join(option(k) for k in sorted(known)) or "the prompt alone")
        + f"{suggest(extra, known)}",
      )


def _text_to_video(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  del inputs
  return pipeline.text_to_video(prompt, **how)


def _text_to_image(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  del inputs
  return pipeline.text_to_image(prompt, **how)


def _image_to_video(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  read = lambda path: read_image(path) if path else None
  return pipeline.image_to_video(
    prompt,
    read(inputs.image),
    last_image=read(inputs.last_image),
    composited=not inputs.uncomposited,
    **how,
  )


def _inpaint(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  video = _read_video(pipeline, inputs.video, pipeline.frames(how))
  return pipeline.inpaint(
    prompt,
    video,
    ~_mask(pipeline, inputs, video.shape[:3], how),
    feather=inputs.feather,
    composited=not inputs.uncomposited,
    **how,
  )


def _outpaint(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  return pipeline.outpaint(
    prompt,
    _read_video(pipeline, inputs.video, pipeline.frames(how)),
    parse_expand(inputs.expand),
    feather=inputs.feather,
    composited=not inputs.uncomposited,
    **how,
  )


def _cinemagraph(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  image = read_image(inputs.image)
  return pipeline.cinemagraph(
    prompt,
    image,
    ~_mask(pipeline, inputs, (1, *image.shape[:2]), how)[0],
    feather=inputs.feather,
    composited=not inputs.uncomposited,
    **how,
  )


def _video_to_video(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  return pipeline.video_to_video(
    prompt,
    _read_video(pipeline, inputs.video, pipeline.frames(how)),
    strength=inputs.strength,
    **how,
  )


def _extend(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  return pipeline.extend(
    prompt,
    _read_video(pipeline, inputs.video),
    times=inputs.times,
    context=inputs.context,
    composited=not inputs.uncomposited,
    **how,
  )


def _super_resolve(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  video = _read_video(pipeline, inputs.video)
  return pipeline.super_resolve(video, prompt=prompt, **how)


def _panorama(
  pipeline: Pipeline, inputs: Inputs, prompt: str, how: SampleOptions
):
  return pipeline.panorama(prompt, width=inputs.width, **how)


_EDGE = ("feather", "uncomposited")


TASKS: dict[str, Task] = {
  "text_to_video": Task(make=_text_to_video),
  "text_to_image": Task(make=_text_to_image, picture=True),
  "image_to_video": Task(
    make=_image_to_video, takes=("image", "last_image", "uncomposited")
  ),
  "extend": Task(
    make=_extend,
    needs=("video",),
    takes=("times", "context", "uncomposited"),
  ),
  "inpaint": Task(make=_inpaint, needs=("video", "mask or box"), takes=_EDGE),
  "outpaint": Task(make=_outpaint, needs=("video", "expand"), takes=_EDGE),
  "cinemagraph": Task(
    make=_cinemagraph, needs=("image", "mask or box"), takes=_EDGE
  ),
  "stylize": Task(make=_text_to_video),
  "video_to_video": Task(
    make=_video_to_video, needs=("video",), takes=("strength",)
  ),
  "super_resolve": Task(make=_super_resolve, needs=("video",), prompted=False),
  "panorama": Task(make=_panorama, needs=("width",)),
}
"""What can be made; 'stylize' is text to video with a style, which the other
tasks take as well."""


def _read_video(pipeline: Pipeline, path: str, most: int = 0) -> Clip:
  """At the frame rate of the model; at most `most` frames, 0 is all.

  One frame more is read where there is one, so that its lack is told. Arrays
  and folders of pictures have no rate: all their frames are taken.
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
  inputs: Inputs,
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
