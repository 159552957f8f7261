"""Clips of several lengths and aspects, each shape known before training."""

from collections.abc import Sequence
import math
import re

from lumiere_jax.data.source import ClipSpec
from lumiere_jax.typing import UserError

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


def parse_buckets(text: str) -> list[tuple[int, int, int]]:
  """'80x96x160 16x128x128' -> [(80, 96, 160), (16, 128, 128)].

  Raises:
    UserError: an entry is not FRAMESxHEIGHTxWIDTH.
  """
  shapes = []
  for entry in text.split():
    match = _SHAPE.fullmatch(entry)
    if not match:
      raise UserError(
        f"config.data.buckets: {entry!r} is not FRAMESxHEIGHTxWIDTH, "
        "as 80x96x160; separate several by spaces"
      )
    shapes.append(tuple(map(int, match.groups())))
  return shapes


def choose_bucket(
  specs: Sequence[ClipSpec], frames: int, height: int, width: int
) -> int | None:
  """The shape that suits a video best.

  Of the shapes that the video is long enough for, the longest; of those, the
  one nearest to it in aspect (by the logarithm, so that wide and tall count
  alike); of those, the largest.

  Args:
    specs: the shapes.
    frames: of the video at the frame rate of the clips.
    height: of the video in pixels.
    width: of the video in pixels.

  Returns:
    Index into `specs`; None: the video is too short for all of them.
  """
  fits = [i for i, spec in enumerate(specs) if spec.num_frames <= frames]
  if not fits:
    return None

  def preference(i: int) -> tuple[int, float, int]:
    h, w = specs[i].resolution
    return (
      specs[i].num_frames,
      -abs(math.log(w / h) - math.log(width / height)),
      h * w,
    )

  return max(fits, key=preference)
