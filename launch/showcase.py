"""Example commands for every task, of the gallery and the demo.

Each show is a `python -m lumiere_jax.sample` command; its inputs are drawn into
a folder first.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
from pathlib import Path
import shlex
import subprocess
import sys

import numpy as np

from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_reader import read_video
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.toy_scenes.scenes import Description, Scene, Sprite, render

SIDE, FRAMES = 128, 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
  """An example of a task.

  Attributes:
    name: of the file.
    task: of `sample`.
    prompt: of the video; '' is none.
    about: a one-line description.
    arguments: further flags; {inputs} is the folder of drawn inputs, {out} the
      output folder.
    short: replaces `arguments` in the demo, to save time; () keeps them.
    seed: of the noise.
    ending: of the file.
  """

  name: str
  task: str
  prompt: str
  about: str
  arguments: tuple[str, ...] = ()
  short: tuple[str, ...] = ()
  seed: int = 1
  ending: str = ".mp4"

  def command(
    self, model: str, inputs: Path, out: Path, *more: str
  ) -> list[str]:
    """Arguments of `python -m`, with `more` flags."""
    places = {"inputs": inputs, "out": out}
    prompt = [f"--prompt={self.prompt}"] if self.prompt else []
    return [
      "lumiere_jax.sample",
      f"--model={model}",
      f"--task={self.task}",
      *prompt,
      *(argument.format(**places) for argument in self.arguments),
      f"--seed={self.seed}",
      *more,
      f"--out={out / self.name}{self.ending}",
    ]


SHOWS = (
  Show(
    name="text_to_video",
    task="text_to_video",
    prompt="a large red circle moving left slowly on a black background",
    about="All 80 frames at once: five seconds at 16 fps.",
  ),
  Show(
    name="fast",
    task="text_to_video",
    prompt="a large green square blinking on a white background",
    about="Blinks three to four times per second; key frames a quarter second "
    "apart would miss it.",
  ),
  Show(
    name="image_to_video",
    task="image_to_video",
    prompt="a large yellow star moving right slowly on a navy background",
    about="The first frame is given.",
    arguments=("--image={inputs}/star.png",),
  ),
  Show(
    name="extend",
    task="extend",
    prompt="a large cyan triangle circling slowly on a black background",
    about="Continues from the last frames.",
    arguments=("--video={inputs}/triangle.mp4", "--times=2"),
    short=("--video={inputs}/triangle.mp4", "--times=1"),
  ),
  Show(
    name="inpaint",
    task="inpaint",
    prompt="a large blue square bouncing slowly on a black background",
    about="The box is regenerated; the rest is unchanged.",
    arguments=("--video={inputs}/triangle.mp4", "--box=16,16,112,112"),
  ),
  Show(
    name="outpaint",
    task="outpaint",
    prompt="a small cyan triangle circling slowly on a black background",
    about="Adds pixels on all sides.",
    arguments=("--video={inputs}/triangle.mp4", "--expand=32,32,32,32"),
  ),
  Show(
    name="cinemagraph",
    task="cinemagraph",
    prompt="a small red circle bouncing slowly and a small yellow star "
    "standing still on a navy background",
    about="The left half moves; no pixel of the right half changes.",
    arguments=("--image={inputs}/pair.png", "--mask={inputs}/left.png"),
  ),
  Show(
    name="video_to_video",
    task="video_to_video",
    prompt="a large orange triangle circling slowly on a black background",
    about="SDEdit: keeps the motion and changes the colour.",
    arguments=("--video={inputs}/triangle.mp4",),
  ),
  Show(
    name="stylize",
    task="stylize",
    prompt="a large red square moving right slowly on a black background",
    about="Interpolates the weights of the spatial layers from no style to the "
    "full style.",
    arguments=("--style=pastel", "--alpha=0,0.25,0.5,0.75,1"),
    short=("--style=pastel", "--alpha=0,1"),
  ),
  Show(
    name="super_resolve",
    task="super_resolve",
    prompt="",
    about="Super-resolution of any video, here a scene of 48x32 pixels.",
    arguments=("--video={inputs}/wide.mp4",),
  ),
  Show(
    name="panorama",
    task="panorama",
    prompt="a large purple circle moving right slowly on a white background",
    about="Wider than in training, in overlapping spatial windows.",
    arguments=("--width=384",),
    short=("--width=192",),
  ),
  Show(
    name="text_to_image",
    task="text_to_image",
    prompt="a large orange star on a grey background",
    about="The image model alone.",
    ending=".png",
  ),
)


def make_gallery(
  model: str, out: Path, page: Path, only: Sequence[str] = ()
) -> None:
  """Runs the commands of the shows and writes the page.

  Args:
    model: bundle to sample from.
    out: output folder.
    page: Markdown file to write.
    only: names of shows to run; () is all.
  """
  inputs = out / "inputs"
  draw_inputs(inputs)
  for show in SHOWS:
    if not only or show.name in only:
      make(show, model, inputs, out)
  page.write_text(gallery_page(model, inputs, out, page.parent))
  print(page)


def make(show: Show, model: str, inputs: Path, out: Path) -> None:
  """Runs the command of a show; videos are also written as gif."""
  run(show.command(model, inputs, out, "--overwrite"))
  if show.ending == ".mp4":
    made = out / f"{show.name}.mp4"
    write_video(made.with_suffix(".gif"), read_video(made)[0][::2], 8)


def run(
  command: Sequence[str], log: Path | None = None, **environment: str
) -> str:
  """Runs `python -m command`, and exits with its exit code if it fails.

  Args:
    command: module and arguments.
    log: file for its output, printed if it fails; None: the terminal.
    environment: additional environment variables.

  Returns:
    The command line, which is also printed.
  """
  line = command_line(command)
  print(f"\n$ {line}", flush=True)
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(log.open("wb")) if log else None
    result = subprocess.run(
      [sys.executable, "-m", *command],
      env=os.environ | environment,
      check=False,
      stdout=file,
      stderr=subprocess.STDOUT if file else None,
    )
  if result.returncode:
    if log:
      print(log.read_text(errors="replace"), file=sys.stderr)
    sys.exit(result.returncode)
  return line


def command_line(command: Sequence[str]) -> str:
  """The command as a shell command line."""
  return shlex.join(["python", "-m", *command])


def gallery_page(model: str, inputs: Path, out: Path, base: Path) -> str:
  """Markdown of all shows, with image links relative to `base`."""
  parts = [
    "# Gallery",
    f"Generated by `python -m launch.gallery` with the bundle `{model}`. The "
    "command below each example reproduces it, bit-equal on the same machine. "
    "The descriptions say what the task is, not how well the model does it.",
  ]
  for show in SHOWS:
    ending = ".gif" if show.ending == ".mp4" else show.ending
    file = (out / (show.name + ending)).relative_to(base)
    parts += [
      f"## {show.name.replace('_', ' ')}",
      f"![{show.prompt or show.name}]({file})",
      show.about + (f" *{show.prompt}*" if show.prompt else ""),
      f"```\n{command_line(show.command(model, inputs, out))}\n```",
    ]
  return "\n\n".join(parts) + "\n"


def draw_inputs(folder: Path) -> None:
  """Draws the images, clips and masks of the shows."""
  folder.mkdir(parents=True, exist_ok=True)
  star = _sprite("yellow", "star", "right", phase=0.3, rate=0.15)
  triangle = _sprite("cyan", "triangle", "circling", rate=0.3)
  triangle = dataclasses.replace(triangle, reach=(0.22, 0.22))
  pair = (
    _sprite("red", "circle", "still", (0.27, 0.5), radius=0.115),
    _sprite("yellow", "star", "still", (0.73, 0.5), radius=0.115),
  )
  picture = lambda background, *sprites: render(
    Scene(sprites=sprites, background=background), 1, SIDE
  )[0]
  write_image(folder / "star.png", picture("navy", star))
  write_image(folder / "pair.png", picture("navy", *pair))
  left = np.zeros((SIDE, SIDE, 3), np.uint8)
  left[:, : SIDE // 2] = 255
  write_image(folder / "left.png", left)
  circling = Scene(sprites=(triangle,), background="black")
  write_video(folder / "triangle.mp4", render(circling, FRAMES, SIDE), 16)
  write_video(folder / "wide.mp4", render(circling, FRAMES, (32, 48)), 16)


def _sprite(
  colour: str,
  shape: str,
  motion: str,
  centre: tuple[float, float] = (0.5, 0.5),
  *,
  radius: float = 0.17,
  rate: float = 0.0,
  phase: float = 0.0,
) -> Sprite:
  return Sprite(
    description=Description(colour=colour, shape=shape, motion=motion),
    centre=centre,
    reach=(0.0, 0.0),
    radius=radius,
    rate=rate,
    phase=phase,
  )
