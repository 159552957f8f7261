"""Apache Beam transforms of the pipeline in `preprocess_beam`."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
import tempfile
from typing import Any, ClassVar, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from lumiere_jax.data.dataset_report import Report, Row, summarise
from lumiere_jax.data.manifest import CLIPS, NAME, Manifest, StoredClip
from lumiere_jax.data.preprocess import (
  REPORT,
  Options,
  Segment,
  encode_segment,
  hash_file,
  map_ahead,
  split_video,
)
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.text_features import (
  caption_key,
  encode_entries,
  text_shard_prefix,
)
from lumiere_jax.data.video_index import Video, index_file
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.storage import array_record
from lumiere_jax.storage.array_record import RecordWriter
from lumiere_jax.storage.remote import (
  Folder,
  is_url,
  local_copy,
  names_in,
  place_bytes,
)

OpenEncoder = Callable[[], TextEncoder]

_Video = tuple[int, str, list[str] | None]
"""Index in the order of names, name, and captions."""

FILE_LIST = ".videos.jsonl"
"""The list of input files, in the output folder, while a pipeline runs."""

# Approximate bytes per pixel of H.264 (default quality) and of a png. They
# only affect the sizes of shards.
_VIDEO_BYTES, _PICTURE_BYTES = 0.1, 1.5

_CHUNK = 16  # Files probed, and captions encoded, at a time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleOptions(Options):
  """`Options` whose `out` may be a URL."""

  remote_out: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "out", self.out.rstrip("/"))


class ProbeResult(NamedTuple):
  """The result of probing a file.

  Attributes:
    index: of the file, in the order of names.
    rows: of the report.
    late: rows on files that became unreadable after they were probed.
    segments: the segments to store.
  """

  index: int
  rows: tuple[Row, ...]
  late: tuple[Row, ...]
  segments: tuple[Segment, ...]


class EncoderFacts(NamedTuple):
  """Properties of a text encoder.

  Attributes:
    identity: see `TextEncoder.identity`.
    entry_bytes: size of the features of a caption.
  """

  identity: str
  entry_bytes: int


def with_one_key(element: Any) -> tuple[None, Any]:
  """Keys all elements alike, so that one worker gets them."""
  return None, element


def read_file_list(out: str) -> Iterator[list[_Video]]:
  """The input files, in chunks for the threads of one worker."""
  with local_copy(out) as folder:
    lines = folder.local(FILE_LIST).read_text().splitlines()
  for first in range(0, len(lines), _CHUNK):
    yield [json.loads(line) for line in lines[first : first + _CHUNK]]


def existing_shards(name: str, out: str) -> list[str]:
  """The finished shards of a prefix."""
  return array_record.shards(names_in(out), name)


def record_keys(shard: str, out: str) -> Iterator[tuple[str, None]]:
  """(key, None) of the records in a shard."""
  with local_copy(out) as folder:
    keys = array_record.read_keys(folder.local(shard))
  for key in keys:
    yield key, None


def keyed_segments(
  found: ProbeResult,
) -> Iterator[tuple[str, tuple[tuple, Segment]]]:
  """(key, (rank in the order of all segments, segment))."""
  for k, segment in enumerate(found.segments):
    yield segment.stored.key, ((found.index, k), segment)


def keyed_captions(
  found: ProbeResult,
) -> Iterator[tuple[str, tuple[tuple, str]]]:
  """As `keyed_segments`, for captions; those of one key are the same."""
  for caption in {
    c for segment in found.segments for c in segment.stored.captions
  }:
    yield caption_key(caption), ((), caption)


def expected_bytes(segment: Segment) -> float:
  """Approximate size of a stored segment."""
  clip = segment.stored
  each = _VIDEO_BYTES if clip.seconds else _PICTURE_BYTES
  return each * clip.frames * clip.height * clip.width


def clip_shard(segment: Segment, total: float) -> tuple[int, Segment]:
  """(shard number, segment). The segments of a file share a shard, so that a
  remote file is copied to one worker.
  """
  file = segment.stored.file.encode(errors="surrogatepass")
  return _shard_number(hashlib.sha256(file).hexdigest(), total), segment


def caption_shard(
  caption: str, count: int, facts: EncoderFacts
) -> tuple[int, str]:
  """(shard number, caption)."""
  return _shard_number(caption_key(caption), count * facts.entry_bytes), caption


def _shard_number(key: str, total_bytes: float) -> int:
  """Shard number of a key (hex), uniform over keys."""
  return int(key[:15], 16) % (1 + int(total_bytes / array_record.SHARD_BYTES))


def _count(name: str, by: int = 1) -> None:
  Metrics.counter("prepare", name).inc(int(by))


class Examine(beam.DoFn):
  """Probes, filters and hashes videos."""

  def __init__(self, options: ScaleOptions):
    self._options = options

  def setup(self):
    options = self._options
    where, self._temporary = str(Folder(options.input)), None
    if is_url(where) and not options.cache:  # Temporary copies never match.
      self._temporary = tempfile.TemporaryDirectory()
    cache = options.cache or (self._temporary.name if self._temporary else "")
    self._probes = ProbeCache(where, options.filters, cache)

  def teardown(self):
    if self._temporary:
      self._temporary.cleanup()

  def process(self, videos: list[_Video]) -> Iterator[ProbeResult]:
    threads = self._options.max_threads
    with contextlib.closing(map_ahead(self._probe, videos, threads)) as results:
      for found in results:
        used = sum(row.used for row in found.rows) if found.segments else 0
        _count("used", used)
        _count("dropped", len(found.rows) - used)
        yield found

  def _probe(self, video: _Video) -> ProbeResult:
    index, file, captions = video
    options, late, segments = self._options, (), ()
    with local_copy(options.input, options.cache) as folder:
      findings = index_file(
        *(folder, file, captions, [options.spec], options.filters), self._probes
      )
      used = [video for _, video in findings if video is not None]
      try:
        segments = tuple(self._segments(folder, used))
      except VideoError as error:
        row = Row(file=file, used=False, reason=error.reason)
        late = (row,) * len(used)
    rows = tuple(row for row, _ in findings)
    return ProbeResult(index=index, rows=rows, late=late, segments=segments)

  def _segments(self, folder: Folder, videos: list[Video]) -> Iterator[Segment]:
    """The segments of one file, which is hashed first."""
    if not videos:
      return
    file = videos[0].file
    path = folder.local(file)
    digest = hash_file(path, file)
    for video in videos:
      yield from split_video(video, path, digest, self._options)


class KeepMissing(beam.DoFn):
  """The last element of each key that is not stored yet."""

  def __init__(self, what: str):
    self._what = what

  def process(self, element) -> Iterator[Any]:
    _, groups = element
    new, there = list(groups["new"]), any(True for _ in groups["there"])
    if not new:
      _count(f"{self._what}_unused")
    elif there:
      _count(f"{self._what}_skipped")
    else:
      yield max(new, key=lambda ranked: ranked[0])[1]


class EncodeClips(beam.DoFn):
  """Encodes and writes the clips of a shard, file by file."""

  def __init__(self, options: ScaleOptions):
    self._options = options

  def process(self, element) -> Iterator[dict[str, str]]:
    _, segments = element
    options, broken = self._options, {}
    files = collections.defaultdict(list)
    for segment in sorted(segments, key=lambda segment: segment.stored.key):
      files[segment.stored.file].append(segment)
    writer = RecordWriter(options.out, CLIPS, by_keys=True)
    work = lambda file: self._encode(file, files[file])
    with contextlib.closing(
      map_ahead(work, sorted(files), options.max_threads)
    ) as made:
      for key, data in itertools.chain.from_iterable(made):
        if isinstance(data, VideoError):
          broken[key] = data.reason
        else:
          writer[key] = data
        _count("clips_encoded", not isinstance(data, VideoError))
    writer.flush()  # Only here, so that a failed shard is written again whole.
    yield broken

  def _encode(
    self, file: str, segments: list[Segment]
  ) -> list[tuple[str, Any]]:
    """Encodes the segments of one file, which is copied once if remote."""
    options, made = self._options, []
    with local_copy(options.input, options.cache) as folder:
      for segment in segments:
        try:
          segment = dataclasses.replace(segment, path=folder.local(file))
          made.append((segment.stored.key, encode_segment(segment, options)))
        except VideoError as error:
          made.append((segment.stored.key, error))
    return made


class DescribeEncoder(beam.DoFn):
  """Gives the properties of the encoder."""

  def __init__(self, open_encoder: OpenEncoder, shared: Shared):
    self._open, self._shared = open_encoder, shared

  def process(self, element) -> Iterator[EncoderFacts]:
    del element
    encoder = self._shared.acquire(self._open)
    numbers = encoder.tokenizer.max_length * encoder.config.d_model
    yield EncoderFacts(identity=encoder.identity, entry_bytes=4 * numbers)


class EncodeText(beam.DoFn):
  """Encodes and writes the captions of a shard."""

  def __init__(self, out: str, open_encoder: OpenEncoder, shared: Shared):
    self._out, self._open, self._shared = out, open_encoder, shared

  def setup(self):
    self._encoder = self._shared.acquire(self._open)

  def process(self, element) -> Iterator[int]:
    _, captions = element
    captions, encoder = sorted(captions), self._encoder
    name = text_shard_prefix(encoder.identity)
    writer = RecordWriter(self._out, name, by_keys=True)
    for first in range(0, len(captions), _CHUNK):
      for key, entry in encode_entries(
        encoder, captions[first : first + _CHUNK]
      ):
        writer[key] = entry
        _count("captions_encoded")
    writer.flush()
    yield len(captions)


class Finish(beam.DoFn):
  """Writes prepared.json and the report, after all shards."""

  def __init__(self, options: ScaleOptions):
    self._options = options

  def process(self, element, facts: EncoderFacts) -> None:
    options, (_, groups) = self._options, element
    found = sorted(groups["found"], key=lambda found: found.index)
    broken = dict(itertools.chain(*map(dict.items, groups["made"])))
    clips = [segment.stored for one in found for segment in one.segments]
    probed = [row for one in found for row in one.rows]
    late = [row for one in found for row in one.late]
    late += _broken_rows(clips, broken)
    clips = [clip for clip in clips if clip.key not in broken]
    manifest = Manifest(
      options=options.recorded, text=facts.identity, clips=tuple(clips)
    )
    report = f"{options.out}/{REPORT}"
    with tempfile.TemporaryDirectory() as folder:
      Report(Path(folder, REPORT)).write(probed + late)
      place_bytes(report, Path(folder, REPORT).read_bytes())
      # Raises an error if no video can be used.
      summarise(probed, options.input, options.fps, report)
      if not clips:
        raise UserError(
          f"{options.input}:", "all videos were dropped", f"see {report}"
        )
      manifest.write(folder)
      place_bytes(f"{options.out}/{NAME}", Path(folder, NAME).read_bytes())


def _broken_rows(
  clips: list[StoredClip], broken: dict[str, str]
) -> Iterator[Row]:
  files = {clip.key: clip.file for clip in clips}
  for key, file in files.items():
    if key in broken:
      yield Row(file=file, used=False, reason=broken[key])
