"""A folder of toy scenes in a style: to fine-tune on without files."""

import os
from pathlib import Path

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.storage.atomic import replacing
from lumiere_jax.toy_scenes.scenes import Scene, render
from lumiere_jax.toy_scenes.styles import STYLE, Array, find_look, in_style

_MOMENTS = 3  # Draws of their own, beside those of procedural clips.


def draw(
  scene: Scene,
  num_frames: int,
  resolution: int | tuple[int, int],
  fps: float = 16.0,
  *,
  style: str = STYLE,
) -> UInt8[Array, "t h w 3"]:
  """Draws `scene` in a style; see `scenes.render`.

  Raises:
    UserError: the style is unknown.
  """
  look = find_look(style)
  return render(
    scene,
    num_frames,
    resolution,
    fps,
    backgrounds=look.papers,
    opacity=look.opacity,
  )


def write_style_folder(
  folder: str | os.PathLike,
  style: str = STYLE,
  count: int = 256,
  resolution: int | tuple[int, int] = 32,
  seed: int = 0,
) -> None:
  """Writes captioned pictures in a style, for config.data.source=files.

  Half of them are moments of moving scenes, and say so: a model that learns
  the style from them does not forget the words of motion.

  Args:
    folder: to make, of NAME.png and NAME.txt.
    style: a key of `STYLES`.
    count: of pictures.
    resolution: (height, width) in pixels, or the side of a square.
    seed: another seed gives other scenes.

  Raises:
    UserError: the style is unknown, a number is out of range, or the folder
      holds something already.
  """
  folder = Path(folder)
  find_look(style)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(str(folder), "is there already", "name a new folder")
  source = ProceduralSource(
    num_clips=count,
    num_frames=1,
    resolution=resolution,
    seed=seed,
    moments=0.5,
  )
  with replacing(folder) as temporary:
    temporary.mkdir()
    for index in range(count):
      rng = np.random.default_rng((seed, _MOMENTS, index))
      (picture,) = draw(
        source.restarted(index, rng), 1, resolution, style=style
      )
      name = f"{style}-{index:05d}"
      write_image(temporary / f"{name}.png", picture)
      caption = in_style(source.caption(index), style)
      (temporary / f"{name}.txt").write_text(f"{caption}\n")
