"""H.264 in mp4, yuv420p, BT.709: the same frames give the same bytes."""

import io
from typing import Any

from lumiere_jax.io.encode import Frames, encode

GROUP = 8
"""Frames from one key frame of `encode_clip` to the next."""
# x264's bytes depend on the number of threads, so that is fixed; and without
# cpu-independent they vary from run to run even with one (seen in 1 of 10).
_H264 = {
  "preset": "medium",
  "threads": "4",
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
  encode(
    target,
    frames,
    fps,
    container="mp4",
    muxer={} if short_groups else {"movflags": "+faststart"},
    codec="libx264",
    options=_H264 | (_SHORT_GROUPS if short_groups else {}) | {"crf": str(crf)},
  )


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
