"""Makes the pictures and clips of docs/gallery.md: every task, prompt, command.

python -m launch.gallery [--model=demo] [--out=docs/gallery]
"""

from pathlib import Path
import subprocess
import sys

from absl import app, flags

from launch.showcase import SHOWS, Show, draw_inputs
from lumiere_jax.io.decode import read_video
from lumiere_jax.io.write import write_video

MODEL = flags.DEFINE_string("model", "demo", "Bundle that makes it all.")
OUT = flags.DEFINE_string("out", "docs/gallery", "Folder for what is made.")
PAGE = flags.DEFINE_string("page", "docs/gallery.md", "Page that shows it.")
ONLY = flags.DEFINE_list("only", [], "Names of shows to make; default: all.")


def main(argv: list[str]) -> None:
  """Makes all, one command after the other, then the page."""
  del argv
  out = Path(OUT.value)
  inputs = out / "inputs"
  draw_inputs(inputs)
  for show in SHOWS:
    if not ONLY.value or show.name in ONLY.value:
      make(show, inputs, out)
  Path(PAGE.value).write_text(page(inputs, out))
  print(PAGE.value)


def make(show: Show, inputs: Path, out: Path) -> None:
  """Runs the command of a show; of a video, a gif for pages is left too."""
  command = show.command(MODEL.value, inputs, out, "--overwrite")
  print(f"\n$ {show.line(MODEL.value, inputs, out)}", flush=True)
  if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
    sys.exit(f"{show.name} failed; what it said is above")
  if show.ending == ".mp4":
    made = out / f"{show.name}.mp4"
    write_video(made.with_suffix(".gif"), read_video(made)[0][::2], 8)


def page(inputs: Path, out: Path) -> str:
  """docs/gallery.md."""
  base = Path(PAGE.value).parent
  parts = [
    "# Gallery",
    "Made by the model that comes with the package, by `make gallery`; below "
    "each is the command that makes it, to the same pixels on the same "
    "machine.",
  ]
  for show in SHOWS:
    ending = ".gif" if show.ending == ".mp4" else show.ending
    file = (out / (show.name + ending)).relative_to(base)
    parts += [
      f"## {show.name.replace('_', ' ')}",
      f"![{show.prompt or show.name}]({file})",
      show.says + (f" *{show.prompt}*" if show.prompt else ""),
      f"```\n{show.line(MODEL.value, inputs, out)}\n```",
    ]
  return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
  app.run(main)
