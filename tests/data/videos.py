"""Folders of small videos for tests."""

from collections.abc import Mapping
import json

import numpy as np
from PIL import Image

from lumiere_jax.data.filters import Filters
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.media.video_writer import write_video


def spec(num_frames, height=16, width=16, fps=8, **options):
  return ClipSpec(
    num_frames=num_frames, fps=fps, resolution=(height, width), **options
  )


SPEC = spec(4)


def make(folder, name, seconds=2.0, fps=8, size=(24, 32), level=None):
  """A video whose frame k has grey level 10 + 10 k, up to 250, or `level`."""
  count = round(seconds * fps)
  levels = np.minimum(10 + 10 * np.arange(count), 250).astype(np.uint8)
  if level is not None:
    levels[:] = level
  video = np.broadcast_to(levels[:, None, None, None], (count, *size, 3))
  write_video(folder / name, video, fps)


def picture(folder, name, level=100, size=(24, 32)):
  folder.mkdir(exist_ok=True)
  Image.new("RGB", size[::-1], (level,) * 3).save(folder / name)


def frame_numbers(clip):
  return ((clip.astype(float).mean((1, 2, 3)) - 10) / 10).round().tolist()


def write_jsonl(folder, captions):
  """Captions by file name; names alone are captioned "x"."""
  if not isinstance(captions, Mapping):
    captions = dict.fromkeys(captions, "x")
  rows = [{"file": file, "caption": text} for file, text in captions.items()]
  lines = [json.dumps(row) + "\n" for row in rows]
  (folder / "captions.jsonl").write_text("".join(lines))


def read_report(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def open_files(folder, *specs, cache="", prompts="", **filters):
  """The source of a folder, and its report by file."""
  path = folder / "data_report.jsonl"
  source = FilesSource.open(
    folder,
    specs or [SPEC],
    filters=Filters(**filters),
    report_path=path,
    cache=cache,
    prompts=prompts,
  )
  return source, {row["file"]: row for row in read_report(path)}


def open_videos(folder, videos, *specs, **options):
  """Makes videos (name -> arguments of `make`) and opens their folder."""
  for name, how in videos.items():
    make(folder, name, **how)
  write_jsonl(folder, list(videos))
  return open_files(folder, *specs, **options)
