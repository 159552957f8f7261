"""Prepares a folder of captioned videos or pictures for training.

python -m lumiere_jax.prepare --input=DIR_OF_VIDEOS --out=DIR

Then train with --config.data.source=prepared --config.data.path=DIR. Run it
again to go on where it was stopped, or to take in what has changed.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.media.video_reader import RESAMPLING
from lumiere_jax.models.text_encoder import open_text_encoder
from lumiere_jax.training.config import TextConfig

OPTIONS = {
  "input": flags.DEFINE_string(
    "input", "", "Folder of captioned videos or pictures, or its URL."
  ),
  "out": flags.DEFINE_string("out", "", "Folder to prepare."),
  "fps": flags.DEFINE_float("fps", Options.fps, "Frames per second."),
  "side": flags.DEFINE_integer(
    "side",
    Options.side,
    "Shorter side in pixels; what is smaller stays as it is.",
  ),
  "num_frames": flags.DEFINE_integer(
    "num_frames",
    Options.num_frames,
    "Videos of fewer frames, at --fps, are dropped; so are pictures if above "
    "1.",
  ),
  "max_seconds": flags.DEFINE_float(
    "max_seconds",
    Options.max_seconds,
    "Longer videos are parted into clips of equal length; 0: none is.",
  ),
  "scene_cuts": flags.DEFINE_float(
    "scene_cuts",
    Options.scene_cuts,
    "Change between frames, in grey levels, that counts as a cut; 0 is off.",
  ),
  "min_motion": flags.DEFINE_float(
    "min_motion",
    Options.min_motion,
    "Videos that change less, in grey levels, are dropped; 0 is off.",
  ),
  "min_fps_ratio": flags.DEFINE_float(
    "min_fps_ratio",
    Options.min_fps_ratio,
    "Videos of a lower frame rate than this share of --fps are dropped; 0: "
    "none is, frames come more than once.",
  ),
  "resample": flags.DEFINE_enum(
    "resample",
    Options.resample,
    RESAMPLING,
    "Frames at another rate: the one on screen, or the two around it blended.",
  ),
  "crf": flags.DEFINE_integer(
    "crf",
    Options.crf,
    "Quality of H.264, 1 (best) to 51; 17 looks like the original.",
  ),
  "prompts": flags.DEFINE_string(
    "prompts", "", "File of 'label|prompt' lines for folders of classes."
  ),
  "cache": flags.DEFINE_string(
    "cache",
    "",
    "Folder for copies of remote files, and for what was found in videos.",
  ),
  "threads": flags.DEFINE_integer("threads", 0, "0: as many as cores."),
}


TEXT = {
  "tokenizer": flags.DEFINE_string(
    "tokenizer", "", "As config.text.tokenizer."
  ),
  "weights": flags.DEFINE_string("text_weights", "", "As config.text.weights."),
  "dtype": flags.DEFINE_string(
    "text_dtype", TextConfig.dtype, "As config.text.dtype."
  ),
  "cleaning": flags.DEFINE_string(
    "cleaning", TextConfig.cleaning, "As config.text.cleaning."
  ),
  "max_length": flags.DEFINE_integer(
    "max_length",
    TextConfig.max_length,
    "As config.text.max_length. With this or one of the four above, text "
    "features are stored too.",
  ),
}


def main(argv: list[str]) -> None:
  """Reads the flags and prepares the folder."""
  del argv
  options = Options(**{name: flag.value for name, flag in OPTIONS.items()})
  encoder = None
  if any(flag.present for flag in TEXT.values()):
    encoder = open_text_encoder(**{k: flag.value for k, flag in TEXT.items()})
  prepare(options, encoder)


if __name__ == "__main__":
  cli.run(main)
