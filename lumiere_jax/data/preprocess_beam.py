"""`prepare` on many machines, as an Apache Beam pipeline.

    videos -> probe, judge, hash -> parts by key -> those not stored -> shards
                                 -> captions     -> those not stored -> shards
    all of it -> prepared.json and data_report.jsonl, by one worker, at the end

A shard is one unit of work, and is named by a hash of the keys in it. So what
a worker that was killed had finished counts, and what is made twice lies there
once. Needs apache-beam; nothing else in this package does.
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

from lumiere_jax.data import beam_transforms as steps
from lumiere_jax.data.beam_transforms import OpenEncoder, ScaleOptions
from lumiere_jax.data.dataset_report import Row, summarise
from lumiere_jax.data.manifest import CLIPS, read_manifest
from lumiere_jax.data.preprocess import REPORT, describe
from lumiere_jax.data.sources.files import list_videos
from lumiere_jax.data.text_features import shelf_name
from lumiere_jax.errors import UserError
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.remote import (
  is_url,
  local_copy,
  place_bytes,
  remove,
  require_writable,
)

# What Beam adds to the message of an error in a step.
_STEP = r" ?\[while running "


def prepare_at_scale(
  options: ScaleOptions, open_encoder: OpenEncoder, flags: Iterable[str] = ()
) -> None:
  """Prepares what is missing, then writes `prepared.json`.

  What it makes is what `prepare` makes. Killed anywhere and called again, it
  keeps the shards that are there. Prints what becomes of each video.

  Args:
    options: what to make of what.
    open_encoder: makes the encoder whose features of the captions are stored;
      called by workers, to which it is pickled.
    flags: Beam's own, such as --runner=DataflowRunner.

  Raises:
    UserError: nothing can be used, or the place cannot be written.
  """
  with _held(options.out):
    require_writable(options.out)
    with local_copy(options.input, options.cache) as folder:
      videos = list_videos(folder, options.prompts)
    lines = [json.dumps([i, *video]) for i, video in enumerate(videos.items())]
    place_bytes(f"{options.out}/{steps.VIDEOS}", "\n".join(lines).encode())
    print(f"prepare: {len(videos)} files in {options.input}", file=sys.stderr)
    try:
      counts = _run(options, open_encoder, flags)
    finally:
      remove(f"{options.out}/{steps.VIDEOS}")
    _tell(options, counts)


@contextlib.contextmanager
def _held(out: str) -> Iterator[None]:
  """Keeps others out of a folder of this machine; buckets have no locks."""
  out = out.removeprefix("file://")
  with contextlib.nullcontext() if is_url(out) else locked(out):
    yield


def _run(
  options: ScaleOptions, open_encoder: OpenEncoder, flags: Iterable[str]
) -> dict[str, int]:
  """Runs the pipeline; returns what its workers have counted."""
  pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
  build(pipeline, options, open_encoder)
  try:
    result = pipeline.run()
    result.wait_until_finish()
  except Exception as error:  # runners raise what they like
    message = str(error)
    if not isinstance(error, UserError):
      found = re.search(r"UserError: ([^\n]*)", message)
      if not found:
        raise
      message = found[1]
    raise UserError(re.split(_STEP, message)[0]) from error
  counters = result.metrics().query()["counters"]
  return {c.key.metric.name: c.result or 0 for c in counters}


def build(
  pipeline: beam.Pipeline, options: ScaleOptions, open_encoder: OpenEncoder
) -> None:
  """Adds all steps to a pipeline.

  Args:
    pipeline: to add to; `.videos.jsonl` in `out` says what it will read.
    options: what to make of what.
    open_encoder: see `prepare_at_scale`.
  """
  shared = Shared()  # one encoder in each process
  facts = (
    pipeline
    | "Encoder" >> beam.Create([None])
    | "AskEncoder" >> beam.ParDo(steps.AskEncoder(open_encoder, shared))
  )
  found = (
    pipeline
    | "Videos" >> beam.Create([options.out])
    | "ListVideos" >> beam.FlatMap(steps.listed_videos)
    | "SpreadVideos" >> beam.Reshuffle()
    | "Examine" >> beam.ParDo(steps.Examine(options))
  )
  made = _store_clips(pipeline, found, options)
  encode = steps.EncodeText(options.out, open_encoder, shared)
  encoded = _store_text(found, facts, options.out, encode)
  finish = beam.ParDo(steps.Finish(options), AsSingleton(facts))
  whole = {
    "found": found | "AllFound" >> beam.Map(steps.to_one),
    "made": made | "AllMade" >> beam.Map(steps.to_one),
    "encoded": encoded | "AllEncoded" >> beam.Map(steps.to_one),
  }
  _ = whole | "Gather" >> beam.CoGroupByKey() | "Finish" >> finish


def _store_clips(pipeline, found, options: ScaleOptions):
  """Stores parts that are not; gives the keys that broke, with reasons."""
  parts = found | "Parts" >> beam.FlatMap(steps.keyed_parts)
  there = _keys_there(
    pipeline | "Clips" >> beam.Create([CLIPS]), "Clip", options.out
  )
  missing = (
    {"new": parts, "there": there}
    | "JoinClips" >> beam.CoGroupByKey()
    | "MissingClips" >> beam.ParDo(steps.KeepMissing("clips"))
  )
  total = (
    missing
    | "ClipBytes" >> beam.Map(steps.expected_bytes)
    | "AllClipBytes" >> beam.CombineGlobally(sum)
  )
  return (
    missing
    | "PlanClips" >> beam.Map(steps.planned_clip, AsSingleton(total))
    | "ClipShards" >> beam.GroupByKey()
    | "EncodeClips" >> beam.ParDo(steps.EncodeClips(options))
  )


def _store_text(found, facts, out: str, encode: beam.DoFn):
  """Stores features that are not; gives how many each shard is of."""
  captions = found | "Captions" >> beam.FlatMap(steps.keyed_captions)
  name = facts | "Shelf" >> beam.Map(lambda facts: shelf_name(facts.identity))
  missing = (
    {"new": captions, "there": _keys_there(name, "Text", out)}
    | "JoinText" >> beam.CoGroupByKey()
    | "MissingText" >> beam.ParDo(steps.KeepMissing("captions"))
  )
  count = missing | "CountText" >> beam.combiners.Count.Globally()
  return (
    missing
    | "PlanText"
    >> beam.Map(steps.planned_caption, AsSingleton(count), AsSingleton(facts))
    | "TextShards" >> beam.GroupByKey()
    | "EncodeText" >> beam.ParDo(encode)
  )


def _keys_there(name, label: str, out: str):
  """(key, None) for the records that finished shards hold."""
  return (
    name
    | f"List{label}Shards" >> beam.FlatMap(steps.shards_there, out)
    | f"Spread{label}Shards" >> beam.Reshuffle()
    | f"Read{label}Keys" >> beam.FlatMap(steps.keys_in, out)
  )


def _tell(options: ScaleOptions, counts: dict[str, int]) -> None:
  """Prints what `prepare` prints."""
  with local_copy(options.out) as folder:
    lines = folder.local(REPORT).read_text("utf-8").splitlines()
    clips = len(read_manifest(folder).clips)
  rows = [Row(**json.loads(line)) for line in lines]
  used = {row.file for row in rows if row.used}
  # Of these files it was known how long they are, before they broke.
  late = [
    r for r in rows if not r.used and r.seconds is None and r.file in used
  ]
  report = f"{options.out}/{REPORT}"
  probed = rows[: len(rows) - len(late)]
  summary = [summarise(probed, options.input, options.fps, report)]
  summary += [f"data: {row.file} dropped: {row.reason}" for row in late]
  new, unused = (counts.get(f"clips_{c}", 0) for c in ("encoded", "unused"))
  summary.append(describe(clips, new, unused, options))
  print(*summary, sep="\n", file=sys.stderr)
