"""H.264 in mp4, yuv420p, BT.709: the same frames give the same bytes."""

from collections.abc import Iterable
from fractions import Fraction
import io
import itertools
from typing import Any

import av
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8
import numpy as np

from lumiere_jax.io.pixels import SCALING

Frames = Iterable[UInt8[np.ndarray, "h w 3"]]
GROUP = 8
"""Frames from one key frame of `encode_clip` to the next."""
_BT709 = 1  # the number of BT.709 in H.264's three colour tables
_CONTAINER = {"fflags": "+bitexact"}
# x264's bytes depend on the number of threads, so that is fixed; and without
# cpu-independent they vary from run to run even with one (seen in 1 of 10).
_H264 = {
  "preset": "medium",
  "threads": "4",
  "flags": "+bitexact",
  "x264-params": "cpu-independent=1",
}
# Any frame is reached from the key frame before it, with nothing after it: no
# reordering, no group that leans on the one before. Many clips are encoded at
# a time, so one thread each.
_SHORT_GROUPS = {
  "threads": "1",
  "x264-params": f"cpu-independent=1:keyint={GROUP}:min-keyint={GROUP}:"
  "scenecut=0:open-gop=0:bframes=0",
}


def write_h264(
  target: Any,
  frames: Frames,
  fps: float,
  crf: int,
  *,
  short_groups: bool = False,
) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second.
    crf: quality, 1 (best) to 51.
    short_groups: a key frame every `GROUP` frames, for quick random access;
      otherwise smaller, with the index at the front for players.
  """
  frames = iter(frames)
  first = next(frames)
  rate = Fraction(fps).limit_denominator(1001)  # 25, 25/2, 30000/1001
  options = _H264 | (_SHORT_GROUPS if short_groups else {}) | {"crf": str(crf)}
  muxer = {} if short_groups else {"movflags": "+faststart"}
  reformatter = VideoReformatter()
  with av.open(target, "w", format="mp4", options=_CONTAINER | muxer) as out:
    stream = out.add_stream("libx264", rate, options)
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


def encode_clip(frames: Frames, fps: float, *, crf: int = 17) -> bytes:
  """An mp4 file in memory, any part of which is decoded quickly.

  Args:
    frames: RGB, one or more, of one even size.
    fps: frames per second.
    crf: quality, 1 (best) to 51; 17 looks like the original.
  """
  file = io.BytesIO()
  write_h264(file, frames, fps, crf, short_groups=True)
  return file.getvalue()


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
