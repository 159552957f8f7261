"""Makes the pictures and clips of docs/gallery.md: every task, prompt, command.

python -m launch.gallery [--model=demo] [--out=docs/gallery]
"""

from pathlib import Path

from absl import app, flags

from launch.showcase import make_gallery

MODEL = flags.DEFINE_string("model", "demo", "Bundle that makes it all.")
OUT = flags.DEFINE_string("out", "docs/gallery", "Folder for what is made.")
PAGE = flags.DEFINE_string("page", "docs/gallery.md", "Page that shows it.")
ONLY = flags.DEFINE_list("only", [], "Names of shows to make; default: all.")


def main(argv: list[str]) -> None:
  """Makes all, one command after the other, then the page."""
  del argv
  make_gallery(MODEL.value, Path(OUT.value), Path(PAGE.value), ONLY.value)


if __name__ == "__main__":
  app.run(main)
