"""RGB frames to yuv420p, BT.709, by any of FFmpeg's encoders."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
import itertools
from typing import Any

import av
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8
import numpy as np

from lumiere_jax.io.pixels import SCALING

Frames = Iterable[UInt8[np.ndarray, "h w 3"]]
_BT709 = 1  # the number of BT.709 in the three colour tables of H.273


def encode(
  target: Any,
  frames: Frames,
  fps: float,
  *,
  container: str,
  muxer: Mapping[str, str],
  codec: str,
  options: Mapping[str, str],
) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second.
    container: FFmpeg's name of it, such as "mp4".
    muxer: its options.
    codec: FFmpeg's name of an encoder, such as "libx264".
    options: its options.
  """
  frames = iter(frames)
  first = next(frames)
  rate = Fraction(fps).limit_denominator(1001)  # 25, 25/2, 30000/1001
  muxer = {"fflags": "+bitexact"} | dict(muxer)
  reformatter = VideoReformatter()
  with av.open(target, "w", format=container, options=muxer) as out:
    stream = out.add_stream(codec, rate, {"flags": "+bitexact"} | dict(options))
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    for time, pixels in enumerate(itertools.chain([first], frames)):
      frame = _to_yuv(reformatter, pixels)
      frame.pts, frame.time_base = time, 1 / rate
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _to_yuv(
  reformatter: VideoReformatter, pixels: UInt8[np.ndarray, "h w 3"]
) -> av.VideoFrame:
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
  return reformatter.reformat(
    frame,
    format="yuv420p",
    dst_colorspace=Colorspace.ITU709,
    dst_color_range=ColorRange.MPEG,
    interpolation=SCALING,
    threads=1,
  )
