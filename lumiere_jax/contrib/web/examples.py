"""Prompts, pictures and videos to begin with: scenes of the procedural data.

They are drawn when the page starts. A model trained on this data knows what
they show, word for word.
"""

import dataclasses
import os
from pathlib import Path

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.toy_scenes.scenes import BACKGROUNDS

PROMPTS = (
  "a large red circle moving left slowly on a black background",
  "a small yellow star spinning quickly on a navy background",
  "a large blue ring bouncing slowly on a grey background",
  "a small green triangle moving up slowly and a large orange cross circling "
  "slowly on a white background",
)


FPS = 16.0


_SIDE = 256


_STAYING = ("circling", "bouncing", "swinging", "spinning")
"""Motions that leave a part of the frame alone: a mask keeps it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """A drawn scene.

  Attributes:
    prompt: what it shows.
    image: png of its first frame.
    last_image: png of its last frame.
    video: mp4 of it.
    small_video: the same, of the size that super-resolution begins with.
    box: x0,y0,x1,y1 around all that ever moves.
  """

  prompt: str
  image: str
  last_image: str
  video: str
  small_video: str
  box: str


def draw(
  folder: Path, num_frames: int, small: tuple[int, int], count: int = 3
) -> list[Example]:
  """Draws some scenes.

  Args:
    folder: to write to.
    num_frames: of their videos, at `FPS`.
    small: (height, width) of the small videos.
    count: how many.
  """
  source = ProceduralSource(
    num_clips=count,
    num_frames=num_frames,
    resolution=_SIDE,
    fps=FPS,
    two_objects=0.0,
    motions=_STAYING,
  )
  folder.mkdir(parents=True, exist_ok=True)
  return [_example(source, index, folder, small) for index in range(count)]


def _example(
  source: ProceduralSource, index: int, folder: Path, small: tuple[int, int]
) -> Example:
  clip = source.clip(index)
  drawn_small = dataclasses.replace(source, resolution=small).clip(index)
  path = lambda name: folder / f"scene-{index + 1}{name}"
  write_image(path(".png"), clip[0])
  write_image(path("-end.png"), clip[-1])
  write_video(path(".mp4"), clip, FPS)
  write_video(path("-small.mp4"), drawn_small, FPS)
  plain = np.array(BACKGROUNDS[source.scene(index).background])
  return Example(
    prompt=source.caption(index),
    image=os.fspath(path(".png")),
    last_image=os.fspath(path("-end.png")),
    video=os.fspath(path(".mp4")),
    small_video=os.fspath(path("-small.mp4")),
    box=",".join(map(str, _around(clip, plain))),
  )


def _around(
  clip: UInt8[np.ndarray, "t h w 3"], plain: np.ndarray, margin: int = 8
) -> tuple[int, int, int, int]:
  """The box of all pixels that are ever of another colour than the ground."""
  drawn = (clip != plain).any((0, 3))
  rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
  low = lambda places: max(int(places[0]) - margin, 0)
  high = lambda places: min(int(places[-1]) + 1 + margin, _SIDE)
  return low(columns), low(rows), high(columns), high(rows)
