"""Prepares a folder of videos: splits, resamples and encodes its clips."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import closing
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

from lumiere_jax.data.caption_command import (
  CAPTIONS,
  CaptionCommand,
  caption_clips,
)
from lumiere_jax.data.dataset_report import Report, Row
from lumiere_jax.data.filters import Filters
from lumiere_jax.data.manifest import CLIPS, NAME, Manifest, StoredClip
from lumiere_jax.data.prefetch import map_in_threads
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.text_features import write_text_shards
from lumiere_jax.data.video_index import Video
from lumiere_jax.errors import UserError, VideoError, option
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import require_file
from lumiere_jax.media.video_reader import RESAMPLING, read_frames
from lumiere_jax.media.video_writer import encode_clip
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.atomic import check_writable, locked
from lumiere_jax.storage.remote import Folder, is_url

REPORT = "data_report.jsonl"
_ENCODING = 1  # Part of the keys; raise it when the encoding changes.


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
        "prepare into a local folder and copy it, or use "
        "launch/prepare_beam.py",
      )

  @property
  def spec(self) -> ClipSpec:
    """The minimum length of videos, as the shape of a clip."""
    return ClipSpec(
      num_frames=self.num_frames,
      fps=self.fps,
      resolution=(self.side, self.side),
      resample=self.resample,
    )

  @property
  def filters(self) -> Filters:
    """The other criteria for videos."""
    return Filters(
      scene_cuts=self.scene_cuts,
      min_motion=self.min_motion,
      max_enlarge=math.inf,  # Nothing is enlarged here; training checks it.
      min_fps_ratio=self.min_fps_ratio,
      whole_videos=True,
    )

  @property
  def max_threads(self) -> int:
    return self.threads or os.cpu_count() or 1

  @property
  def recorded(self) -> dict[str, object]:
    """The options that affect the result, for the manifest."""
    other = ("out", "cache", "threads")
    return {k: v for k, v in vars(self).items() if k not in other}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
  """A segment of a video of `size` (height, width), as the clip to store."""

  stored: StoredClip
  size: tuple[int, int]


LocalPath = Callable[[str], Path]
"""Name of a source file -> its path on this machine; or a VideoError."""


def find_segments(
  videos: Sequence[Video], local_path: LocalPath, options: Options
) -> tuple[list[Segment], list[Row]]:
  """The segments of the shots of one file.

  If it is missing, empty or unreadable by now: a row of the report for each.
  """
  file = videos[0].file
  try:
    path = local_path(file)
    require_file(path)
    with open(path, "rb") as content:
      digest = hashlib.file_digest(content, "sha256").hexdigest()
  except VideoError as error:
    reason = error.reason
  except OSError as error:
    reason = f"damaged: {error.strerror}"
  else:
    parts = [split_video(video, digest, options) for video in videos]
    return list(itertools.chain(*parts)), []
  return [], [Row(file=file, used=False, reason=reason)] * len(videos)


def split_video(
  video: Video, digest: str, options: Options
) -> Iterator[Segment]:
  """Splits a video, of this hash of its file, into segments of equal length.

  They exceed `options.max_seconds` only if they would otherwise be too short.
  """
  info = video.info
  longest = options.max_seconds or math.inf
  most = info.frames_at(options.fps) // options.num_frames
  count = max(1, min(math.ceil(info.duration_s / longest), most))
  height, width = _clip_size(video, options)
  seconds = info.duration_s / count
  frames = dataclasses.replace(info, duration_s=seconds).frames_at(options.fps)
  for k in range(count):
    start_s = video.start_s + k * info.duration_s / count
    key = [_ENCODING, digest, start_s, seconds, height, width]
    if not video.is_picture:
      key += [options.fps, options.crf]
      key += [] if options.resample == "nearest" else [options.resample]
    stored = StoredClip(
      key=hashlib.sha256(json.dumps(key).encode()).hexdigest(),
      file=video.file,
      captions=video.captions,
      start_s=start_s,
      seconds=seconds,
      frames=frames,
      height=height,
      width=width,
    )
    yield Segment(stored=stored, size=(info.height, info.width))


def _clip_size(video: Video, options: Options) -> tuple[int, int]:
  """(height, width) of its clips: downscaled to `options.side`."""
  size = video.info.height, video.info.width
  scale = min(1.0, options.side / min(size))
  height, width = (max(2, round(s * scale)) for s in size)
  if video.is_picture:
    return height, width
  return height - height % 2, width - width % 2  # H.264 needs even sizes.


def encode_segment(
  segment: Segment, local_path: LocalPath, options: Options
) -> bytes | VideoError:
  """The bytes to store: an mp4, or a png of a picture.

  If its file is missing or damaged by now, gives the error.
  """
  clip, size = segment.stored, (segment.stored.height, segment.stored.width)
  try:
    path = local_path(clip.file)
    if not clip.seconds:
      file = io.BytesIO()
      Image.fromarray(read_image(path, size)).save(file, "png")
      return file.getvalue()
    frames = read_frames(
      path,
      start_s=clip.start_s,
      num_frames=clip.frames,
      fps=options.fps,
      resolution=size,
      crop=_crop(segment),
      resample=options.resample,
      end_s=clip.start_s + clip.seconds,
    )
    return encode_clip(frames, options.fps, crf=options.crf)
  except VideoError as error:
    return error


def _crop(segment: Segment) -> tuple[float, float]:
  """Crops the pixel that makes a size odd, after downscaling.

  It does so on the side that leaves the central square in place.
  """
  target = segment.stored.height, segment.stored.width
  scale = max(t / s for t, s in zip(target, segment.size, strict=True))
  middle = lambda whole: round((whole - min(target)) * 0.5)
  down, across = (
    float(middle(round(s * scale)) > middle(t))
    for t, s in zip(target, segment.size, strict=True)
  )
  return down, across


def closing_message(clips: int, new: int, unused: int, options: Options) -> str:
  """The last message of a run; `unused` clips are not in the manifest."""
  line = f"prepared: {clips} clips in {options.out}, {new} of them new"
  if not unused:
    return line
  return (
    f"{line}\nprepared: {unused} clips of earlier runs in its shards are "
    "unused; prepare into a new folder to remove them"
  )


_BEGINNINGS = {
  REPORT: b'{"file": ',
  NAME: b'{\n "version": ',
  CAPTIONS: b'\n{"key": ',
}


def check_out(out: Path) -> None:
  """Raises a UserError if a folder cannot be prepared into.

  That is where it cannot be written, or holds files of other programs under
  the names that are written.
  """
  check_writable(out, folder=True)
  check_ours(out, _BEGINNINGS, "out")


def check_ours(folder: Path, beginnings: dict[str, bytes], flag: str) -> None:
  """Raises a UserError about a flag if a file begins otherwise than ours."""
  for name, ours in beginnings.items():
    if (path := folder / name).exists():
      with path.open("rb") as file:
        head = file.read(len(ours))
      if not ours.startswith(head):
        raise UserError(
          f"{path}:",
          "is there already, and was not written by this program",
          f"choose another {option(flag)}",
        )


def prepare(
  options: Options,
  encoder: TextEncoder | None = None,
  command: CaptionCommand | None = None,
) -> None:
  """Encodes the clips that are missing, then writes `prepared.json`.

  After an interruption, call it again: it continues where it stopped and gives
  the same result. Prints a summary and every dropped video. Stores the text
  features of the captions by the `encoder`, if there is one. The `command`, if
  there is one, captions the clips of files that have no caption.
  """
  out = Path(options.out)
  check_out(out)
  with locked(out):
    source = FilesSource.open(
      options.input,
      [options.spec],
      filters=options.filters,
      report_path=out / REPORT,
      num_threads=options.max_threads,
      prompts=options.prompts,
      cache=options.cache,
      need_captions=command is None,
    )
    report = Report(out / REPORT)
    segments = _segments(source, options, report)
    clips = _encode_missing(segments, source.local_path, options, report)
    if command is not None:
      clips = caption_clips(clips, command, out, source.local_path, report)
    if not clips:
      raise UserError(
        f"{options.input}:", "all videos were dropped", f"see {report.path}"
      )
    captions = [caption for clip in clips for caption in clip.captions]
    if encoder is not None:
      write_text_shards(out, encoder, captions)
    Manifest(
      options=options.recorded,
      text=encoder.identity if encoder else "",
      clips=tuple(clips),
    ).write(out)


def _segments(
  source: FilesSource, options: Options, report: Report
) -> list[Segment]:
  """The segments of all videos; reports the files that cannot be read."""
  files: dict[str, list[Video]] = {}
  for video in source.videos:
    files.setdefault(video.file, []).append(video)
  work = lambda videos: find_segments(videos, source.local_path, options)
  with futures.ThreadPoolExecutor(options.max_threads) as pool:
    bar = pool.map(work, files.values())
    found = list(tqdm(bar, "hashing files", len(files), disable=None))
  for row in itertools.chain(*(rows for _, rows in found)):
    report.add(row)
  return [segment for segments, _ in found for segment in segments]


def _encode_missing(
  segments: list[Segment],
  local_path: LocalPath,
  options: Options,
  report: Report,
) -> list[StoredClip]:
  """Stores the segments that are not stored yet; returns all stored clips."""
  existing = Records(Folder(options.out), CLIPS)
  missing = {s.stored.key: s for s in segments if s.stored.key not in existing}
  work = lambda segment: encode_segment(segment, local_path, options)
  bar = tqdm(
    total=sum(segment.stored.frames for segment in missing.values()),
    desc="preparing",
    unit="frame",
    mininterval=0.5 if sys.stderr.isatty() else 15,
    disable=not missing,
  )
  broken = set()
  encoded = map_in_threads(work, missing.values(), options.max_threads)
  with bar, RecordWriter(options.out, CLIPS) as writer, closing(encoded):
    for (key, segment), data in zip(missing.items(), encoded, strict=True):
      if isinstance(data, VideoError):
        broken.add(key)
        file = segment.stored.file
        report.add(Row(file=file, used=False, reason=data.reason))
      else:
        writer[key] = data
      bar.update(segment.stored.frames)
  clips = [s.stored for s in segments if s.stored.key not in broken]
  unused = len(existing.keys() - {clip.key for clip in clips})
  new = len(missing) - len(broken)
  message = closing_message(len(clips), new, unused, options)
  print(message, file=sys.stderr)
  return clips
