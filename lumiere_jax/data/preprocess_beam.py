"""`prepare` as an Apache Beam pipeline, on many machines.

    files -> probe, filter, hash -> segments by key -> not yet stored -> shards
                                 -> captions        -> not yet stored -> shards
    all results -> prepared.json and data_report.jsonl, by one worker

A shard is one unit of work, named by a hash of its keys: shards of a killed
worker are kept, and a shard that is written twice is stored once.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
import re
import sys
import tempfile
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton
from apache_beam.utils.shared import Shared

from lumiere_jax.data.dataset_report import Report, Row, summarise
from lumiere_jax.data.manifest import CLIPS, NAME, Manifest, read_manifest
from lumiere_jax.data.prefetch import map_in_threads
from lumiere_jax.data.preprocess import (
  REPORT,
  Options,
  Segment,
  closing_message,
  encode_segment,
  find_segments,
)
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.sources.files import list_videos
from lumiere_jax.data.text_features import (
  caption_key,
  encode_entries,
  text_shard_prefix,
)
from lumiere_jax.data.video_index import index_file
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.storage.array_record import (
  SHARD_BYTES,
  RecordWriter,
  read_keys,
  shards,
)
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.remote import (
  Folder,
  is_url,
  local_copy,
  names_in,
  place_bytes,
  remove,
  require_writable,
)

OpenEncoder = Callable[[], TextEncoder]
_Video = tuple[int, str, list[str] | None]
"""Index in the order of names, name, and captions."""

# The list of input files, in the output folder, while a pipeline runs.
_FILE_LIST = ".videos.jsonl"

# Approximate bytes per pixel of H.264 (default quality) and of a png. They
# only affect the sizes of shards.
_VIDEO_BYTES, _PICTURE_BYTES = 0.1, 1.5

_CHUNK = 16  # Files probed, and captions encoded, at a time.

# Beam appends this to the first argument of an error in a transform.
_STEP = re.compile(r" ?\[while running [^\]]*\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleOptions(Options):
  """`Options` whose `out` may be a URL."""

  remote_out: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "out", self.out.rstrip("/"))


def prepare_at_scale(
  options: ScaleOptions, open_encoder: OpenEncoder, flags: Iterable[str] = ()
) -> None:
  """Encodes the clips that are missing, then writes `prepared.json`.

  The result is that of `prepare`. After an interruption, call it again: it
  keeps finished shards. Prints a summary and every dropped video.

  Args:
    options: input, output and encoding.
    open_encoder: makes the encoder whose text features of the captions to
      store; it is pickled and called by workers.
    flags: of Beam, such as --runner=DataflowRunner.
  """
  out = options.out.removeprefix("file://")
  # Buckets have no locks.
  with contextlib.nullcontext() if is_url(out) else locked(out):
    require_writable(out)
    with local_copy(options.input, options.cache) as folder:
      videos = list_videos(folder, options.prompts)
    lines = [json.dumps([i, *video]) for i, video in enumerate(videos.items())]
    place_bytes(f"{out}/{_FILE_LIST}", "\n".join(lines).encode())
    print(f"prepare: {len(videos)} files in {options.input}", file=sys.stderr)
    try:
      counts = _run(options, open_encoder, flags)
    finally:
      remove(f"{out}/{_FILE_LIST}")
    _print_summary(options, counts)


def _run(
  options: ScaleOptions, open_encoder: OpenEncoder, flags: Iterable[str]
) -> dict[str, int]:
  """Runs the pipeline; returns its counters."""
  pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
  _build(pipeline, options, open_encoder)
  try:
    result = pipeline.run()
    result.wait_until_finish()
  except Exception as error:  # Runners raise any type.
    if isinstance(error, UserError):
      parts = [error.field, error.problem, error.fix]
    elif found := re.search(r"UserError: ([^\n]*)", str(error)):
      parts = [found[1]]
    else:
      raise
    raise UserError(*(_STEP.sub("", part) for part in parts)) from error
  counters = result.metrics().query()["counters"]
  return {c.key.metric.name: c.result or 0 for c in counters}


def _build(
  pipeline: beam.Pipeline, options: ScaleOptions, open_encoder: OpenEncoder
) -> None:
  """Adds all transforms to a pipeline."""
  out, encoder = options.out, (open_encoder, Shared())  # One in each process.
  facts = (
    pipeline
    | "Encoder" >> beam.Create([None])
    | "DescribeEncoder" >> beam.Map(_describe_encoder, *encoder)
  )
  found = (
    pipeline
    | "Videos" >> beam.Create([out])
    | "ListVideos" >> beam.FlatMap(_read_file_list)
    | "SpreadVideos" >> beam.Reshuffle()
    | "Examine" >> beam.ParDo(_Examine(options))
  )
  clips = _missing(
    found | "Segments" >> beam.FlatMap(_keyed_segments),
    pipeline | "ClipShards" >> beam.Create([CLIPS]),
    "clips",
    out,
  )
  sizes = clips | "ClipBytes" >> beam.Map(_expected_bytes)
  total = sizes | "AllClipBytes" >> beam.CombineGlobally(sum)
  made = (
    clips
    | "PlanClips" >> beam.Map(_clip_shard, AsSingleton(total))
    | "GroupClips" >> beam.GroupByKey()
    | "EncodeClips" >> beam.Map(_encode_clips, options)
  )
  captions = _missing(
    found | "Captions" >> beam.FlatMap(_keyed_captions),
    facts | "TextShards" >> beam.Map(lambda f: text_shard_prefix(f[0])),
    "captions",
    out,
  )
  count = captions | "CountText" >> beam.combiners.Count.Globally()
  encoded = (
    captions
    | "PlanText"
    >> beam.Map(_caption_shard, AsSingleton(count), AsSingleton(facts))
    | "GroupText" >> beam.GroupByKey()
    | "EncodeText" >> beam.Map(_encode_text, out, *encoder)
  )
  # With one key, so that one worker gets all of it.
  whole = {
    name: parts | f"All {name}" >> beam.Map(lambda part: (None, part))
    for name, parts in [("found", found), ("made", made), ("text", encoded)]
  }
  _ = (
    whole
    | "Gather" >> beam.CoGroupByKey()
    | "Finish" >> beam.Map(_finish, AsSingleton(facts), options)
  )


def _missing(new, name, what: str, out: str):
  """The elements of `new` whose keys are not in the finished shards of `name`.

  Of elements (key, (rank, element)) with one key, the last.
  """
  there = (
    name
    | f"List {what}" >> beam.FlatMap(lambda name: shards(names_in(out), name))
    | f"Spread {what}" >> beam.Reshuffle()
    | f"Read {what}" >> beam.FlatMap(_record_keys, out)
  )
  return (
    {"new": new, "there": there}
    | f"Join {what}" >> beam.CoGroupByKey()
    | f"Missing {what}" >> beam.FlatMap(_keep_missing, what)
  )


def _keep_missing(element, what: str) -> Iterator[Any]:
  _, groups = element
  new, there = list(groups["new"]), any(True for _ in groups["there"])
  if not new:
    _count(f"{what}_unused")
  elif there:
    _count(f"{what}_skipped")
  else:
    yield max(new, key=lambda ranked: ranked[0])[1]


def _count(name: str, by: int = 1) -> None:
  Metrics.counter("prepare", name).inc(int(by))


def _read_file_list(out: str) -> Iterator[list[_Video]]:
  """The input files, in chunks for the threads of one worker."""
  with local_copy(out) as folder:
    lines = folder.local(_FILE_LIST).read_text().splitlines()
  for first in range(0, len(lines), _CHUNK):
    yield [json.loads(line) for line in lines[first : first + _CHUNK]]


def _record_keys(shard: str, out: str) -> list[tuple[str, None]]:
  with local_copy(out) as folder:
    return [(key, None) for key in read_keys(folder.local(shard))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ProbeResult:
  """The segments to store of the `index`-th file, and its rows in the report.

  The `late` rows are on files that became unreadable after they were probed.
  """

  index: int
  rows: list[Row]
  late: list[Row]
  segments: list[Segment]


class _Examine(beam.DoFn):
  """Probes, filters and hashes videos."""

  def __init__(self, options: ScaleOptions):
    self._options = options

  def setup(self):
    where, cache = str(Folder(self._options.input)), self._options.cache
    self._temporary = contextlib.ExitStack()
    if is_url(where) and not cache:  # Temporary copies never match.
      folder = tempfile.TemporaryDirectory()
      cache = self._temporary.enter_context(folder)
    self._probes = ProbeCache(where, self._options.filters, cache)

  def teardown(self):
    self._temporary.close()

  def process(self, videos: list[_Video]) -> Iterator[_ProbeResult]:
    threads = self._options.max_threads
    results = map_in_threads(self._probe, videos, threads)
    with contextlib.closing(results):
      for found in results:
        used = sum(row.used for row in found.rows) if found.segments else 0
        _count("used", used)
        _count("dropped", len(found.rows) - used)
        yield found

  def _probe(self, video: _Video) -> _ProbeResult:
    index, file, captions = video
    options = self._options
    late: list[Row] = []
    segments: list[Segment] = []
    with local_copy(options.input, options.cache) as folder:
      findings = index_file(
        *(folder, file, captions, [options.spec], options.filters), self._probes
      )
      used = [video for _, video in findings if video is not None]
      if used:
        segments, late = find_segments(used, folder.local, options)
    rows = [row for row, _ in findings]
    return _ProbeResult(index=index, rows=rows, late=late, segments=segments)


def _keyed_segments(found: _ProbeResult) -> Iterator[tuple[str, tuple]]:
  """(key, (rank in the order of all segments, segment))."""
  for k, segment in enumerate(found.segments):
    yield segment.stored.key, ((found.index, k), segment)


def _keyed_captions(found: _ProbeResult) -> Iterator[tuple[str, tuple]]:
  """As `_keyed_segments`, for captions; those of one key are the same."""
  for caption in {c for s in found.segments for c in s.stored.captions}:
    yield caption_key(caption), ((), caption)


def _expected_bytes(segment: Segment) -> float:
  """Approximate size of a stored segment."""
  clip = segment.stored
  each = _VIDEO_BYTES if clip.seconds else _PICTURE_BYTES
  return each * clip.frames * clip.height * clip.width


def _clip_shard(segment: Segment, total_bytes: float) -> tuple[int, Segment]:
  """(shard number, segment). The segments of a file share a shard, so that a
  remote file is copied to one worker.
  """
  file = segment.stored.file.encode(errors="surrogatepass")
  return _shard_number(hashlib.sha256(file).hexdigest(), total_bytes), segment


def _caption_shard(
  caption: str, count: int, facts: tuple[str, int]
) -> tuple[int, str]:
  """(shard number, caption)."""
  return _shard_number(caption_key(caption), count * facts[1]), caption


def _shard_number(key: str, total_bytes: float) -> int:
  """Shard number of a key (hex), uniform over keys."""
  return int(key[:15], 16) % (1 + int(total_bytes / SHARD_BYTES))


def _encode_clips(element, options: ScaleOptions) -> dict[str, str]:
  """Stores the clips of a shard; the keys that failed, with reasons."""
  broken: dict[str, str] = {}
  files: dict[str, list[Segment]] = collections.defaultdict(list)
  for segment in sorted(element[1], key=lambda segment: segment.stored.key):
    files[segment.stored.file].append(segment)
  writer = RecordWriter(options.out, CLIPS, by_keys=True)
  work = lambda file: _encode_file(file, files[file], options)
  made = map_in_threads(work, sorted(files), options.max_threads)
  with contextlib.closing(made):
    for key, data in itertools.chain.from_iterable(made):
      if isinstance(data, VideoError):
        broken[key] = data.reason
      else:
        writer[key] = data
      _count("clips_encoded", not isinstance(data, VideoError))
  writer.flush()  # Only here, so that a failed shard is written again whole.
  return broken


def _encode_file(
  file: str, segments: list[Segment], options: ScaleOptions
) -> list[tuple[str, bytes | VideoError]]:
  """Encodes the segments of one file, which is copied once if remote."""
  with local_copy(options.input, options.cache) as folder:
    return [
      (segment.stored.key, encode_segment(segment, folder.local, options))
      for segment in segments
    ]


def _describe_encoder(
  _, open_encoder: OpenEncoder, shared: Shared
) -> tuple[str, int]:
  """Its identity, and the bytes of the features of a caption."""
  encoder = shared.acquire(open_encoder)
  numbers = encoder.tokenizer.max_length * encoder.config.d_model
  return encoder.identity, 4 * numbers


def _encode_text(
  element, out: str, open_encoder: OpenEncoder, shared: Shared
) -> int:
  """Stores the features of the captions of a shard; returns their number."""
  captions, encoder = sorted(element[1]), shared.acquire(open_encoder)
  name = text_shard_prefix(encoder.identity)
  writer = RecordWriter(out, name, by_keys=True)
  for first in range(0, len(captions), _CHUNK):
    part = captions[first : first + _CHUNK]
    for key, entry in encode_entries(encoder, part):
      writer[key] = entry
      _count("captions_encoded")
  writer.flush()
  return len(captions)


def _finish(element, facts: tuple[str, int], options: ScaleOptions) -> None:
  """Writes prepared.json and the report, after all shards."""
  groups = element[1]
  found = sorted(groups["found"], key=lambda found: found.index)
  broken = dict(itertools.chain(*map(dict.items, groups["made"])))
  clips = [segment.stored for one in found for segment in one.segments]
  probed = [row for one in found for row in one.rows]
  late = [row for one in found for row in one.late]
  files = {clip.key: clip.file for clip in clips if clip.key in broken}
  late += [
    Row(file=file, used=False, reason=broken[key])
    for key, file in files.items()
  ]
  clips = [clip for clip in clips if clip.key not in broken]
  manifest = Manifest(
    options=options.recorded, text=facts[0], clips=tuple(clips)
  )
  report = f"{options.out}/{REPORT}"
  with tempfile.TemporaryDirectory() as folder:
    Report(Path(folder, REPORT)).write(probed + late)
    place_bytes(report, Path(folder, REPORT).read_bytes())
    # Raises an error if no video can be used.
    summarise(probed, options.input, options.fps, report)
    if not clips:
      problem = "all videos were dropped"
      raise UserError(f"{options.input}:", problem, f"see {report}")
    manifest.write(folder)
    place_bytes(f"{options.out}/{NAME}", Path(folder, NAME).read_bytes())


def _print_summary(options: ScaleOptions, counts: dict[str, int]) -> None:
  """Prints the summary that `prepare` prints."""
  with local_copy(options.out) as folder:
    lines = folder.local(REPORT).read_text("utf-8").splitlines()
    clips = len(read_manifest(folder).clips)
  rows = [Row(**json.loads(line)) for line in lines]
  used = {row.file for row in rows if row.used}
  # Files that failed after they were probed have a first row as used.
  late = [
    r for r in rows if not r.used and r.seconds is None and r.file in used
  ]
  report = f"{options.out}/{REPORT}"
  probed = rows[: len(rows) - len(late)]
  summary = [summarise(probed, options.input, options.fps, report)]
  summary += [f"data: {row.file} dropped: {row.reason}" for row in late]
  new, unused = (counts.get(f"clips_{c}", 0) for c in ("encoded", "unused"))
  summary.append(closing_message(clips, new, unused, options))
  print(*summary, sep="\n", file=sys.stderr)
