"""Samples every task, trains each stage a few steps, writes a page.

python -m launch.demo [--out=out/demo] [--model=demo]
"""

from pathlib import Path

from absl import app, flags

from launch.tour import take_tour

OUT = flags.DEFINE_string("out", "out/demo", "Output folder.")
MODEL = flags.DEFINE_string("model", "demo", "Bundle to sample from.")


def main(argv: list[str]) -> None:
  """Runs all commands, then writes index.html."""
  del argv
  take_tour(Path(OUT.value), MODEL.value)


if __name__ == "__main__":
  app.run(main)
