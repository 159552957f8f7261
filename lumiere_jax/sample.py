"""Makes videos and pictures from bundles.

python -m lumiere_jax.sample --model=BUNDLE --task=text_to_video \
    --prompt="a small red circle moving left on a black background" --out=x.mp4

--task is text_to_video, text_to_image, image_to_video, extend, inpaint,
outpaint, cinemagraph, stylize, video_to_video, super_resolve or panorama;
docs/sampling.md shows a command for each.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.flags import (
  MeshParser,
  fields_of,
  host_flags,
  inputs_flags,
  joined,
  output_flags,
  read_settings,
  settings_flags,
)
from lumiere_jax.inference.batch import (
  Output,
  SampleRequest,
  run_batch,
  show_grid,
)
from lumiere_jax.inference.prompt_files import PromptLine, read_prompt_file
from lumiere_jax.inference.styles import parse_alphas
from lumiere_jax.inference.tasks import TASKS, Inputs

MODEL = flags.DEFINE_multi_string(
  "model",
  [],
  "Bundle, workdir of a run, or name on the Hugging Face hub; give it again to "
  "add what is lacking: base, super-resolution, text encoder.",
)


ADAPTER = flags.DEFINE_multi_string(
  "adapter",
  [],
  "Low-rank adapter: ours, a workdir's, diffusers' or PEFT's; STAGE=PATH "
  "says which stage it is for.",
)


ADAPTER_SCALE = flags.DEFINE_float(
  "adapter_scale", 1.0, "How much of the adapters; 1 is as trained."
)


STYLE = flags.DEFINE_multi_string(
  "style",
  [],
  "Style to blend into the spatial layers, with any task: bundle or workdir of "
  "a fine-tuned image model (configs/style.py), or an adapter. Again for "
  "super-resolution.",
)


ALPHA = flags.DEFINE_string(
  "alpha",
  "1",
  "How much of the style, 0 to 1 (1.5 exaggerates); several, such as "
  "0,0.5,1, are shown side by side.",
)


TASK = flags.DEFINE_string("task", "text_to_video", " or ".join(TASKS) + ".")


PROMPT = flags.DEFINE_string("prompt", "", "What the video shows.")


PROMPT_FILE = flags.DEFINE_string(
  "prompt_file",
  "",
  "Prompts in place of --prompt: .txt (a line each), .csv or .jsonl with "
  "'prompt' and, if they differ, 'seed' and any flag of a task or of sampling.",
)


NEGATIVE = flags.DEFINE_string(
  "negative_prompt", "", "What it should steer away from."
)


SEED = flags.DEFINE_integer("seed", 0, "One seed, one video.")


NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples",
  1,
  "Videos of each prompt, from --seed on.",
  lower_bound=1,
)


BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 1, "Of these, how many are sampled at once.", lower_bound=1
)


MESH = flags.DEFINE(
  MeshParser(),
  "mesh",
  None,
  "DATA,FSDP,SPACE: devices that share the work, one of them -1 for the rest; "
  "windows go to DATA, weights are cut up over FSDP, rows of pixels over "
  "SPACE. Default: one device.",
)


SHOW_GRID = flags.DEFINE_bool(
  "show_grid",
  False,
  "Print as JSON the log-SNR of every step of each stage, and do not sample.",
)


INPUTS = inputs_flags()


OUTPUT = output_flags()


SETTINGS = settings_flags()


HOSTS = host_flags()


def main(argv: list[str]) -> None:
  """Reads the flags and makes the videos."""
  del argv
  lines = (
    read_prompt_file(PROMPT_FILE.value)
    if PROMPT_FILE.value
    else [PromptLine(prompt=PROMPT.value)]
  )
  request = SampleRequest(
    models=tuple(MODEL.value),
    task=TASK.value,
    lines=tuple(lines),
    negative_prompt=NEGATIVE.value,
    seed=SEED.value,
    num_samples=NUM_SAMPLES.value,
    batch_size=BATCH_SIZE.value,
    inputs=fields_of(Inputs, INPUTS),
    output=fields_of(Output, OUTPUT),
    settings=read_settings(SETTINGS),
    adapters=tuple(ADAPTER.value),
    adapter_scale=ADAPTER_SCALE.value,
    styles=tuple(STYLE.value),
    alphas=parse_alphas(ALPHA.value, "--alpha"),
    mesh=MESH.value,
  )
  with joined(HOSTS):
    (show_grid if SHOW_GRID.value else run_batch)(request)


if __name__ == "__main__":
  cli.run(main)
