"""Brings weights in, and takes them out.

In, into the bundle --out, which is made or added to:

python -m lumiere_jax.convert --from=diffusers --src=IF_UNET_DIR --out=DIR
python -m lumiere_jax.convert --from=t5 --src=T5_DIR --cleaning=if --out=DIR
python -m lumiere_jax.convert --from=diffusers --src=IF_UNET_DIR --out=DIR \
    --inflate --temporal=configs/base.py

Out:

python -m lumiere_jax.convert --from=workdir --src=RUN --out=DIR
python -m lumiere_jax.convert --from=bundle --src=DIR --stage=t2i \
    --to=diffusers --out=DIR
python -m lumiere_jax.convert --from=bundle --src=DIR --to=stablehlo --out=DIR

docs/weights.md says what each of them reads, writes and refuses.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.config_files import define_config
from lumiere_jax.conversion.convert import SOURCES, TARGETS, Conversion, convert
from lumiere_jax.errors import UserError
from lumiere_jax.flags import read_settings, settings_flags
from lumiere_jax.training.config import Experiment, TextConfig

SOURCE = flags.DEFINE_string("from", "", f"One of {', '.join(SOURCES)}.")


TARGET = flags.DEFINE_string("to", "bundle", f"One of {', '.join(TARGETS)}.")


SRC = flags.DEFINE_multi_string(
  "src", [], "Folder to read; give it again to put several bundles together."
)


OUT = flags.DEFINE_string("out", "", "Folder to write.")


VARIANT = flags.DEFINE_string(
  "variant", "", "Of diffusers weights, such as fp16."
)


SCHEDULER = flags.DEFINE_string(
  "scheduler", "", "scheduler_config.json, where it is not beside the weights."
)


STAGE = flags.DEFINE_string("stage", "", "Stage to take, where there are more.")


LICENCE = flags.DEFINE_string("licence", "", "Of imported weights.")


HALF = flags.DEFINE_bool(
  "half", False, "Write weights in float16: half the size, for sampling."
)


INFLATE = flags.DEFINE_bool(
  "inflate", False, "Make the video model that training starts from."
)


TEMPORAL = define_config(
  "temporal", None, "Config whose temporal layers and clips it has."
)


ADAPTER = flags.DEFINE_multi_string(
  "adapter", [], "Low-rank adapter to merge; see sample."
)


ADAPTER_SCALE = flags.DEFINE_float(
  "adapter_scale", 1.0, "How much of the adapters; 1 is as trained."
)


TEXT = {
  "tokenizer": flags.DEFINE_string(
    "tokenizer", "", "Of a text encoder; default: spiece.model beside it."
  ),
  "max_length": flags.DEFINE_integer(
    "max_length", TextConfig.max_length, "Tokens of a text encoder."
  ),
  "dtype": flags.DEFINE_string(
    "dtype", TextConfig.dtype, "Of a text encoder: float32 or bfloat16."
  ),
  "cleaning": flags.DEFINE_string(
    "cleaning", TextConfig.cleaning, "Of captions: none, lower or if."
  ),
}


SETTINGS = settings_flags()


BATCH = flags.DEFINE_integer("batch", 1, "Videos an artefact makes at once.")


def main(argv: list[str]) -> None:
  """Reads the flags and converts."""
  del argv
  convert(
    Conversion(
      source=SOURCE.value,
      target=TARGET.value,
      src=tuple(SRC.value),
      out=OUT.value,
      variant=VARIANT.value,
      scheduler=SCHEDULER.value,
      stage=STAGE.value,
      temporal=_temporal(),
      adapters=tuple(ADAPTER.value),
      adapter_scale=ADAPTER_SCALE.value,
      licence=LICENCE.value,
      half=HALF.value,
      text=TextConfig(**{name: flag.value for name, flag in TEXT.items()}),
      settings=read_settings(SETTINGS),
      batch=BATCH.value,
    )
  )


def _temporal() -> Experiment | None:
  if not INFLATE.value:
    return None
  if TEMPORAL.value is None:
    raise UserError(
      "--inflate needs --temporal=configs/base.py, or configs/ssr.py for "
      "super-resolution"
    )
  return Experiment.from_config(cli.config_value(TEMPORAL))


if __name__ == "__main__":
  cli.run(main)
