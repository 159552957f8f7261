"""The flags of how videos are sampled, for the entry modules that ask."""

from absl import flags

from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.pipelines.settings import Settings

DEFAULT = Settings()
Flags = dict[str, flags.FlagHolder]


class Interval(flags.ArgumentParser):
  """LOW,HIGH as two numbers."""

  def parse(self, argument: str) -> tuple[float, float]:
    """Absl reports the ValueError with the flag's name and value."""
    try:
      low, high = map(float, argument.split(","))
    except ValueError as error:
      raise ValueError("two numbers are needed, such as 0.2,0.8") from error
    return low, high


class MeshParser(flags.ArgumentParser):
  """DATA,FSDP,SPACE as a `MeshConfig`."""

  def parse(self, argument: str | MeshConfig | None) -> MeshConfig | None:
    """Absl reports the ValueError with the flag's name and value."""
    if not isinstance(argument, str):
      return argument
    try:
      data, fsdp, space = map(int, argument.split(","))
    except ValueError as error:
      raise ValueError("three numbers are needed, such as 4,1,2") from error
    return MeshConfig(data=data, fsdp=fsdp, space=space)


def read_settings(holders: Flags) -> Settings:
  """What the flags say.

  Raises:
    UserError: a value is out of range.
  """
  return Settings(**{name: flag.value for name, flag in holders.items()})


def settings_flags() -> Flags:
  """Defines a flag for each of `Settings`; read them by `read_settings`."""
  return {
    "steps": flags.DEFINE_integer(
      "steps", DEFAULT.steps, "Sampling steps; default: the model's."
    ),
    "ssr_steps": flags.DEFINE_integer(
      "ssr_steps",
      DEFAULT.ssr_steps,
      "Of super-resolution; default: as --steps.",
    ),
    "sampler": flags.DEFINE_string(
      "sampler",
      DEFAULT.sampler,
      "ddpm, ddim, dpmpp_2m or heun; default: the model's.",
    ),
    "guidance_scale": flags.DEFINE_float(
      "guidance_scale",
      DEFAULT.guidance_scale,
      "1 follows the prompt as trained.",
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
