"""Prepares a folder of captioned videos or pictures for training.

python -m lumiere_jax.prepare --input=DIR_OF_VIDEOS --out=DIR

Then train with --config.data.source=prepared --config.data.path=DIR. Run it
again to resume it, or to process what has changed.

To see the data before training, or before preparing it:

python -m lumiere_jax.prepare --input=DIR_OF_VIDEOS --preview=DIR_OF_PAGE

With one of --tokenizer, --text_weights, --text_dtype, --cleaning or
--max_length, text features are stored too; they are as in config.text.
"""

import dataclasses
from pathlib import Path

from lumiere_jax import cli
from lumiere_jax.data.caption_command import CaptionCommand
from lumiere_jax.data.preprocess import Options, check_out, prepare
from lumiere_jax.data.preview import (
  PreviewOptions,
  check_preview,
  write_preview,
)
from lumiere_jax.flags import define, read, values
from lumiere_jax.models.text_encoder import open_text_encoder
from lumiere_jax.training.config import TextConfig

OPTIONS = define(Options)
CAPTIONS = define(CaptionCommand)
PREVIEW = define(PreviewOptions)
TEXT = define(
  TextConfig,
  only=("tokenizer", "weights", "dtype", "cleaning", "max_length"),
  names={"weights": "text_weights", "dtype": "text_dtype"},
)


def main(argv: list[str]) -> None:
  """Reads the flags and prepares the folder."""
  del argv
  preview = read(PreviewOptions, PREVIEW)
  command = read(CaptionCommand, CAPTIONS)
  given = values(OPTIONS)
  if preview.preview and not given["out"]:
    options = Options(**given | {"out": preview.preview})
    write_preview(options, preview, need_captions=not command.words)
    return
  options = Options(**given)
  check_out(Path(options.out))  # before the text encoder is loaded
  if preview.preview:
    check_preview(options, preview)
  with_text = any(flag.present for flag in TEXT.values())
  encoder = open_text_encoder(**values(TEXT)) if with_text else None
  prepare(options, encoder, command if command.words else None)
  if preview.preview:
    write_preview(dataclasses.replace(options, input=options.out), preview)


if __name__ == "__main__":
  cli.run(main)
