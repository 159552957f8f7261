"""Makes videos and pictures from bundles.

python -m lumiere_jax.sample --model=BUNDLE --task=text_to_video \
    --prompt="a small red circle moving left on a black background" --out=x.mp4

--task is text_to_video, text_to_image, image_to_video, extend, inpaint,
outpaint, cinemagraph, stylize, video_to_video, super_resolve or panorama;
docs/sampling.md shows a command for each.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.flags import Hosts, define, joined, read, values
from lumiere_jax.inference.batch import (
  Output,
  SampleRequest,
  run_batch,
  show_grid,
)
from lumiere_jax.inference.prompt_files import PromptLine, read_prompt_file
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.tasks import TASKS

PROMPT = flags.DEFINE_string("prompt", "", "What the video shows.")
PROMPT_FILE = flags.DEFINE_string(
  "prompt_file",
  "",
  "Prompts in place of --prompt: .txt (a line each), .csv or .jsonl with "
  "'prompt' and, where they differ, 'seed' and any flag of a task or of "
  "sampling.",
)
SHOW_GRID = flags.DEFINE_bool(
  "show_grid",
  False,
  "Print as JSON the log-SNR of every step of each stage, and do not sample.",
)
REQUEST = define(SampleRequest)
INPUTS = define(*TASKS.values())
OUTPUT = define(Output)
SETTINGS = define(Settings)
HOSTS = define(Hosts)


def main(argv: list[str]) -> None:
  """Reads the flags and makes the videos."""
  del argv
  lines = (
    read_prompt_file(PROMPT_FILE.value)
    if PROMPT_FILE.value
    else [PromptLine(prompt=PROMPT.value)]
  )
  request = read(
    SampleRequest,
    REQUEST,
    lines=tuple(lines),
    inputs=values(INPUTS),
    output=read(Output, OUTPUT),
    settings=read(Settings, SETTINGS),
  )
  with joined(HOSTS):
    (show_grid if SHOW_GRID.value else run_batch)(request)


if __name__ == "__main__":
  cli.run(main)
