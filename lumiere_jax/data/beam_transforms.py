"""The steps of the pipeline in `at_scale`; needs apache-beam."""

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
from lumiere_jax.data.manifest import CLIPS, NAME, Manifest, Stored
from lumiere_jax.data.preprocess import (
  REPORT,
  Options,
  Part,
  cut,
  encode,
  identify,
  map_ahead,
)
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.text_features import caption_key, make_entries, shelf_name
from lumiere_jax.data.video_index import Video, examine
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
"""Its index, in the order of names, its name and its captions."""


VIDEOS = ".videos.jsonl"
"""What there is to read, in the folder written to, while a pipeline runs."""


# Of H.264 at the default quality, roughly; of a png. Only sizes of shards
# depend on them.
_VIDEO_BYTES, _PICTURE_BYTES = 0.1, 1.5
"""Per pixel."""


_CHUNK = 16  # Files looked at, and captions encoded, at a time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleOptions(Options):
  """As `Options`; `out` may be a URL."""

  remote_out: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "out", self.out.rstrip("/"))


class Found(NamedTuple):
  """What was found in a video.

  Attributes:
    index: of the video, in the order of their names.
    rows: of the report.
    late: rows on files that vanished after they were probed.
    parts: that are to be stored.
  """

  index: int
  rows: tuple[Row, ...]
  late: tuple[Row, ...]
  parts: tuple[Part, ...]


class EncoderFacts(NamedTuple):
  """What the pipeline needs to know of a text encoder.

  Attributes:
    identity: see `TextEncoder.identity`.
    entry_bytes: that the features of a caption take.
  """

  identity: str
  entry_bytes: int


def to_one(element: Any) -> tuple[None, Any]:
  """Under one key, for one worker."""
  return None, element


def listed_videos(out: str) -> Iterator[list[_Video]]:
  """The videos, some at a time: what one worker looks at by its threads."""
  with local_copy(out) as folder:
    lines = folder.local(VIDEOS).read_text().splitlines()
  for first in range(0, len(lines), _CHUNK):
    yield [json.loads(line) for line in lines[first : first + _CHUNK]]


def shards_there(name: str, out: str) -> list[str]:
  """The shards of one name that are finished."""
  return array_record.shards(names_in(out), name)


def keys_in(shard: str, out: str) -> Iterator[tuple[str, None]]:
  """The keys of the records in a shard."""
  with local_copy(out) as folder:
    keys = array_record.read_keys(folder.local(shard))
  for key in keys:
    yield key, None


def keyed_parts(found: Found) -> Iterator[tuple[str, tuple[tuple, Part]]]:
  """Under the key of each part where it comes in the whole, and the part."""
  for k, part in enumerate(found.parts):
    yield part.stored.key, ((found.index, k), part)


def keyed_captions(found: Found) -> Iterator[tuple[str, tuple[tuple, str]]]:
  """As `keyed_parts`; all captions of one key are the same."""
  for caption in {c for part in found.parts for c in part.stored.captions}:
    yield caption_key(caption), ((), caption)


def expected_bytes(part: Part) -> float:
  """How large a part will be, roughly."""
  clip = part.stored
  each = _VIDEO_BYTES if clip.seconds else _PICTURE_BYTES
  return each * clip.frames * clip.height * clip.width


def planned_clip(part: Part, total: float) -> tuple[int, Part]:
  """Under the number of its shard: one for all parts of a file.

  So that a remote file is copied to one worker.
  """
  file = part.stored.file.encode(errors="surrogatepass")
  return _place(hashlib.sha256(file).hexdigest(), total), part


def planned_caption(
  caption: str, count: int, facts: EncoderFacts
) -> tuple[int, str]:
  """Under the number of its shard."""
  return _place(caption_key(caption), count * facts.entry_bytes), caption


def _place(key: str, total_bytes: float) -> int:
  """The number of a shard, even over keys (in hex)."""
  return int(key[:15], 16) % (1 + int(total_bytes / array_record.SHARD_BYTES))


def _count(name: str, by: int = 1) -> None:
  Metrics.counter("prepare", name).inc(int(by))


class Examine(beam.DoFn):
  """Probes, judges and hashes videos."""

  def __init__(self, options: ScaleOptions):
    self._options = options

  def setup(self):
    options = self._options
    where, self._forgotten = str(Folder(options.input)), None
    if is_url(where) and not options.cache:  # a copy is never known again
      self._forgotten = tempfile.TemporaryDirectory()
    cache = options.cache or (self._forgotten.name if self._forgotten else "")
    self._remembered = ProbeCache(where, options.filters, cache)

  def teardown(self):
    if self._forgotten:
      self._forgotten.cleanup()

  def process(self, videos: list[_Video]) -> Iterator[Found]:
    threads = self._options.most_threads
    with contextlib.closing(map_ahead(self._look, videos, threads)) as looks:
      for found in looks:
        used = sum(row.used for row in found.rows) if found.parts else 0
        _count("used", used)
        _count("dropped", len(found.rows) - used)
        yield found

  def _look(self, video: _Video) -> Found:
    index, file, captions = video
    options, late, parts = self._options, (), ()
    with local_copy(options.input, options.cache) as folder:
      findings = examine(
        *(folder, file, captions, [options.spec], options.filters),
        self._remembered,
      )
      used = [video for _, video in findings if video is not None]
      try:
        parts = tuple(self._parts(folder, used))
      except VideoError as error:
        row = Row(file=file, used=False, reason=error.reason)
        late = (row,) * len(used)
    rows = tuple(row for row, _ in findings)
    return Found(index=index, rows=rows, late=late, parts=parts)

  def _parts(self, folder: Folder, videos: list[Video]) -> Iterator[Part]:
    """Of stretches of one file; all are hashed before the first is given."""
    if not videos:
      return
    file = videos[0].file
    path = folder.local(file)
    digest = identify(path, file)
    for video in videos:
      size = video.info.height, video.info.width
      for stored in cut(video, digest, self._options):
        yield Part(stored=stored, path=path, size=size)


class KeepMissing(beam.DoFn):
  """Of what is wanted under a key the last, unless it is stored."""

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
    _, parts = element
    options, broken = self._options, {}
    files = collections.defaultdict(list)
    for part in sorted(parts, key=lambda part: part.stored.key):
      files[part.stored.file].append(part)
    writer = RecordWriter(options.out, CLIPS, by_keys=True)
    work = lambda file: self._encode(file, files[file])
    with contextlib.closing(
      map_ahead(work, sorted(files), options.most_threads)
    ) as made:
      for key, data in itertools.chain.from_iterable(made):
        if isinstance(data, VideoError):
          broken[key] = data.reason
        else:
          writer[key] = data
        _count("clips_encoded", not isinstance(data, VideoError))
    writer.flush()  # only here: a shard that failed is made again, whole
    yield broken

  def _encode(self, file: str, parts: list[Part]) -> list[tuple[str, Any]]:
    """Parts of one file, which is copied here once if it is remote."""
    options, made = self._options, []
    with local_copy(options.input, options.cache) as folder:
      for part in parts:
        try:
          part = dataclasses.replace(part, path=folder.local(file))
          made.append((part.stored.key, encode(part, options)))
        except VideoError as error:
          made.append((part.stored.key, error))
    return made


class AskEncoder(beam.DoFn):
  """Says who the encoder is."""

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
    name = shelf_name(encoder.identity)
    writer = RecordWriter(self._out, name, by_keys=True)
    for first in range(0, len(captions), _CHUNK):
      for key, entry in make_entries(encoder, captions[first : first + _CHUNK]):
        writer[key] = entry
        _count("captions_encoded")
    writer.flush()
    yield len(captions)


class Finish(beam.DoFn):
  """Writes prepared.json and the report, once all shards are there."""

  def __init__(self, options: ScaleOptions):
    self._options = options

  def process(self, element, facts: EncoderFacts) -> None:
    options, (_, groups) = self._options, element
    found = sorted(groups["found"], key=lambda found: found.index)
    broken = dict(itertools.chain(*map(dict.items, groups["made"])))
    clips = [part.stored for one in found for part in one.parts]
    probed = [row for one in found for row in one.rows]
    late = [row for one in found for row in one.late]
    late += _broken_rows(clips, broken)
    clips = [clip for clip in clips if clip.key not in broken]
    manifest = Manifest(
      options=options.lasting, text=facts.identity, clips=tuple(clips)
    )
    report = f"{options.out}/{REPORT}"
    with tempfile.TemporaryDirectory() as folder:
      Report(Path(folder, REPORT)).write(probed + late)
      place_bytes(report, Path(folder, REPORT).read_bytes())
      summarise(probed, options.input, options.fps, report)  # or raises
      if not clips:
        raise UserError(
          f"{options.input}:", "all videos broke", f"see {report}"
        )
      manifest.write(folder)
      place_bytes(f"{options.out}/{NAME}", Path(folder, NAME).read_bytes())


def _broken_rows(clips: list[Stored], broken: dict[str, str]) -> Iterator[Row]:
  files = {clip.key: clip.file for clip in clips}
  for key, file in files.items():
    if key in broken:
      yield Row(file=file, used=False, reason=broken[key])
