"""Prepares a folder for training: cut, resampled, shrunk, in shards.

Decoding large videos from key frames seconds apart is what makes loaders slow.
Here it is done once: what comes out decodes in milliseconds, from any frame on.

A clip is known by a hash of its file's content, the part of it and how it is
encoded, so that what is there is never made again, and what has changed is.
"""

from concurrent import futures
import contextlib
import dataclasses
from pathlib import Path
import sys

from tqdm import tqdm

from lumiere_jax.data.files import FilesSource
from lumiere_jax.data.manifest import CLIPS, Manifest, Stored
from lumiere_jax.data.parts import (
  REPORT,
  Options,
  Part,
  cut,
  describe,
  encode,
  identify,
  map_ahead,
)
from lumiere_jax.data.report import Report, Row
from lumiere_jax.data.shelf import fill_shelf
from lumiere_jax.data.text import TextEncoder
from lumiere_jax.io.atomic import locked
from lumiere_jax.io.errors import VideoError
from lumiere_jax.io.folder import Folder
from lumiere_jax.io.records import Records, RecordWriter
from lumiere_jax.typing import UserError


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
