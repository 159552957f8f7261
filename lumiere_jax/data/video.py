"""A video, or a stretch of one, or a picture, that clips are cut from."""

import dataclasses

import numpy as np

from lumiere_jax.data.source import Clip, ClipSpec
from lumiere_jax.io.decode import VideoInfo, read_clip
from lumiere_jax.io.image import read_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """What clips of one shape are cut from.

  Attributes:
    file: its name relative to its folder, or its URL.
    captions: what it shows, said in one way or several.
    info: of the stretch alone; a picture lasts 0 seconds.
    spec: the shape of its clips.
    start_s: where the stretch begins in the file.
  """

  file: str
  captions: tuple[str, ...]
  info: VideoInfo
  spec: ClipSpec
  start_s: float = 0.0

  @property
  def end_s(self) -> float:
    """Where the stretch ends in the file."""
    return self.start_s + self.info.duration_s

  @property
  def is_picture(self) -> bool:
    """Whether its file is a still picture."""
    return not self.info.duration_s

  def cut(self, path, rng: np.random.Generator | None = None) -> Clip:
    """Reads a clip.

    Args:
      path: the file, on this machine.
      rng: draws where the clip begins; None: the middle of the stretch.

    Returns:
      (t, h, w, 3) uint8, RGB.

    Raises:
      VideoError: the file vanished or broke since it was probed.
    """
    if self.is_picture:
      return read_image(path, self.spec.resolution)[None]
    spare_s = max(0.0, self.info.duration_s - self.spec.seconds)
    at = 0.5 if rng is None else rng.random()
    return read_clip(
      path,
      start_s=self.start_s + at * spare_s,
      num_frames=self.spec.num_frames,
      fps=self.spec.fps,
      resolution=self.spec.resolution,
      resample=self.spec.resample,
      end_s=self.end_s,
    )
