"""Prepares a folder for training: cut, resampled, shrunk, in shards.

Decoding large videos from key frames seconds apart is what makes loaders slow.
Here it is done once: what comes out decodes in milliseconds, from any frame on.

A clip is known by a hash of its file's content, the part of it and how it is
encoded, so that what is there is never made again, and what has changed is.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
from pathlib import Path
import sys

from PIL import Image
from tqdm import tqdm

from lumiere_jax.data.files import FilesSource
from lumiere_jax.data.manifest import CLIPS, Manifest, Stored
from lumiere_jax.data.report import Report, Row
from lumiere_jax.data.shelf import fill_shelf
from lumiere_jax.data.source import ClipSpec
from lumiere_jax.data.text import TextEncoder
from lumiere_jax.data.video import Video
from lumiere_jax.io.atomic import locked
from lumiere_jax.io.decode import read_frames
from lumiere_jax.io.errors import VideoError, require_file
from lumiere_jax.io.folder import Folder
from lumiere_jax.io.h264 import encode_clip
from lumiere_jax.io.image import read_image
from lumiere_jax.io.pixels import Framing
from lumiere_jax.io.records import Records, RecordWriter
from lumiere_jax.io.remote import is_url
from lumiere_jax.typing import UserError

REPORT = "data_report.jsonl"
_ENCODING = 1  # Part of the keys: raise it where the same options encode anew.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How clips are made; see `lumiere_jax.prepare` for what each is.

  Raises:
    UserError: one is missing or out of range.
  """

  input: str
  out: str
  fps: float = 16.0
  side: int = 128
  num_frames: int = 1
  max_seconds: float = 60.0
  scene_cuts: float = 0.0
  min_motion: float = 0.0
  crf: int = 17
  prompts: str = ""
  cache: str = ""
  threads: int = 0

  def __post_init__(self):
    for name in ("input", "out"):
      if not getattr(self, name):
        raise UserError(f"--{name} is missing; give a folder")
    if is_url(self.out):
      raise UserError(
        f"--out={self.out} is remote; prepare into a folder of this machine, "
        "and copy it there"
      )
    least = {"side": 2, "num_frames": 1, "scene_cuts": 0, "min_motion": 0}
    for name, low in (least | {"max_seconds": 0, "threads": 0}).items():
      if getattr(self, name) < low:
        raise UserError(
          f"--{name}={getattr(self, name)} is too small; give {low} or more"
        )
    if not self.fps > 0:
      raise UserError(f"--fps={self.fps} must be above 0")
    if not 1 <= self.crf <= 51:
      raise UserError(f"--crf={self.crf}: give 1 (best) to 51 (smallest)")


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


def prepare(options: Options, encoder: TextEncoder | None = None) -> None:
  """Prepares what is missing, then writes `prepared.json`.

  Killed anywhere and called again, it goes on where it was, and ends with what
  it would have ended with. Prints what becomes of each video.

  Args:
    options: what to make of what.
    encoder: whose features of the captions are stored too; None: no features.

  Raises:
    UserError: nothing can be used, or the place cannot be written.
  """
  out = Path(options.out)
  with locked(out):
    source = _open(options)
    report = Report(out / REPORT)
    parts = _parts(source, options, report)
    clips = _encode(parts, options, report)
    if not clips:
      raise UserError(f"{options.input}: all videos broke; see {report.path}")
    captions = [caption for clip in clips for caption in clip.captions]
    if encoder is not None:
      fill_shelf(out, encoder, captions)
    Manifest(
      options=_lasting(options),
      text=encoder.identity if encoder else "",
      clips=tuple(clips),
    ).write(out)


def _open(options: Options) -> FilesSource:
  spec = ClipSpec(
    num_frames=options.num_frames,
    fps=options.fps,
    resolution=(options.side, options.side),
  )
  return FilesSource.open(
    options.input,
    [spec],
    report_path=Path(options.out, REPORT),
    num_threads=_threads(options),
    scene_cuts=options.scene_cuts,
    min_motion=options.min_motion,
    max_enlarge=math.inf,  # for training to judge; nothing is enlarged here
    prompts=options.prompts,
    cache=options.cache,
  )


def _threads(options: Options) -> int:
  return options.threads or os.cpu_count() or 1


def _lasting(options: Options) -> dict[str, object]:
  """The options that what is made depends on."""
  passing = ("out", "cache", "threads")
  return {k: v for k, v in vars(options).items() if k not in passing}


def _parts(source: FilesSource, options: Options, report: Report) -> list[Part]:
  """What is to be stored of each video, with the key it will have."""
  files = {video.file: i for i, video in enumerate(source.videos)}
  with futures.ThreadPoolExecutor(_threads(options)) as pool:
    found = tqdm(
      pool.map(lambda i: _identify(source, i), files.values()),
      "reading files",
      len(files),
      disable=None,
    )
    known = dict(zip(files, found, strict=True))
  parts = []
  for video in source.videos:
    match known[video.file]:
      case VideoError(reason=reason):
        report.add(Row(file=video.file, used=False, reason=reason))
      case path, digest:
        size = video.info.height, video.info.width
        parts += [
          Part(stored=stored, path=path, size=size)
          for stored in _cut(video, digest, options)
        ]
  return parts


def _identify(source: FilesSource, index: int) -> tuple[Path, str] | VideoError:
  """A file and the hash of what is in it."""
  try:
    path = source.local_path(index)
    require_file(path)
    with open(path, "rb") as file:
      return path, hashlib.file_digest(file, "sha256").hexdigest()
  except VideoError as error:
    return error
  except OSError as error:
    return VideoError(source.videos[index].file, f"damaged: {error.strerror}")


def _cut(video: Video, digest: str, options: Options) -> Iterator[Stored]:
  """Parts of equal length, longer than wanted only if too short otherwise."""
  seconds, info = video.info.duration_s, video.info
  longest = options.max_seconds or math.inf
  most = info.frames_at(options.fps) // options.num_frames
  count = max(1, min(math.ceil(seconds / longest), most))
  height, width = _size(video, options)
  for k in range(count):
    start_s, length_s = video.start_s + k * seconds / count, seconds / count
    how = [_ENCODING, digest, start_s, length_s, height, width]
    how += [] if video.is_picture else [options.fps, options.crf]
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


def _encode(
  parts: list[Part], options: Options, report: Report
) -> list[Stored]:
  """Stores the parts that are not; returns those that are then."""
  there = Records(Folder(options.out), CLIPS)
  missing = {p.stored.key: p for p in parts if p.stored.key not in there}
  encode = lambda part: _try_encode(part, options)
  bar = tqdm(
    total=sum(part.stored.frames for part in missing.values()),
    desc="preparing",
    unit="frame",
    mininterval=0.5 if sys.stderr.isatty() else 15,
    disable=not missing,
  )
  broken = set()
  with (
    bar,
    RecordWriter(options.out, CLIPS) as writer,
    futures.ThreadPoolExecutor(_threads(options)) as pool,
    contextlib.closing(
      _map(pool, encode, missing.values(), 2 * _threads(options))
    ) as made,
  ):
    for part, data in zip(missing.values(), made, strict=True):
      if isinstance(data, VideoError):
        broken.add(part.stored.key)
        file = part.stored.file
        report.add(Row(file=file, used=False, reason=data.reason))
      else:
        writer[part.stored.key] = data
      bar.update(part.stored.frames)
  clips = [part.stored for part in parts if part.stored.key not in broken]
  _tell(clips, len(missing) - len(broken), there, options)
  return clips


def _tell(clips: list[Stored], new: int, there: Records, options: Options):
  unused = len(there.keys() - {clip.key for clip in clips})
  lines = [f"prepared: {len(clips)} clips in {options.out}, {new} of them new"]
  if unused:
    lines.append(
      f"prepared: {unused} clips of earlier runs are in its shards unused; "
      "prepare into a new folder to be rid of them"
    )
  print(*lines, sep="\n", file=sys.stderr)


def _map(
  pool: futures.Executor, function: Callable, items: Iterable, ahead: int
) -> Generator:
  """As `pool.map`, with no more than `ahead` results waiting."""
  items = iter(items)
  first = itertools.islice(items, ahead)
  waiting = collections.deque(pool.submit(function, item) for item in first)
  try:
    while waiting:
      yield waiting.popleft().result()
      waiting += [pool.submit(function, i) for i in itertools.islice(items, 1)]
  finally:  # closed before its end
    for future in waiting:
      future.cancel()


def _try_encode(part: Part, options: Options) -> bytes | VideoError:
  try:
    encode = _encode_video if part.stored.seconds else _encode_picture
    return encode(part, options)
  except VideoError as error:
    return error


def _encode_video(part: Part, options: Options) -> bytes:
  clip = part.stored
  frames = read_frames(
    part.path,
    start_s=clip.start_s,
    num_frames=clip.frames,
    fps=options.fps,
    framing=_framing(part),
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


def _encode_picture(part: Part, options: Options) -> bytes:
  del options  # png loses nothing
  clip, file = part.stored, io.BytesIO()
  pixels = read_image(part.path, (clip.height, clip.width))
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()
