"""What a mask is painted on: the picture, or the first frame of the video."""

from pathlib import Path
import tempfile

from jaxtyping import Bool, UInt8
import numpy as np
from PIL import Image

from lumiere_jax.contrib.web.labels import words
from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.contrib.web.uploads import take_picture, take_video
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import read_clip

_FAINT = 64  # Alpha of what does not count as paint.


SIDE = 640
"""Longer side of what is painted on: small clips are enlarged to paint on."""


def canvas(path: str, field: str, limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
  """The picture, or first frame, with a longer side of `SIDE`.

  Args:
    path: of an upload.
    field: 'image' or 'video'.
    limits: what may be uploaded.

  Raises:
    UserError: it is not what it should be; in words of the page.
  """
  try:
    with tempfile.TemporaryDirectory() as folder:
      if field == "image":
        pixels = read_image(take_picture(path, field, limits, Path(folder)))
      else:
        taken = take_video(path, field, limits, Path(folder))
        pixels = read_clip(taken, start_s=0.0, num_frames=1, fps=1.0)[0]
  except UserError as error:
    raise UserError(words(error)) from error
  image = Image.fromarray(pixels)
  share = SIDE / max(image.size)
  size = [max(1, round(side * share)) for side in image.size]
  return np.asarray(image.resize(size))


def painted(layers: list) -> Bool[np.ndarray, "h w"] | None:
  """What was painted, on any of the layers.

  Args:
    layers: files or paths of pictures whose alpha is paint.

  Returns:
    None: there is no layer.

  Raises:
    UserError: one is no picture, or not of a canvas's size.
  """
  masks = [_alpha(layer) for layer in layers]
  if len({mask.shape for mask in masks}) > 1:
    raise UserError(
      "", "The layers of the mask differ in size", "paint it anew"
    )
  return np.any(masks, axis=0) if masks else None


def _alpha(layer) -> Bool[np.ndarray, "h w"]:
  try:
    with Image.open(layer, formats=("PNG", "WEBP")) as image:
      if max(image.size) > SIDE:
        raise UserError("", "The painted mask is too large", "paint it anew")
      return np.asarray(image.convert("RGBA"))[..., 3] > _FAINT
  except (OSError, Image.DecompressionBombError) as error:
    raise UserError(
      "", "The painted mask is no picture", "paint it anew"
    ) from error
