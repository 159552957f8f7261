"""Makes videos and pictures from bundles.

python -m lumiere_jax.sample --model=BUNDLE --task=text_to_video \
    --prompt="a small red circle moves left" --seed=1 --out=x.mp4
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.host_flags import host_flags, joined
from lumiere_jax.pipelines.requests import TASKS, Request, fulfil
from lumiere_jax.sampling_flags import (
  MeshParser,
  read_settings,
  settings_flags,
)

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
TASK = flags.DEFINE_string("task", "text_to_video", " or ".join(TASKS) + ".")
PROMPT = flags.DEFINE_string("prompt", "", "What the video shows.")
NEGATIVE = flags.DEFINE_string(
  "negative_prompt", "", "What it should steer away from."
)
SEED = flags.DEFINE_integer("seed", 0, "One seed, one video.")
OUT = flags.DEFINE_string(
  "out",
  "",
  "File: .mp4, .webm, .gif or .npy, or FOLDER/ of png files; of a picture "
  ".png or .jpg. Without it video.mp4 or image.png.",
)
CONTACT_SHEET = flags.DEFINE_string(
  "contact_sheet", "", "Picture of frames side by side: .png or .jpg."
)
MESH = flags.DEFINE(
  MeshParser(),
  "mesh",
  None,
  "DATA,FSDP,SPACE: devices that share the work, one of them -1 for the rest; "
  "windows go to DATA, weights are cut up over FSDP, rows of pixels over "
  "SPACE. Default: one device.",
)
SETTINGS = settings_flags()
HOSTS = host_flags()


def main(argv: list[str]) -> None:
  """Reads the flags and makes the video."""
  del argv
  request = Request(
    models=tuple(MODEL.value),
    task=TASK.value,
    prompt=PROMPT.value,
    negative_prompt=NEGATIVE.value,
    seed=SEED.value,
    out=OUT.value,
    contact_sheet=CONTACT_SHEET.value,
    settings=read_settings(SETTINGS),
    adapters=tuple(ADAPTER.value),
    adapter_scale=ADAPTER_SCALE.value,
    mesh=MESH.value,
  )
  with joined(HOSTS):
    fulfil(request)


if __name__ == "__main__":
  cli.run(main)
