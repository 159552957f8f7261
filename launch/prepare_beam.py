"""Prepares videos for training on many machines, with Apache Beam.

python launch/prepare_beam.py --input=DIR_OR_URL --output=DIR_OR_URL

The flags are those of lumiere_jax.prepare; unknown flags go to Beam, such as
--runner=DataflowRunner --project=... The output is that of lumiere_jax.prepare,
always with text features: train with --config.data.source=prepared
--config.data.path=OUTPUT. A second run resumes, or processes what has changed.
Needs the `beam` extra.
"""

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


import functools

from absl import flags

from lumiere_jax import cli
from lumiere_jax.errors import UserError, suggest
from lumiere_jax.flags import read, values
from lumiere_jax.models.text_encoder import open_text_encoder
from lumiere_jax.prepare import OPTIONS, TEXT
from lumiere_jax.training.config import TextConfig

flags.DEFINE_alias("output", "out")


def split_flags(argv: list[str]) -> tuple[list[str], list[str]]:
  """Our arguments and Beam's; an argument without -- follows its flag."""
  ours, beams = argv[:1], []
  side = ours
  for word in argv[1:]:
    if word.startswith("-"):
      name = word.lstrip("-").partition("=")[0]
      known = {*flags.FLAGS, "help", "helpfull", "helpshort"}
      side = ours if name in known else beams
    side.append(word)
  return ours, beams


def with_local_runner(beams: list[str]) -> list[str]:
  """Beam's arguments, checked and completed unless another runner is named."""
  from apache_beam.options import pipeline_options as known

  options = known.PipelineOptions(beams)
  runner = options.view_as(known.StandardOptions).runner
  if runner not in (None, "DirectRunner"):
    return beams  # other runners have flags of their own
  named = known.PipelineOptions([]).get_all_options()
  for word in beams:
    name = word.lstrip("-").partition("=")[0]
    if word.startswith("-") and name not in named:
      raise UserError(
        word,
        "is not a flag of this program or of Beam"
        + suggest(name, [*OPTIONS, *TEXT, "output", *named]),
        "see --help",
      )
  # Beam's DirectRunner would first try to download a server.
  return [*beams, "--runner=FnApiRunner"]


def main(argv: list[str], beams: list[str]) -> None:
  """Reads the flags and runs the pipeline."""
  del argv
  try:
    from lumiere_jax.data.preprocess_beam import ScaleOptions, prepare_at_scale
  except ModuleNotFoundError as error:
    if error.name != "apache_beam":
      raise
    raise UserError(
      "apache_beam",
      "is not installed",
      "pip install 'lumiere_jax[beam]', or use lumiere_jax.prepare, which does "
      "the same on one machine",
    ) from error
  options = read(ScaleOptions, OPTIONS)
  text = values(TEXT)
  TextConfig(**text)  # says what is out of range
  open_encoder = functools.partial(open_text_encoder, **text)
  prepare_at_scale(options, open_encoder, with_local_runner(beams))


if __name__ == "__main__":
  sys.argv, beams = split_flags(sys.argv)
  cli.run(functools.partial(main, beams=beams))
