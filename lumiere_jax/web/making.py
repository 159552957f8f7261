"""Makes what a job asks for, and says how it went."""

from collections.abc import Callable
import functools
import os
import time
import traceback

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.io.image import write_image
from lumiere_jax.io.names import slug
from lumiere_jax.io.notices import listening
from lumiere_jax.io.write import write_video
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.tasks import TASKS
from lumiere_jax.pipelines.told import Progress
from lumiere_jax.typing import UserError
from lumiere_jax.web.desk import Desk, Job, Made
from lumiere_jax.web.forms import Asked
from lumiere_jax.web.options import Options
from lumiere_jax.web.words import words

_FULL = "RESOURCE_EXHAUSTED"  # how XLA begins to say that memory is full


class Maker:
  """A loaded cascade, and what was last made of it by a style."""

  def __init__(self, pipeline: Pipeline, options: Options):
    """Takes the pipeline, which is loaded once for all.

    Args:
      pipeline: or whatever has its methods.
      options: of the page.
    """
    self._pipeline = pipeline
    # A styled cascade has weights of its own: one is kept, not all.
    self._in_style = functools.lru_cache(maxsize=1)(
      lambda style, alpha: _styled(pipeline, style, options, alpha)
    )

  def make(
    self, job: Job, desk: Desk, tell: Callable[[Progress], object]
  ) -> str:
    """Makes it, writes it and keeps it for its session.

    Args:
      job: that has begun.
      desk: where it is kept.
      tell: is told of each step.

    Returns:
      A line about it.

    Raises:
      UserError: it cannot be made; in words of the page.
      Cancelled: it was to stop.
    """
    job.tell = tell
    try:
      job.check()
      begun, notices = time.monotonic(), []
      with listening(notices.append):
        pixels = self._pixels(job.asked, job)
      job.check()
      desk.finish(job, self._write(pixels, job.asked, desk))
    except UserError as error:
      raise UserError(words(error)) from error
    except Exception as error:
      if _FULL not in str(error):
        raise
      traceback.print_exc()
      raise UserError(
        "The memory of the device is too small for this; ask for fewer "
        "frames, a smaller window or fewer pixels"
      ) from error
    seconds = time.monotonic() - begun
    return _report(pixels, seconds, notices)

  def _pixels(self, asked: Asked, job: Job) -> UInt8[np.ndarray, "... h w 3"]:
    pipeline = self._pipeline
    if asked.style:
      pipeline = self._in_style(asked.style, asked.alpha)
    how = asked.how | {"watch": job.watch}
    return TASKS[asked.task].make(pipeline, asked.inputs, asked.prompt, how)

  def _write(self, pixels: np.ndarray, asked: Asked, desk: Desk) -> Made:
    seed = asked.how["seed"]
    name = slug(asked.prompt) or asked.task
    place = desk.new_folder() / f"{name}-seed{seed}"
    if TASKS[asked.task].picture:
      path = place.with_suffix(".png")
      write_image(path, pixels)
    else:
      path = place.with_suffix(".mp4")
      write_video(path, pixels, self._pipeline.fps)
    task = asked.task.replace("_", " ")
    said = f": {asked.prompt}" if asked.prompt else ""
    return Made(path=os.fspath(path), caption=f"{task}, seed {seed}{said}")


def _styled(
  pipeline: Pipeline, style: str, options: Options, alpha: float
) -> Pipeline:
  path = options.styles[style]
  try:
    return pipeline.styled(path, alpha)
  except UserError as error:  # known to people by its name alone
    raise UserError(str(error).replace(path, style)) from error


def _report(pixels: np.ndarray, seconds: float, notices: list[str]) -> str:
  size = f"{pixels.shape[-2]}x{pixels.shape[-3]}"
  what = f"{len(pixels)} frames of {size}" if pixels.ndim == 4 else size
  said = [words(line) for line in notices if "--mask" not in line]
  return ". ".join([f"Done in {seconds:.1f} s: {what}", *said]) + "."
