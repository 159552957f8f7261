"""The text encoder in configs and bundles, and what "no caption" is."""

from pathlib import Path

import numpy as np

from lumiere_jax.data.text import TextEncoder
from lumiere_jax.io import bundle as bundles
from lumiere_jax.io import safetensors
from lumiere_jax.io.atomic import writing
from lumiere_jax.models.inflate import flatten, unflatten
from lumiere_jax.models.t5 import T5Config
from lumiere_jax.models.tokenizer import Tokenizer
from lumiere_jax.typing import UserError, build


def open_text_encoder(
  tokenizer: str,
  weights: str,
  max_length: int,
  dtype: str = "float32",
  cleaning: str = "none",
) -> TextEncoder:
  """The text encoder that a config names.

  Args:
    tokenizer: sentencepiece model; '' is spiece.model beside the weights, or
      the built-in one.
    weights: T5 v1.1 weights under Hugging Face names or T5X's, or a bundle or
      workdir, whose encoder it takes as it is; '' is a small encoder of fixed
      random weights.
    max_length: tokens.
    dtype: of the weights, "float32" or "bfloat16".
    cleaning: of captions, see `lumiere_jax.data.cleaning`.

  Raises:
    UserError: a file is missing or does not fit.
  """
  options = {
    "max_length": max_length,
    "dtype": dtype,
    "tokenizer": tokenizer or None,
    "cleaning": cleaning,
  }
  if weights and bundles.is_bundle(weights):
    return text_encoder_of(bundles.open_bundle(weights, "config.text.weights"))
  if weights:
    return TextEncoder.pretrained(weights, **options)
  return TextEncoder.random(**options)


def write_text_part(folder: Path, encoder: TextEncoder) -> bundles.Part:
  """Writes the encoder into a bundle unless it is there already."""
  tokenizer = f"tokenizer-{encoder.tokenizer.sha256[:16]}.model"
  tensors = f"text-{encoder.identity[:16]}.safetensors"
  if not (folder / tokenizer).exists():
    with writing(folder / tokenizer) as file:
      file.write(encoder.tokenizer.to_bytes())
  if not (folder / tensors).exists():
    safetensors.save(folder / tensors, flatten(encoder.params))
  meta = {
    "identity": encoder.identity,
    "max_length": encoder.tokenizer.max_length,
    "config": vars(encoder.config),
  }
  if encoder.cleaning != "none":  # as in bundles of before there was any
    meta["cleaning"] = encoder.cleaning
  return bundles.Part(
    meta=meta,
    tensors=(tensors,),
    files={"tokenizer": tokenizer},
  )


def text_encoder_of(bundle: bundles.Bundle) -> TextEncoder:
  """The text encoder in a bundle.

  Raises:
    UserError: it has none, or its files are missing or damaged.
  """
  if bundles.TEXT not in bundle.parts:
    raise UserError(
      f"{bundle.folder} holds no text encoder; name a bundle that does"
    )
  meta = bundle.parts[bundles.TEXT].meta
  return TextEncoder(
    Tokenizer(bundle.file(bundles.TEXT, "tokenizer"), meta["max_length"]),
    build(T5Config, meta["config"], f"{bundle.folder}: parts.text.meta.config"),
    unflatten(bundle.load(bundles.TEXT)),
    meta.get("cleaning", "none"),
  )


def null_text(encoder: TextEncoder, kind: str) -> tuple[np.ndarray, np.ndarray]:
  """What stands for "no caption": text (l, e) and mask (l,).

  Args:
    encoder: the text encoder.
    kind: 'zeros' (Imagen: embeddings of zero, all counted) or 'empty' (IF:
      the encoding of the empty caption).
  """
  text, mask = encoder.encode([""])
  if kind == "zeros":
    return np.zeros_like(text[0]), np.ones_like(mask[0])
  return text[0], mask[0]
