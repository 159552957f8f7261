"""Example inputs of the page: prompts, and scenes of the procedural data.

The scenes are drawn when the page starts. A model trained on this data knows
both, word for word.
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
# Motions that leave a part of the frame empty, which a mask keeps.
_LOCAL_MOTIONS = ("circling", "bouncing", "swinging", "spinning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """Files of a scene.

  Attributes:
    prompt: its caption.
    image: png of the first frame.
    last_image: png of the last frame.
    video: mp4.
    small_video: mp4 of the size that super-resolution takes.
    box: x0,y0,x1,y1 around all motion.
  """

  prompt: str
  image: str
  last_image: str
  video: str
  small_video: str
  box: str


def draw_examples(
  folder: Path, num_frames: int, small: tuple[int, int], count: int = 3
) -> list[Example]:
  """Draws scenes and writes their files to a folder.

  The videos have `num_frames` at `FPS`, the small ones (height, width) `small`.
  """
  source = ProceduralSource(
    num_clips=count,
    num_frames=num_frames,
    resolution=_SIDE,
    fps=FPS,
    two_objects=0.0,
    motions=_LOCAL_MOTIONS,
  )
  small_source = dataclasses.replace(source, resolution=small)
  folder.mkdir(parents=True, exist_ok=True)

  def draw(index: int) -> Example:
    path = lambda end: os.fspath(folder / f"scene-{index + 1}{end}")
    clip = source.clip(index)
    write_image(path(".png"), clip[0])
    write_image(path("-end.png"), clip[-1])
    write_video(path(".mp4"), clip, FPS)
    write_video(path("-small.mp4"), small_source.clip(index), FPS)
    background = np.array(BACKGROUNDS[source.scene(index).background])
    return Example(
      prompt=source.caption(index),
      image=path(".png"),
      last_image=path("-end.png"),
      video=path(".mp4"),
      small_video=path("-small.mp4"),
      box=",".join(map(str, _bounding_box(clip, background))),
    )

  return [draw(index) for index in range(count)]


def _bounding_box(
  clip: UInt8[np.ndarray, "t h w 3"], background: np.ndarray, margin: int = 8
) -> tuple[int, int, int, int]:
  """(x0, y0, x1, y1) of all pixels that ever differ from the background."""
  drawn = (clip != background).any((0, 3))
  rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
  low = lambda indices: max(int(indices[0]) - margin, 0)
  high = lambda indices: min(int(indices[-1]) + 1 + margin, _SIDE)
  return low(columns), low(rows), high(columns), high(rows)
