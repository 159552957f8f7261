"""Command-line flags that several entry modules share."""

import contextlib
from typing import TypeVar

from absl import flags

from lumiere_jax.inference.settings import Settings
from lumiere_jax.parallel import distributed
from lumiere_jax.parallel.mesh import MeshConfig

Flags = dict[str, flags.FlagHolder]


def host_flags() -> Flags:
  """Defines them; read them by `joined`."""
  return {
    "coordinator": flags.DEFINE_string(
      "coordinator",
      None,
      "HOST:PORT of process 0, where several processes are started by hand; "
      "default: LUMIERE_COORDINATOR, else what SLURM or the TPU says, else "
      "alone.",
    ),
    "num_processes": flags.DEFINE_integer(
      "num_processes",
      None,
      "Processes of the run, with --coordinator; default: "
      "LUMIERE_NUM_PROCESSES.",
    ),
    "process_id": flags.DEFINE_integer(
      "process_id",
      None,
      "Number of this process, from 0; default: LUMIERE_PROCESS_ID, else "
      "JOB_COMPLETION_INDEX.",
    ),
  }


def joined(holders: Flags) -> contextlib.AbstractContextManager[None]:
  """`hosts.joined` as the flags say."""
  return distributed.joined(
    **{name: flag.value for name, flag in holders.items()}
  )


DEFAULT = Settings()


T = TypeVar("T")


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


class SizeParser(flags.ArgumentParser):
  """HEIGHT,WIDTH as two whole numbers."""

  def parse(self, argument: str | tuple | None) -> tuple[int, int] | None:
    """Absl reports the ValueError with the flag's name and value."""
    if not isinstance(argument, str):
      return argument
    try:
      height, width = map(int, argument.split(","))
    except ValueError as error:
      raise ValueError("two numbers are needed, such as 128,384") from error
    return height, width


def fields_of(cls: type[T], holders: Flags) -> T:
  """The dataclass that flags of its fields' names say."""
  return cls(**{name: flag.value for name, flag in holders.items()})


def read_settings(holders: Flags) -> Settings:
  """What the flags say.

  Raises:
    UserError: a value is out of range.
  """
  return fields_of(Settings, holders)


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
    "grid": flags.DEFINE_string(
      "grid",
      DEFAULT.grid,
      "Noise levels of the steps: log_snr, karras, trailing, schedule, or a "
      "list of log-SNRs such as -inf,-8,-4,0,4; default: the model's.",
    ),
    "ssr_grid": flags.DEFINE_string(
      "ssr_grid",
      DEFAULT.ssr_grid,
      "Of super-resolution; default: as --grid, if that is a name.",
    ),
    "log_snr_min": flags.DEFINE_float(
      "log_snr_min",
      DEFAULT.log_snr_min,
      "First level of the base after pure noise (log_snr, karras).",
    ),
    "log_snr_max": flags.DEFINE_float(
      "log_snr_max",
      DEFAULT.log_snr_max,
      "Last and cleanest level of the base (log_snr, karras).",
    ),
    "shift": flags.DEFINE_float(
      "shift",
      DEFAULT.shift,
      "Added to the base's noise levels; below 0 is more noise.",
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
    "size": flags.DEFINE(
      SizeParser(),
      "size",
      None,
      "HEIGHT,WIDTH of the finished video in pixels; default: as trained. "
      "Larger frames are seen in windows.",
    ),
    "tile_overlap": flags.DEFINE_float(
      "tile_overlap",
      DEFAULT.tile_overlap,
      "Share of such a window that neighbours have in common.",
    ),
    "window": flags.DEFINE_integer(
      "window",
      DEFAULT.window,
      "Frames the last stage sees at once; 0: trained.",
    ),
    "overlap": flags.DEFINE_integer(
      "overlap", DEFAULT.overlap, "Least frames shared by neighbouring windows."
    ),
    "window_batch": flags.DEFINE_integer(
      "window_batch", DEFAULT.window_batch, "Windows denoised together."
    ),
    "frame_chunk": flags.DEFINE_integer(
      "frame_chunk",
      DEFAULT.frame_chunk,
      "Frames that spatial layers work on at once; 0: all.",
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


def inputs_flags() -> Flags:
  """Defines a flag for each of `tasks.Inputs`; read them by `fields_of`."""
  # Here, so that an entry module that takes settings alone imports no tasks.
  from lumiere_jax.inference.tasks import Inputs

  default = Inputs()
  text = lambda name, words: flags.DEFINE_string(name, "", words)
  number = lambda name, words: flags.DEFINE_integer(
    name, getattr(default, name), words
  )
  return {
    "image": text("image", "Picture to begin with, of any size."),
    "last_image": text("last_image", "Picture to end with."),
    "video": text("video", "Video to work on, of any size and frame rate."),
    "mask": text("mask", "Picture or video: white where pixels are made anew."),
    "box": text(
      "box", "x0,y0,x1,y1 in pixels of the picture or video, for a mask."
    ),
    "expand": text("expand", "left,top,right,bottom pixels to add around."),
    "feather": number("feather", "Pixels over which the edge fades."),
    "strength": flags.DEFINE_float(
      "strength",
      default.strength,
      "How much noise the video gets, above 0 to 1; 1 keeps nothing of it.",
    ),
    "times": number("times", "How often the video is gone on with."),
    "context": number("context", "Last frames that are gone on from."),
    "width": number("width", "Of a panorama, in pixels."),
    "uncomposited": flags.DEFINE_bool(
      "uncomposited",
      default.uncomposited,
      "Leaves given pixels as the model made them.",
    ),
  }


def output_flags() -> Flags:
  """Defines a flag for each of `requests.Output`."""
  return {
    "out": flags.DEFINE_string(
      "out",
      "",
      "File: .mp4, .webm, .gif or .npy, or FOLDER/ of png files; of a picture "
      ".png or .jpg; of several a folder. Without it a name is made.",
    ),
    "format": flags.DEFINE_string(
      "format", "", "Ending of several files in a folder; default mp4 or png."
    ),
    "overwrite": flags.DEFINE_bool(
      "overwrite", False, "Replaces what is there already."
    ),
    "contact_sheet": flags.DEFINE_string(
      "contact_sheet", "", "Picture of frames side by side: .png or .jpg."
    ),
    "preview_every": flags.DEFINE_integer(
      "preview_every", 0, "Steps between pictures of what is being made."
    ),
  }
