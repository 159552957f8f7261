"""Masks that a user gives: which pixels are to be made anew.

In a file, white is made anew and black is kept: pixels at least half as bright
as white count as white. What is transparent lies over black, so that strokes
of white on an empty layer are a mask as they are.
"""

from collections.abc import Iterator
import dataclasses
import itertools
from pathlib import Path

from jaxtyping import Bool, UInt8
import numpy as np
from PIL import ImageSequence

from lumiere_jax.errors import UserError, VideoError, notice, option
from lumiere_jax.media.container import open_video
from lumiere_jax.media.images import fit
from lumiere_jax.media.input_file import (
  PICTURE_ENDINGS,
  open_picture,
  read_npy,
  rgb,
)
from lumiere_jax.media.resize import Framing

Mask = Bool[np.ndarray, "t h w"]


Still = Bool[np.ndarray, "h w"]


Box = tuple[int, int, int, int]


# Pillow puts the transparent frames of a GIF together; FFmpeg takes what was
# never painted for white.
_BY_PILLOW = PICTURE_ENDINGS | {".gif"}


_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of BT.709


_HALF = 127.5


def read_mask(path, resolution: tuple[int, int], num_frames: int) -> Mask:
  """Reads a mask and treats it as pictures are: covers, then cuts the centre.

  So it stays aligned with a picture or video of its aspect that is made to
  cover `resolution` (`lumiere_jax.media.images.fit`). Says so if its size
  changes.

  Args:
    path: a picture, a video, an animated GIF, WebP or PNG, a folder of png
      images in order of their names, or an .npy file of (h, w) or (t, h, w):
      bool, or uint8 of 0..255 (or of 0 and 1). The alpha of videos is left out.
    resolution: (height, width) to make of it.
    num_frames: t. A longer mask is cut, frame by frame whatever its frame
      rate; of a shorter one, as of a picture, the last frame is repeated.

  Returns:
    (t, h, w), True where pixels are to be made anew.

  Raises:
    UserError: it cannot be read, or is no mask.
  """
  path, size, fitted = Path(path), None, []
  for still in itertools.islice(_stills(path), num_frames):
    size = size or still.shape
    if still.shape != size:
      raise VideoError(path, "mixed sizes: the frames must all be of one size")
    fitted.append(fit_mask(still, resolution))
  if not fitted:
    raise VideoError(path, "no frames: nothing in it can be decoded")
  if size != tuple(resolution):
    notice(f"{option('mask')}={path} is {_by(size)}, made {_by(resolution)}")
  return _lasting(fitted, num_frames)


def box_mask(
  box: Box, size: tuple[int, int], resolution: tuple[int, int], num_frames: int
) -> Mask:
  """A box that is made anew in all frames.

  Args:
    box: (x0, y0, x1, y1) in pixels of the user's picture; the upper left pixel
      is in it, x1 and y1 are the first column and row that are not.
    size: (height, width) of that picture.
    resolution: (height, width) that the picture is made to cover, and cut to
      at its centre.
    num_frames: t.

  Returns:
    (t, h, w), True in the box.

  Raises:
    UserError: the box is empty, or reaches outside the picture.
  """
  x0, y0, x1, y1 = box
  said = f"{option('box')}={x0},{y0},{x1},{y1}"
  if x0 >= x1 or y0 >= y1:
    raise UserError(
      said, "is empty", "give x0,y0,x1,y1 with x0 below x1 and y0 below y1"
    )
  if min(box) < 0 or x1 > size[1] or y1 > size[0]:
    raise UserError(
      said,
      f"reaches outside the picture, which is {_by(size)}",
      f"give a box within 0,0,{size[1]},{size[0]}",
    )
  still = np.zeros(size, bool)
  still[y0:y1, x0:x1] = True
  return _lasting([fit_mask(still, resolution)], num_frames)


def parse_box(text: str) -> Box:
  """'x0,y0,x1,y1' as four whole numbers; `box_mask` checks where they are.

  Raises:
    UserError: it is not four whole numbers.
  """
  return _four(option("box"), text, "x0,y0,x1,y1 in pixels, such as 0,0,64,32")


def parse_expand(text: str) -> Box:
  """'left,top,right,bottom': by how many pixels a picture grows there.

  Raises:
    UserError: it is not four whole numbers of 0 or more, or all are 0.
  """
  mend = "left,top,right,bottom in pixels, such as 32,0,32,0"
  edges = _four(option("expand"), text, mend)
  if min(edges) < 0:
    raise UserError(
      option("expand", text), "has a number below 0", f"give {mend}"
    )
  if not any(edges):
    raise UserError(option("expand", text), "adds nothing", f"give {mend}")
  return edges


def check_mask(mask: Mask, name: str = option("mask")) -> None:
  """Raises a UserError unless some pixels are made anew and some are kept.

  Args:
    mask: (t, h, w), True where pixels are to be made anew.
    name: of what the user gave, for the error.
  """
  if not mask.any():
    raise UserError(
      f"{name}:",
      f"marks nothing to be made anew in the {_by(mask.shape[1:])} "
      "that it is cut to",
      "mark something there, in a file by white",
    )
  if mask.all():
    raise UserError(
      f"{name}:",
      "marks everything to be made anew",
      f"leave out what is to be kept, or use {option('task')}=text_to_video",
    )


def fit_mask(still: Still, resolution: tuple[int, int]) -> Still:
  """A mask that covers `resolution` as pictures do; it has no greys."""
  if still.shape == tuple(resolution):
    return still
  pixels = np.where(still, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
  return _white(fit(pixels, resolution))


def _stills(path: Path) -> Iterator[Still]:
  ending = path.suffix.lower()
  if path.is_dir():
    return _of_folder(path)
  if ending == ".npy":
    return iter(_of_array(path))
  return _of_picture(path) if ending in _BY_PILLOW else _of_video(path)


def _of_folder(folder: Path) -> Iterator[Still]:
  paths = sorted(p for p in folder.glob("*.png") if p.name[0] != ".")
  if not paths:
    raise VideoError(folder, "no frames: no .png files in this folder")
  for path in paths:
    with open_picture(path) as image:
      yield _white(rgb(image, "black"))


def _of_picture(path: Path) -> Iterator[Still]:
  with open_picture(path) as image:
    for frame in ImageSequence.Iterator(image):
      yield _white(rgb(frame, "black"))


def _of_video(path: Path) -> Iterator[Still]:
  framing = Framing()
  with open_video(path) as track:
    for _, frame in track.frames():
      pixels = framing(frame, track.pixel_aspect)
      # A stream may change its size.
      framing = dataclasses.replace(framing, resolution=pixels.shape[:2])
      yield _white(pixels)


def _of_array(path: Path) -> Mask:
  array = read_npy(path)
  if array.dtype not in (np.bool_, np.uint8) or array.ndim not in (2, 3):
    raise VideoError(
      path,
      f"not a mask: {array.dtype} {array.shape}; save bool or uint8, (h, w) or "
      "(t, h, w)",
    )
  if not array.size:
    raise VideoError(path, f"not a mask: {array.shape} has no pixels")
  if array.dtype == np.uint8:
    # 1 of 255 would be black, so all of it would be: 1 is meant for white.
    array = array == 1 if array.max() == 1 else array > _HALF
  return array.reshape(-1, *array.shape[-2:])


def _white(pixels: UInt8[np.ndarray, "h w 3"]) -> Still:
  return pixels @ _LUMA >= _HALF


def _lasting(stills: list[Still], num_frames: int) -> Mask:
  """As many frames, the last one repeated."""
  return np.stack(stills + stills[-1:] * (num_frames - len(stills)))


def _four(flag: str, text: str, mend: str) -> Box:
  try:
    a, b, c, d = map(int, text.split(","))
  except ValueError as error:
    raise UserError(
      f"{flag}={text}", "is not four whole numbers", f"give {mend}"
    ) from error
  return a, b, c, d


def _by(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]}"
