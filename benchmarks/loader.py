"""Throughput of each kind of data source, in clips per second.

python -m benchmarks.loader --path=DIR_OF_VIDEOS

Loading is a bottleneck if training consumes more clips per second. The videos
are prepared first, unless --prepared names a prepared folder.
"""

from collections.abc import Iterator
import contextlib
import os
import tempfile
import time

from absl import app, flags

from benchmarks.markdown import table
from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.loader import Loader, batches
from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.data.sources.registry import open_sources

PATH = flags.DEFINE_string("path", "", "Folder of captioned videos.")
PREPARED = flags.DEFINE_string("prepared", "", "The same videos, prepared.")
TFDS = flags.DEFINE_string("tfds", "", "A TFDS builder to measure too.")
SIDES = flags.DEFINE_multi_integer(
  "side", [128, 16], "Side of the clips in pixels."
)
FRAMES = flags.DEFINE_integer("num_frames", 16, "Frames of a clip.")
SECONDS = flags.DEFINE_float("seconds", 20.0, "Time to measure each.")
THREADS = flags.DEFINE_integer("threads", os.cpu_count(), "Loading threads.")
_BATCH = 4


def measure(config: DataConfig) -> tuple[float, float]:
  """Seconds to open a source, and clips per second."""
  start = time.monotonic()
  source, _ = open_sources(config, seed=0, report=None)
  opened = time.monotonic()
  made = batches(
    Loader(source=source, seed=0), batch_size=_BATCH, num_threads=config.threads
  )
  with contextlib.closing(made):
    next(made)  # starts the threads
    begin, count = time.monotonic(), 0
    while time.monotonic() < begin + SECONDS.value:
      next(made)
      count += _BATCH
    return opened - start, count / (time.monotonic() - begin)


def configs(side: int, prepared: str) -> Iterator[DataConfig]:
  """A config of each kind of source, for one clip size."""
  paths = {
    "procedural": "-",
    "files": PATH.value,
    "prepared": prepared,
    "tfds": TFDS.value,
  }
  for source, path in paths.items():
    if path:
      yield DataConfig(
        source=source,
        path=path,
        num_frames=FRAMES.value,
        resolution=side,
        threads=THREADS.value,
        max_enlarge=1e9,
      )


def main(argv: list[str]) -> None:
  """Prints the table in Markdown."""
  del argv
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    prepared = PREPARED.value
    if PATH.value and not prepared:
      prepare(Options(input=PATH.value, out=folder, side=max(SIDES.value)))
      prepared = folder
    for side in SIDES.value:
      for config in configs(side, prepared):
        opening, rate = measure(config)
        shape = f"{FRAMES.value}x{side}x{side}"
        rows.append((config.source, shape, f"{opening:.2f}", f"{rate:.1f}"))
  print(table(("source", "clips", "seconds to open", "clips per second"), rows))


if __name__ == "__main__":
  app.run(main)
