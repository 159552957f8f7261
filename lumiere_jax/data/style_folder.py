"""Writes a folder of toy scenes in a style, to fine-tune on."""

import os
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.storage.atomic import replacing
from lumiere_jax.toy_scenes.scenes import Scene, render
from lumiere_jax.toy_scenes.styles import STYLE, Array, add_style, get_style

_MOMENTS = 3  # Seed of the moments, apart from those of procedural clips.


def render_style(
  scene: Scene, *args: Any, style: str = STYLE
) -> UInt8[Array, "t h w 3"]:
  """Draws `scene` in a style; for `args`, see `scenes.render`."""
  look = get_style(style)
  return render(
    scene, *args, backgrounds=look.backgrounds, opacity=look.opacity
  )


def write_style_folder(
  folder: str | os.PathLike,
  style: str = STYLE,
  count: int = 256,
  resolution: int | tuple[int, int] = 32,
  seed: int = 0,
) -> None:
  """Writes captioned pictures in a style, for config.data.source=files.

  Half of them show moments of moving scenes and name the motion, so that a
  model that learns the style does not forget the motion words.

  Args:
    folder: to create; it gets files NAME.png and NAME.txt.
    style: a key of `STYLES`.
    count: number of pictures.
    resolution: (height, width) in pixels, or the side of a square.
    seed: another seed gives other scenes.
  """
  folder = Path(folder)
  get_style(style)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder}:", "already exists", "choose a new folder")
  source = ProceduralSource(
    num_clips=count, num_frames=1, resolution=resolution, seed=seed, moments=0.5
  )
  with replacing(folder) as temporary:
    temporary.mkdir()
    for index in range(count):
      rng = np.random.default_rng((seed, _MOMENTS, index))
      (picture,) = render_style(
        source.drawn_scene(index, rng), 1, resolution, style=style
      )
      name = f"{style}-{index:05d}"
      write_image(temporary / f"{name}.png", picture)
      caption = add_style(source.caption(index), style)
      (temporary / f"{name}.txt").write_text(f"{caption}\n")
