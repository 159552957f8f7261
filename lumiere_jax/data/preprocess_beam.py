"""`prepare` as an Apache Beam pipeline, on many machines.

    files -> probe, filter, hash -> segments by key -> not yet stored -> shards
                                 -> captions        -> not yet stored -> shards
    all results -> prepared.json and data_report.jsonl, by one worker

A shard is one unit of work, named by a hash of its keys: shards of a killed
worker are kept, and a shard that is written twice is stored once. Only this
module and `beam_transforms` need apache-beam.
"""

from collections.abc import Iterable, Iterator
import contextlib
import json
import re
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton
from apache_beam.utils.shared import Shared

from lumiere_jax.data import beam_transforms as transforms
from lumiere_jax.data.beam_transforms import OpenEncoder, ScaleOptions
from lumiere_jax.data.dataset_report import Row, summarise
from lumiere_jax.data.manifest import CLIPS, read_manifest
from lumiere_jax.data.preprocess import REPORT, closing_message
from lumiere_jax.data.sources.files import list_videos
from lumiere_jax.data.text_features import text_shard_prefix
from lumiere_jax.errors import UserError
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.remote import (
  is_url,
  local_copy,
  place_bytes,
  remove,
  require_writable,
)

# Beam appends this to the first argument of an error in a transform.
_STEP = re.compile(r" ?\[while running [^\]]*\]")


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
  with _locked(options.out):
    require_writable(options.out)
    with local_copy(options.input, options.cache) as folder:
      videos = list_videos(folder, options.prompts)
    lines = [json.dumps([i, *video]) for i, video in enumerate(videos.items())]
    place_bytes(
      f"{options.out}/{transforms.FILE_LIST}", "\n".join(lines).encode()
    )
    print(f"prepare: {len(videos)} files in {options.input}", file=sys.stderr)
    try:
      counts = _run(options, open_encoder, flags)
    finally:
      remove(f"{options.out}/{transforms.FILE_LIST}")
    _print_summary(options, counts)


@contextlib.contextmanager
def _locked(out: str) -> Iterator[None]:
  """Locks a local folder; buckets have no locks."""
  out = out.removeprefix("file://")
  with contextlib.nullcontext() if is_url(out) else locked(out):
    yield


def _run(
  options: ScaleOptions, open_encoder: OpenEncoder, flags: Iterable[str]
) -> dict[str, int]:
  """Runs the pipeline; returns its counters."""
  pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
  build(pipeline, options, open_encoder)
  try:
    result = pipeline.run()
    result.wait_until_finish()
  except Exception as error:  # Runners raise any type.
    if isinstance(error, UserError):
      parts = error.field, error.problem, error.fix
    elif found := re.search(r"UserError: ([^\n]*)", str(error)):
      parts = (found[1],)
    else:
      raise
    raise UserError(*(_STEP.sub("", part) for part in parts)) from error
  counters = result.metrics().query()["counters"]
  return {c.key.metric.name: c.result or 0 for c in counters}


def build(
  pipeline: beam.Pipeline, options: ScaleOptions, open_encoder: OpenEncoder
) -> None:
  """Adds all transforms to a pipeline.

  Args:
    pipeline: to add to; it reads the list of files in `options.out`.
    options: see `prepare_at_scale`.
    open_encoder: see `prepare_at_scale`.
  """
  shared = Shared()  # One encoder in each process.
  facts = (
    pipeline
    | "Encoder" >> beam.Create([None])
    | "DescribeEncoder"
    >> beam.ParDo(transforms.DescribeEncoder(open_encoder, shared))
  )
  found = (
    pipeline
    | "Videos" >> beam.Create([options.out])
    | "ListVideos" >> beam.FlatMap(transforms.read_file_list)
    | "SpreadVideos" >> beam.Reshuffle()
    | "Examine" >> beam.ParDo(transforms.Examine(options))
  )
  made = _store_clips(pipeline, found, options)
  encode = transforms.EncodeText(options.out, open_encoder, shared)
  encoded = _store_text(found, facts, options.out, encode)
  finish = beam.ParDo(transforms.Finish(options), AsSingleton(facts))
  whole = {
    "found": found | "AllFound" >> beam.Map(transforms.with_one_key),
    "made": made | "AllMade" >> beam.Map(transforms.with_one_key),
    "encoded": encoded | "AllEncoded" >> beam.Map(transforms.with_one_key),
  }
  _ = whole | "Gather" >> beam.CoGroupByKey() | "Finish" >> finish


def _store_clips(pipeline, found, options: ScaleOptions):
  """Stores missing segments; gives the keys that failed, with reasons."""
  segments = found | "Parts" >> beam.FlatMap(transforms.keyed_segments)
  there = _existing_keys(
    pipeline | "Clips" >> beam.Create([CLIPS]), "Clip", options.out
  )
  missing = (
    {"new": segments, "there": there}
    | "JoinClips" >> beam.CoGroupByKey()
    | "MissingClips" >> beam.ParDo(transforms.KeepMissing("clips"))
  )
  total = (
    missing
    | "ClipBytes" >> beam.Map(transforms.expected_bytes)
    | "AllClipBytes" >> beam.CombineGlobally(sum)
  )
  return (
    missing
    | "PlanClips" >> beam.Map(transforms.clip_shard, AsSingleton(total))
    | "ClipShards" >> beam.GroupByKey()
    | "EncodeClips" >> beam.ParDo(transforms.EncodeClips(options))
  )


def _store_text(found, facts, out: str, encode: beam.DoFn):
  """Stores missing text features; gives the number in each shard."""
  captions = found | "Captions" >> beam.FlatMap(transforms.keyed_captions)
  name = facts | "Shelf" >> beam.Map(
    lambda facts: text_shard_prefix(facts.identity)
  )
  missing = (
    {"new": captions, "there": _existing_keys(name, "Text", out)}
    | "JoinText" >> beam.CoGroupByKey()
    | "MissingText" >> beam.ParDo(transforms.KeepMissing("captions"))
  )
  count = missing | "CountText" >> beam.combiners.Count.Globally()
  return (
    missing
    | "PlanText"
    >> beam.Map(
      transforms.caption_shard, AsSingleton(count), AsSingleton(facts)
    )
    | "TextShards" >> beam.GroupByKey()
    | "EncodeText" >> beam.ParDo(encode)
  )


def _existing_keys(name, label: str, out: str):
  """(key, None) of the records in finished shards."""
  return (
    name
    | f"List{label}Shards" >> beam.FlatMap(transforms.existing_shards, out)
    | f"Spread{label}Shards" >> beam.Reshuffle()
    | f"Read{label}Keys" >> beam.FlatMap(transforms.record_keys, out)
  )


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
