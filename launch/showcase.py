"""Example commands of `lumiere_jax.sample`, for the gallery and the demo."""

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
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.toy_scenes.scenes import Description, Scene, Sprite, render

SIDE, FRAMES = 128, 80


@dataclasses.dataclass(frozen=True)
class Show:
  """An example of a task.

  Attributes:
    task: of `sample`.
    prompt: of the video; '' is none.
    about: a one-line description.
    arguments: further flags; {inputs} is the folder of drawn inputs.
    short: replaces `arguments` in the demo, to save time; () keeps them.
    name: of the file; '' is the task's.
    ending: of the file.
  """

  task: str
  prompt: str
  about: str
  arguments: tuple[str, ...] = ()
  short: tuple[str, ...] = ()
  _: dataclasses.KW_ONLY
  name: str = ""
  ending: str = ".mp4"

  def __post_init__(self):
    object.__setattr__(self, "name", self.name or self.task)

  def command(
    self, model: str, inputs: Path, out: Path, *more: str
  ) -> list[str]:
    """Arguments of `python -m`, with `more` flags."""
    prompt = [f"--prompt={self.prompt}"] if self.prompt else []
    return [
      "lumiere_jax.sample",
      f"--model={model}",
      f"--task={self.task}",
      *prompt,
      *(argument.format(inputs=inputs) for argument in self.arguments),
      "--seed=1",
      *more,
      f"--out={out / self.name}{self.ending}",
    ]


SHOWS = (
  Show(
    "text_to_video",
    "a large red circle moving left slowly on a black background",
    "All 80 frames at once: five seconds at 16 fps.",
  ),
  Show(
    "text_to_video",
    "a large green square blinking on a white background",
    "Blinks three to four times per second; key frames a quarter second "
    "apart would miss it.",
    name="fast",
  ),
  Show(
    "image_to_video",
    "a large yellow star moving right slowly on a navy background",
    "The first frame is given.",
    ("--image={inputs}/star.png",),
  ),
  Show(
    "extend",
    "a large cyan triangle circling slowly on a black background",
    "Continues from the last frames.",
    ("--video={inputs}/triangle.mp4", "--times=2"),
    ("--video={inputs}/triangle.mp4", "--times=1"),
  ),
  Show(
    "inpaint",
    "a large blue square bouncing slowly on a black background",
    "The box is regenerated; the rest is unchanged.",
    ("--video={inputs}/triangle.mp4", "--box=16,16,112,112"),
  ),
  Show(
    "outpaint",
    "a small cyan triangle circling slowly on a black background",
    "Adds pixels on all sides.",
    ("--video={inputs}/triangle.mp4", "--expand=32,32,32,32"),
  ),
  Show(
    "cinemagraph",
    "a small red circle bouncing slowly and a small yellow star "
    "standing still on a navy background",
    "The left half moves; no pixel of the right half changes.",
    ("--image={inputs}/pair.png", "--mask={inputs}/left.png"),
  ),
  Show(
    "video_to_video",
    "a large orange triangle circling slowly on a black background",
    "SDEdit: keeps the motion and changes the colour.",
    ("--video={inputs}/triangle.mp4",),
  ),
  Show(
    "stylize",
    "a large red square moving right slowly on a black background",
    "Interpolates the weights of the spatial layers from no style to the "
    "full style.",
    ("--style=pastel", "--alpha=0,0.25,0.5,0.75,1"),
    ("--style=pastel", "--alpha=0,1"),
  ),
  Show(
    "super_resolve",
    "",
    "Super-resolution of any video, here a scene of 48x32 pixels.",
    ("--video={inputs}/wide.mp4",),
  ),
  Show(
    "panorama",
    "a large purple circle moving right slowly on a white background",
    "Wider than in training, in overlapping spatial windows.",
    ("--width=384",),
    ("--width=192",),
  ),
  Show(
    "text_to_image",
    "a large orange star on a grey background",
    "The image model alone.",
    ending=".png",
  ),
)


def run(
  command: Sequence[str], log: Path | None = None, **environment: str
) -> str:
  """Runs `python -m command`, and exits with its exit code if it fails.

  Its output goes to `log`, which is printed if it fails; None: the terminal.
  Prints and returns the command line.
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
