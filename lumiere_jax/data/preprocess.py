"""Prepares a folder for training: cuts, resamples and encodes its clips."""

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
from typing import ClassVar

from PIL import Image
from tqdm import tqdm

from lumiere_jax.data.dataset_report import Report, Row
from lumiere_jax.data.filters import Filters
from lumiere_jax.data.manifest import CLIPS, Manifest, Stored
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.text_features import fill_shelf
from lumiere_jax.data.video_index import Video
from lumiere_jax.errors import UserError, VideoError, option
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import require_file
from lumiere_jax.media.resize import Framing
from lumiere_jax.media.video_reader import RESAMPLING, read_frames
from lumiere_jax.media.video_writer import encode_clip
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.remote import Folder, is_url

REPORT = "data_report.jsonl"


_ENCODING = 1  # Part of the keys: raise it where the same options encode anew.


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How videos are cut into clips and encoded."""

  remote_out: ClassVar[bool] = False
  """Whether `out` may be a URL."""
  input: str = setting(
    help="Folder of captioned videos or pictures, or its URL."
  )
  out: str = setting(help="Folder to prepare.")
  fps: float = setting(16.0, "Frames per second.", above=0)
  side: int = setting(
    128, "Shorter side in pixels; smaller videos keep their size.", least=2
  )
  num_frames: int = setting(
    1,
    f"Drop videos with fewer frames at {option('fps')}; above 1, drop pictures "
    "too.",
    least=1,
  )
  max_seconds: float = setting(
    60.0,
    "Split longer videos into clips of equal length; 0: split none.",
    least=0,
  )
  scene_cuts: float = setting(
    0.0,
    "Change between frames, in grey levels, that counts as a cut; 0: off.",
    least=0,
  )
  min_motion: float = setting(
    0.0, "Drop videos that change less, in grey levels; 0: off.", least=0
  )
  min_fps_ratio: float = setting(
    Filters.min_fps_ratio,
    "Drop videos with a frame rate below this fraction of "
    f"{option('fps')}; 0: drop none, repeat frames.",
    least=0,
  )
  resample: str = setting(
    "nearest",
    f"Resampling of frame rates: {', '.join(RESAMPLING)}. nearest takes the "
    "frame on screen, the other blends the two around it.",
    choices=RESAMPLING,
  )
  crf: int = setting(
    17,
    "Quality of H.264, 1 (best) to 51 (smallest); 17 is visually lossless.",
    least=1,
    most=51,
  )
  prompts: str = setting(
    "", "File of 'label|prompt' lines for folders of classes."
  )
  cache: str = setting(
    "", "Folder for copies of remote files and for cached probes of videos."
  )
  threads: int = setting(0, "Number of threads; 0: as many as cores.", least=0)

  def __post_init__(self):
    for name in ("input", "out"):
      if not getattr(self, name):
        raise UserError(option(name), "is missing", "give a folder")
    check_values(self)
    if is_url(self.out) and not self.remote_out:
      raise UserError(
        option("out", self.out),
        "is remote",
        "prepare into a folder of this machine, and copy it there, or "
        "use launch/prepare_beam.py",
      )

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
      raise UserError(
        f"{options.input}:", "all videos broke", f"see {report.path}"
      )
    captions = [caption for clip in clips for caption in clip.captions]
    if encoder is not None:
      fill_shelf(out, encoder, captions)
    Manifest(
      options=options.lasting,
      text=encoder.identity if encoder else "",
      clips=tuple(clips),
    ).write(out)


def _open(options: Options) -> FilesSource:
  return FilesSource.open(
    options.input,
    [options.spec],
    report_path=Path(options.out, REPORT),
    num_threads=options.most_threads,
    prompts=options.prompts,
    cache=options.cache,
    **dataclasses.asdict(options.filters),
  )


def _parts(source: FilesSource, options: Options, report: Report) -> list[Part]:
  """What is to be stored of each video, with the key it will have."""
  files = {video.file: i for i, video in enumerate(source.videos)}
  with futures.ThreadPoolExecutor(options.most_threads) as pool:
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
          for stored in cut(video, digest, options)
        ]
  return parts


def _identify(source: FilesSource, index: int) -> tuple[Path, str] | VideoError:
  """A file and the hash of what is in it."""
  try:
    path = source.local_path(index)
    return path, identify(path, source.videos[index].file)
  except VideoError as error:
    return error


def _encode(
  parts: list[Part], options: Options, report: Report
) -> list[Stored]:
  """Stores the parts that are not; returns those that are then."""
  there = Records(Folder(options.out), CLIPS)
  missing = {p.stored.key: p for p in parts if p.stored.key not in there}
  work = lambda part: _try_encode(part, options)
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
    contextlib.closing(
      map_ahead(work, missing.values(), options.most_threads)
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
  unused = len(there.keys() - {clip.key for clip in clips})
  new = len(missing) - len(broken)
  print(describe(len(clips), new, unused, options), file=sys.stderr)
  return clips


def _try_encode(part: Part, options: Options) -> bytes | VideoError:
  try:
    return encode(part, options)
  except VideoError as error:
    return error
