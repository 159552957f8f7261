"""Imports and exports weights.

Import into the bundle --out, which is created or added to:

python -m lumiere_jax.convert --from=diffusers --src=IF_UNET_DIR --out=DIR
python -m lumiere_jax.convert --from=t5 --src=T5_DIR --cleaning=if --out=DIR
python -m lumiere_jax.convert --from=diffusers --src=IF_UNET_DIR --out=DIR \
    --inflate --temporal=configs/base.py

Export:

python -m lumiere_jax.convert --from=workdir --src=RUN --out=DIR
python -m lumiere_jax.convert --from=bundle --src=DIR --stage=t2i \
    --to=diffusers --out=DIR
python -m lumiere_jax.convert --from=bundle --src=DIR --to=stablehlo --out=DIR
python -m lumiere_jax.convert --from=workdir --src=RUN --to=hub --out=DIR \
    --repo=OWNER/NAME [--upload]

docs/weights.md lists what each of them reads, writes and rejects.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.config_files import define_config
from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.errors import UserError, option
from lumiere_jax.flags import define, read
from lumiere_jax.inference.settings import Settings
from lumiere_jax.training.config import Experiment, TextConfig

JOB = define(Conversion)
INFLATE = flags.DEFINE_bool(
  "inflate", False, "Make the video model that training starts from."
)
TEMPORAL = define_config(
  "temporal",
  None,
  "Config whose temporal layers and clips the inflated model has.",
)
TEXT = define(TextConfig, only=("tokenizer", "max_length", "dtype", "cleaning"))
SETTINGS = define(Settings)


def main(argv: list[str]) -> None:
  """Reads the flags and converts."""
  del argv
  convert(
    read(
      Conversion,
      JOB,
      temporal=_temporal(),
      text=read(TextConfig, TEXT),
      settings=read(Settings, SETTINGS),
    )
  )


def _temporal() -> Experiment | None:
  if not INFLATE.value:
    return None
  if TEMPORAL.value is None:
    raise UserError(
      option("temporal"),
      f"is missing: {option('inflate')} needs it",
      "give configs/base.py, or configs/ssr.py for super-resolution",
    )
  return Experiment.from_config(cli.config_value(TEMPORAL))


if __name__ == "__main__":
  cli.run(main)
