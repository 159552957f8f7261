"""Accuracy of the reader of procedural scenes.

python -m benchmarks.reader_accuracy
"""

from pathlib import Path
import tempfile

import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.media.video_reader import read_video
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.toy_scenes.reader import matches


def accuracy(side: int, clips: int, *, h264: bool) -> dict[str, float]:
  """Share of 80-frame clips that are read right, by attribute."""
  source = ProceduralSource(
    num_clips=clips, num_frames=80, resolution=side, two_objects=0.5, seed=7
  )
  right = []
  with tempfile.TemporaryDirectory() as folder:
    for index in range(clips):
      clip = source.clip(index)
      if h264:
        path = Path(folder) / "clip.mp4"
        write_video(path, clip, source.fps, crf=23)
        clip, _ = read_video(path)
      right.append(matches(clip, source.scene(index), source.fps))
  return {k: float(np.mean([r[k] for r in right])) for k in right[0]}


if __name__ == "__main__":
  for side, clips, h264 in ((64, 600, False), (64, 200, True), (32, 200, True)):
    print(
      f"{side}x{side} {clips} clips h264={h264}:",
      accuracy(side, clips, h264=h264),
    )
