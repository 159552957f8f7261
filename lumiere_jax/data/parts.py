"""What becomes of one video: the parts of it that are stored, and how.

Shared by `prepare`, on one machine, and `at_scale`, on many: what they store
is the same.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
from pathlib import Path
from typing import ClassVar

from PIL import Image

from lumiere_jax.data.filters import Filters
from lumiere_jax.data.manifest import Stored
from lumiere_jax.data.source import ClipSpec
from lumiere_jax.data.video import Video
from lumiere_jax.io.decode import RESAMPLING, read_frames
from lumiere_jax.io.errors import VideoError, require_file
from lumiere_jax.io.h264 import encode_clip
from lumiere_jax.io.image import read_image
from lumiere_jax.io.pixels import Framing
from lumiere_jax.io.remote import is_url
from lumiere_jax.typing import UserError, check_choice

REPORT = "data_report.jsonl"
_ENCODING = 1  # Part of the keys: raise it where the same options encode anew.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How clips are made; see `lumiere_jax.prepare` for what each is.

  Raises:
    UserError: one is missing or out of range.
  """

  remote_out: ClassVar[bool] = False
  """Whether `out` may be a URL."""
  input: str
  out: str
  fps: float = 16.0
  side: int = 128
  num_frames: int = 1
  max_seconds: float = 60.0
  scene_cuts: float = 0.0
  min_motion: float = 0.0
  min_fps_ratio: float = Filters.min_fps_ratio
  resample: str = "nearest"
  crf: int = 17
  prompts: str = ""
  cache: str = ""
  threads: int = 0

  def __post_init__(self):
    for name in ("input", "out"):
      if not getattr(self, name):
        raise UserError(f"--{name} is missing; give a folder")
    if is_url(self.out) and not self.remote_out:
      raise UserError(
        f"--out={self.out} is remote; prepare into a folder of this machine, "
        "and copy it there, or use launch/prepare_beam.py"
      )
    least = {"side": 2, "num_frames": 1, "scene_cuts": 0, "min_motion": 0}
    least |= {"min_fps_ratio": 0, "max_seconds": 0, "threads": 0}
    for name, low in least.items():
      if getattr(self, name) < low:
        raise UserError(
          f"--{name}={getattr(self, name)} is too small; give {low} or more"
        )
    if not self.fps > 0:
      raise UserError(f"--fps={self.fps} must be above 0")
    if not 1 <= self.crf <= 51:
      raise UserError(f"--crf={self.crf}: give 1 (best) to 51 (smallest)")
    check_choice("--resample", self.resample, RESAMPLING)

  @property
  def spec(self) -> ClipSpec:
    """The clips that videos must have room for."""
    return ClipSpec(
      num_frames=self.num_frames,
      fps=self.fps,
      resolution=(self.side, self.side),
      resample=self.resample,
    )

  @property
  def filters(self) -> Filters:
    """What else is asked of videos."""
    return Filters(
      scene_cuts=self.scene_cuts,
      min_motion=self.min_motion,
      max_enlarge=math.inf,  # for training to judge; nothing is enlarged here
      min_fps_ratio=self.min_fps_ratio,
      whole_videos=True,
    )

  @property
  def most_threads(self) -> int:
    """How many threads work at a time."""
    return self.threads or os.cpu_count() or 1

  @property
  def lasting(self) -> dict[str, object]:
    """The options that what is made depends on."""
    passing = ("out", "cache", "threads")
    return {k: v for k, v in vars(self).items() if k not in passing}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A part of a file that becomes a clip.

  Attributes:
    stored: what will be said of it.
    path: of the file, on this machine.
    size: (height, width) of the video.
  """

  stored: Stored
  path: Path
  size: tuple[int, int]


def identify(path: Path, file: str) -> str:
  """The hash of what is in a file.

  Args:
    path: of it, on this machine.
    file: what it is called.

  Raises:
    VideoError: it is missing, empty or cannot be read.
  """
  try:
    require_file(path)
    with open(path, "rb") as content:
      return hashlib.file_digest(content, "sha256").hexdigest()
  except OSError as error:
    raise VideoError(file, f"damaged: {error.strerror}") from error


def cut(video: Video, digest: str, options: Options) -> Iterator[Stored]:
  """What is to be stored of a video, with the keys it will have.

  Parts of equal length, longer than wanted only if too short otherwise.

  Args:
    video: that was found fit for use.
    digest: see `identify`.
    options: how clips are made.
  """
  seconds, info = video.info.duration_s, video.info
  longest = options.max_seconds or math.inf
  most = info.frames_at(options.fps) // options.num_frames
  count = max(1, min(math.ceil(seconds / longest), most))
  height, width = _size(video, options)
  for k in range(count):
    start_s, length_s = video.start_s + k * seconds / count, seconds / count
    how = [_ENCODING, digest, start_s, length_s, height, width]
    how += [] if video.is_picture else [options.fps, options.crf]
    if options.resample != "nearest" and not video.is_picture:
      how.append(options.resample)
    part = dataclasses.replace(info, duration_s=length_s)
    yield Stored(
      key=hashlib.sha256(json.dumps(how).encode()).hexdigest(),
      file=video.file,
      captions=video.captions,
      start_s=start_s,
      seconds=length_s,
      frames=part.frames_at(options.fps),
      height=height,
      width=width,
    )


def _size(video: Video, options: Options) -> tuple[int, int]:
  """(height, width), the shorter one as wanted, or as it is if smaller."""
  size = video.info.height, video.info.width
  scale = min(1.0, options.side / min(size))
  height, width = (max(2, round(s * scale)) for s in size)
  if video.is_picture:
    return height, width
  return height - height % 2, width - width % 2  # H.264 needs it even


def encode(part: Part, options: Options) -> bytes:
  """A part as it is stored: an mp4, or a png of a picture.

  Raises:
    VideoError: the file vanished or broke since it was probed.
  """
  if part.stored.seconds:
    return _encode_video(part, options)
  return _encode_picture(part)


def _encode_video(part: Part, options: Options) -> bytes:
  clip = part.stored
  frames = read_frames(
    part.path,
    start_s=clip.start_s,
    num_frames=clip.frames,
    fps=options.fps,
    framing=_framing(part),
    resample=options.resample,
    end_s=clip.start_s + clip.seconds,
  )
  return encode_clip(frames, options.fps, crf=options.crf)


def _framing(part: Part) -> Framing:
  """Shrinks, and cuts the pixel that makes a size odd.

  On that side which leaves the square in the middle where it was.
  """
  target = part.stored.height, part.stored.width
  scale = max(t / s for t, s in zip(target, part.size, strict=True))
  middle = lambda whole: round((whole - min(target)) * 0.5)
  crop = [
    float(middle(round(s * scale)) > middle(t))
    for t, s in zip(target, part.size, strict=True)
  ]
  return Framing(resolution=target, crop=(crop[0], crop[1]))


def _encode_picture(part: Part) -> bytes:
  clip, file = part.stored, io.BytesIO()
  pixels = read_image(part.path, (clip.height, clip.width))
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def map_ahead(
  function: Callable, items: Iterable, num_threads: int
) -> Generator:
  """As `map`, by threads, with no more results waiting than they need.

  Close it where it may not be read to its end.
  """
  items, waiting = iter(items), collections.deque()
  with futures.ThreadPoolExecutor(num_threads) as pool:
    first = itertools.islice(items, 2 * num_threads)
    waiting += [pool.submit(function, item) for item in first]
    try:
      while waiting:
        yield waiting.popleft().result()
        following = itertools.islice(items, 1)
        waiting += [pool.submit(function, item) for item in following]
    finally:  # closed before its end
      for future in waiting:
        future.cancel()


def describe(clips: int, new: int, unused: int, options: Options) -> str:
  """What to say at the end, in a line or two.

  Args:
    clips: how many there are.
    new: of them, made by this run.
    unused: stored by earlier runs, and none of these any more.
    options: how they were made.
  """
  line = f"prepared: {clips} clips in {options.out}, {new} of them new"
  if not unused:
    return line
  return (
    f"{line}\nprepared: {unused} clips of earlier runs are in its shards "
    "unused; prepare into a new folder to be rid of them"
  )
