"""Converts decoded frames to upright RGB of a given size."""

from collections.abc import Mapping
import dataclasses
from fractions import Fraction
from typing import Any

import av
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from jaxtyping import UInt8
import numpy as np

from lumiere_jax.media.colour import is_hdr, needs_mapping, to_srgb
from lumiere_jax.media.input_file import RGBImage

# swscale widens its kernels when it shrinks, so this antialiases. The flags
# keep chroma at full resolution and round to nearest.
SCALING = int(
  Interpolation.BICUBIC
  | Interpolation.ACCURATE_RND
  | Interpolation.FULL_CHR_H_INT
  | Interpolation.FULL_CHR_H_INP
  | Interpolation.BITEXACT
)

_UNSPECIFIED = 2  # libavutil's AVCOL_SPC_UNSPECIFIED

# Untagged video is BT.709 from this stored size on, BT.601 below: the rule of
# mpv (mp_csp_guess_colorspace).
_HD_WIDTH, _SD_MAX_HEIGHT = 1280, 576


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framing:
  """Turns decoded frames into upright RGB frames of one size.

  Attributes:
    resolution: (height, width) in pixels; None keeps that of the video.
    crop: position of the crop window, as fractions of the excess height and
      width; (0.5, 0.5) is the centre.
    background: grey level behind transparent parts; white by default.
  """

  resolution: tuple[int, int] | None = None
  crop: tuple[float, float] = (0.5, 0.5)
  background: int = 255
  reformatter: VideoReformatter = dataclasses.field(
    default_factory=VideoReformatter
  )

  def __call__(self, frame: av.VideoFrame, pixel_aspect: Fraction) -> RGBImage:
    """Converts to RGB, resizes to cover `resolution`, rotates and crops.

    YUV becomes RGB by the frame's colour tag; untagged frames are BT.709 if
    they are 1280 pixels wide or more or taller than 576, otherwise BT.601.
    HDR and wide gamuts are mapped to sRGB.
    """
    size = upright_size(frame, pixel_aspect)
    target = self.resolution or size
    scale = max(t / s for t, s in zip(target, size, strict=True))
    cover = [
      max(t, round(s * scale)) for t, s in zip(target, size, strict=True)
    ]
    matrix = _display_matrix(frame)
    height, width = cover[::-1] if _swaps_axes(matrix) else cover
    stored = _to_rgb(
      self.reformatter, frame, (height, width), SCALING, self.background
    )
    image = _upright(stored, matrix)
    top, left = (
      round((c - t) * at)
      for c, t, at in zip(cover, target, self.crop, strict=True)
    )
    return image[top : top + target[0], left : left + target[1]]


def blend(before: RGBImage, after: RGBImage, weight: float) -> RGBImage:
  """The weighted mean of two images; `weight` in [0, 1] is that of `after`."""
  mean = before + np.float32(weight) * (after.astype(np.float32) - before)
  return np.rint(mean).astype(np.uint8)


def _to_rgb(
  reformatter: VideoReformatter,
  frame: av.VideoFrame,
  size: tuple[int, int],
  interpolation: int,
  background: int = 255,
) -> RGBImage:
  """A frame's pixels, not rotated, of `size`: (height, width)."""
  if _may_be_transparent(frame):
    # At full size, lest resizing spread the colours of transparent pixels.
    frame = av.VideoFrame.from_ndarray(_blended(frame, background), "rgb24")
  deep = needs_mapping(frame)
  resized = reformatter.reformat(
    frame,
    width=size[1],
    height=size[0],
    format="rgb48le" if deep else "rgb24",
    src_colorspace=_colorspace(frame),
    interpolation=interpolation,
    threads=1,
  )
  pixels = resized.to_ndarray()
  return to_srgb(pixels, frame) if deep else pixels


def _may_be_transparent(frame: av.VideoFrame) -> bool:
  form = frame.format
  return form.has_palette or any(part.is_alpha for part in form.components)


def _blended(frame: av.VideoFrame, background: int) -> RGBImage:
  """A frame with alpha over a grey level."""
  deep = needs_mapping(frame)
  whole: np.ndarray = frame.reformat(
    format="rgba64le" if deep else "rgba",
    src_colorspace=_colorspace(frame),
    interpolation=SCALING,
    threads=1,
  ).to_ndarray()
  alpha = whole[..., 3:] / np.float32(65535 if deep else 255)
  pixels = to_srgb(whole[..., :3], frame) if deep else whole[..., :3]
  behind = np.float32(background)
  return np.rint(behind + alpha * (pixels - behind)).astype(np.uint8)


def _colorspace(frame: av.VideoFrame) -> Colorspace | None:
  """For untagged frames; None leaves it to the tag, else BT.601."""
  if frame.colorspace != _UNSPECIFIED or frame.format.is_rgb:
    return None
  if is_hdr(frame):
    return Colorspace.BT2020
  hd = frame.width >= _HD_WIDTH or frame.height > _SD_MAX_HEIGHT
  return Colorspace.ITU709 if hd else None


def upright_size(
  frame: av.VideoFrame, pixel_aspect: Fraction
) -> tuple[int, int]:
  """(height, width) as displayed: upright, with square pixels."""
  shown = frame.height, max(1, round(frame.width * float(pixel_aspect)))
  return shown[::-1] if _swaps_axes(_display_matrix(frame)) else shown


def _upright(image: RGBImage, matrix: np.ndarray | None) -> RGBImage:
  """Rotates and mirrors stored pixels by the display matrix."""
  if matrix is None:
    return image
  if _swaps_axes(matrix):
    image, across, down = image.swapaxes(0, 1), matrix[1, 0], matrix[0, 1]
  else:
    across, down = matrix[0, 0], matrix[1, 1]
  return image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
  """The (2, 2) part of the display matrix, if any.

  Stored (x, y) is shown at (x, y) @ matrix; x to the right, y downward.
  """
  side_data: Mapping[str, Any] = frame.side_data
  if "DISPLAYMATRIX" not in side_data:
    return None
  data = bytes(side_data["DISPLAYMATRIX"])
  return np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2]


def _swaps_axes(matrix: np.ndarray | None) -> bool:
  """Whether it exchanges rows and columns: a rotation by 90 degrees."""
  return matrix is not None and abs(matrix[0, 1]) > abs(matrix[0, 0])


class Thumbnails:
  """Collects the frames of a video at a few pixels each, for statistics.

  Attributes:
    times_s: presentation time of each frame.
  """

  def __init__(self, side: int):
    self.times_s: list[float] = []
    self._side = side
    self._images: list[np.ndarray] = []
    self._reformatter = VideoReformatter()

  def __call__(self, time_s: float, frame: av.VideoFrame) -> None:
    """Adds a frame; an `on_frame` of `probe`."""
    size = self._side, self._side
    small = _to_rgb(self._reformatter, frame, size, Interpolation.AREA)
    self.times_s.append(time_s)
    self._images.append(small)

  @property
  def images(self) -> UInt8[np.ndarray, "t h w 3"]:
    """All frames, in the order they were added."""
    return np.stack(self._images)
