"""Makes videos from a bundle.

python -m lumiere_jax.sample --model=BUNDLE --task=text_to_video \
    --prompt="a small red circle moves left" --seed=1 --out=x.mp4
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.pipelines.requests import Request, fulfil
from lumiere_jax.pipelines.settings import Settings

DEFAULT = Settings()


class Interval(flags.ArgumentParser):
  """LOW,HIGH as two numbers."""

  def parse(self, argument: str) -> tuple[float, float]:
    """Absl reports the ValueError with the flag's name and value."""
    try:
      low, high = map(float, argument.split(","))
    except ValueError as error:
      raise ValueError("two numbers are needed, such as 0.2,0.8") from error
    return low, high


MODEL = flags.DEFINE_multi_string(
  "model",
  [],
  "Bundle, or workdir of a run; give it again to add a stage (base, then ssr).",
)
ADAPTER = flags.DEFINE_multi_string(
  "adapter", [], "Low-rank adapter, or workdir of a run that trained one."
)
ADAPTER_SCALE = flags.DEFINE_float(
  "adapter_scale", 1.0, "How much of the adapters; 1 is as trained."
)
TASK = flags.DEFINE_string("task", "text_to_video", "What to do.")
PROMPT = flags.DEFINE_string("prompt", "", "What the video shows.")
NEGATIVE = flags.DEFINE_string(
  "negative_prompt", "", "What it should steer away from."
)
SEED = flags.DEFINE_integer("seed", 0, "One seed, one video.")
OUT = flags.DEFINE_string(
  "out", "video.mp4", "File: .mp4, .gif or .npy; or FOLDER/ of png files."
)
CONTACT_SHEET = flags.DEFINE_string(
  "contact_sheet", "", "Picture of frames side by side: .png or .jpg."
)
SETTINGS = {
  "steps": flags.DEFINE_integer("steps", DEFAULT.steps, "Sampling steps."),
  "ssr_steps": flags.DEFINE_integer(
    "ssr_steps", DEFAULT.ssr_steps, "Of super-resolution; 0: as --steps."
  ),
  "sampler": flags.DEFINE_string(
    "sampler", DEFAULT.sampler, "ddpm, ddim, dpmpp_2m or heun."
  ),
  "guidance_scale": flags.DEFINE_float(
    "guidance_scale", DEFAULT.guidance_scale, "1 follows the prompt as trained."
  ),
  "ssr_guidance_scale": flags.DEFINE_float(
    "ssr_guidance_scale", DEFAULT.ssr_guidance_scale, "Of super-resolution."
  ),
  "guidance_rescale": flags.DEFINE_float(
    "guidance_rescale",
    DEFAULT.guidance_rescale,
    "How far guided frames keep their contrast, 0 to 1.",
  ),
  "guidance_interval": flags.DEFINE(
    Interval(),
    "guidance_interval",
    "{:g},{:g}".format(*DEFAULT.guidance_interval),
    "LOW,HIGH: guides between these schedule times alone; 1 is pure noise.",
  ),
  "oscillate_after": flags.DEFINE_integer(
    "oscillate_after",
    DEFAULT.oscillate_after,
    "Steps before guidance alternates with --oscillate_low; -1: never.",
  ),
  "oscillate_low": flags.DEFINE_float(
    "oscillate_low", DEFAULT.oscillate_low, "The lower guidance scale."
  ),
  "num_frames": flags.DEFINE_integer(
    "num_frames", DEFAULT.num_frames, "Length; 0: as trained."
  ),
  "window": flags.DEFINE_integer(
    "window",
    DEFAULT.window,
    "Frames the last stage sees at once; 0: trained.",
  ),
  "overlap": flags.DEFINE_integer(
    "overlap", DEFAULT.overlap, "Least frames shared by neighbouring windows."
  ),
  "windows_at_once": flags.DEFINE_integer(
    "windows_at_once", DEFAULT.windows_at_once, "Windows denoised together."
  ),
  "noise_level": flags.DEFINE_float(
    "noise_level", DEFAULT.noise_level, "Noise on what super-resolution sees."
  ),
  "percentile": flags.DEFINE_float(
    "percentile", DEFAULT.percentile, "Of dynamic thresholding, 0 to 1."
  ),
  "max_value": flags.DEFINE_float(
    "max_value", DEFAULT.max_value, "Largest threshold; 1: static clipping."
  ),
}


def main(argv: list[str]) -> None:
  """Reads the flags and makes the video."""
  del argv
  settings = Settings(**{name: flag.value for name, flag in SETTINGS.items()})
  fulfil(
    Request(
      models=tuple(MODEL.value),
      task=TASK.value,
      prompt=PROMPT.value,
      negative_prompt=NEGATIVE.value,
      seed=SEED.value,
      out=OUT.value,
      contact_sheet=CONTACT_SHEET.value,
      settings=settings,
      adapters=tuple(ADAPTER.value),
      adapter_scale=ADAPTER_SCALE.value,
    )
  )


if __name__ == "__main__":
  cli.run(main)
