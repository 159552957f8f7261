"""Generates docs/gallery.md: a clip, prompt and command for every task.

python -m launch.gallery [--model=demo] [--out=docs/gallery]
"""

from pathlib import Path

from absl import app, flags

from launch.showcase import make_gallery

MODEL = flags.DEFINE_string("model", "demo", "Bundle to sample from.")
OUT = flags.DEFINE_string("out", "docs/gallery", "Output folder.")
PAGE = flags.DEFINE_string("page", "docs/gallery.md", "Markdown page to write.")
ONLY = flags.DEFINE_list("only", [], "Names of shows; default: all.")


def main(argv: list[str]) -> None:
  """Runs all commands, then writes the page."""
  del argv
  make_gallery(MODEL.value, Path(OUT.value), Path(PAGE.value), ONLY.value)


if __name__ == "__main__":
  app.run(main)
