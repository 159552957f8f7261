"""VP9 in webm, yuv420p, BT.709: the same frames give the same bytes."""

from typing import Any

from lumiere_jax.io.encode import Frames, encode

# Without row-mt the bytes do not depend on the number of threads; with it they
# do (seen from one thread to two).
_VP9 = {
  "deadline": "good",
  "cpu-used": "2",
  "row-mt": "0",
  "threads": "4",
  "b": "0",  # no bit rate to keep to: constant quality
}
_WORST, _WORST_OF_H264 = 63, 51


def write_vp9(target: Any, frames: Frames, fps: float, crf: int) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second; webm rounds times to milliseconds.
    crf: quality on the scale of H.264, 1 (best) to 51: the same number looks
      about the same.
  """
  options = _VP9 | {"crf": str(round(crf * _WORST / _WORST_OF_H264))}
  encode(
    target,
    frames,
    fps,
    container="webm",
    muxer={},
    codec="libvpx-vp9",
    options=options,
  )
