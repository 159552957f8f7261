"""Tone-maps HDR and maps wide gamuts to sRGB, whose primaries are BT.709's."""

import functools

import av
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from jaxtyping import Float, Shaped, UInt8
import numpy as np

REFERENCE_WHITE = 203.0
"""cd/m2, the white of SDR; HLG's is a signal of 75%: ITU-R BT.2408."""

_HDR = ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2  # cd/m2, of BT.2100's reference display
_HLG_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)

# Linear RGB of these primaries to that of BT.709; all have its white, D65.
_TO_BT709: dict[int, list[list[float]]] = {
  ColorPrimaries.BT2020: [
    [1.660491, -0.587641, -0.072850],
    [-0.124550, 1.132900, -0.008349],
    [-0.018151, -0.100579, 1.118730],
  ],
  ColorPrimaries.SMPTE432: [
    [1.224940, -0.224940, 0.0],
    [-0.042057, 1.042057, 0.0],
    [-0.019638, -0.078636, 1.098274],
  ],
}
_TO_BT709[ColorPrimaries.SMPTE431] = _TO_BT709[ColorPrimaries.SMPTE432]


def is_hdr(frame: av.VideoFrame) -> bool:
  """Whether its transfer function is PQ or HLG."""
  return frame.color_trc in _HDR


def needs_mapping(frame: av.VideoFrame) -> bool:
  """Whether `to_srgb` changes its pixels."""
  return is_hdr(frame) or frame.color_primaries in _TO_BT709


def to_srgb(
  rgb: Shaped[np.ndarray, "h w 3"], frame: av.VideoFrame
) -> UInt8[np.ndarray, "h w 3"]:
  """Maps 16-bit RGB by the tags of `frame`; what is brighter than white clips.

  PQ and HLG are BT.2020 unless tagged. Other transfer functions are taken for
  sRGB's, as for video of BT.709, whose values are not changed.
  """
  transfer, primaries = frame.color_trc, frame.color_primaries
  light = _linear(transfer if transfer in _HDR else None, _white(frame))[rgb]
  if transfer == ColorTrc.ARIB_STD_B67:
    luma = light @ _HLG_LUMA
    gain = luma ** np.float32(_HLG_GAMMA - 1) * (_HLG_PEAK / REFERENCE_WHITE)
    light *= gain[..., None]
  if is_hdr(frame) and primaries == ColorPrimaries.UNSPECIFIED:
    primaries = ColorPrimaries.BT2020
  if primaries in _TO_BT709:
    light = light @ np.array(_TO_BT709[primaries], np.float32).T
  np.clip(light, 0, 1, out=light)
  return _encoded()[np.rint(light * 65535).astype(np.uint16)]


def _white(frame: av.VideoFrame) -> int:
  """The 16-bit RGB that swscale makes of full signal: its bits, moved up."""
  full = frame.format.is_rgb or frame.color_range == ColorRange.JPEG
  bits = frame.format.components[0].bits if full else 8
  return 2**16 - 2 ** (16 - bits)


@functools.cache
def _linear(transfer: int | None, white: int) -> Float[np.ndarray, "65536"]:
  """Light for each 16-bit signal up to `white`; None is sRGB.

  A light of 1 is SDR's white, of HLG the peak of the scene.
  """
  signal = np.minimum(np.arange(65536) / white, 1)
  if transfer == ColorTrc.SMPTE2084:  # SMPTE ST 2084, equation 4.1
    root = signal ** (1 / 78.84375)
    ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    light = 10000 / REFERENCE_WHITE * ratio ** (1 / 0.1593017578125)
  elif transfer == ColorTrc.ARIB_STD_B67:  # ITU-R BT.2100, table 5
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(
      signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
    )
  else:
    light = np.where(
      signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4
    )
  return light.astype(np.float32)


@functools.cache
def _encoded() -> UInt8[np.ndarray, "65536"]:
  """sRGB's 8-bit value for each 16-bit light."""
  light = np.linspace(0, 1, 65536)
  signal = np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )
  return np.rint(255 * signal).astype(np.uint8)
