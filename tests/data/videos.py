"""Folders of small videos for tests."""

import json

import numpy as np

from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.media.video_writer import write_video

SPEC = ClipSpec(num_frames=4, fps=8, resolution=(16, 16))


def make(folder, name, seconds=2.0, fps=8, size=(24, 32)):
  """A video whose frame k has the grey level 10 + 10 k, up to 250."""
  count = round(seconds * fps)
  levels = np.minimum(10 + 10 * np.arange(count), 250).astype(np.uint8)
  video = np.broadcast_to(levels[:, None, None, None], (count, *size, 3))
  write_video(folder / name, video, fps)


def frame_numbers(clip):
  return ((clip.astype(float).mean((1, 2, 3)) - 10) / 10).round().tolist()


def write_jsonl(folder, captions):
  """Captions by file name."""
  rows = [{"file": file, "caption": text} for file, text in captions.items()]
  lines = [json.dumps(row) + "\n" for row in rows]
  (folder / "captions.jsonl").write_text("".join(lines))


def read_report(path):
  return [json.loads(line) for line in path.read_text().splitlines()]
