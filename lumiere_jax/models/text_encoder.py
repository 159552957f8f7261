"""Text encoders: a tokenizer and T5, from weight files, configs and bundles."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from lumiere_jax.errors import UserError, build, check_choice, option
from lumiere_jax.models.caption_cleaning import CLEANINGS
from lumiere_jax.models.importers.t5_hf import open_hf
from lumiere_jax.models.importers.t5x import is_t5x, open_t5x
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5_SIZES, T5Config, T5Encoder, init_params
from lumiere_jax.models.tokenizer import Tokenizer, default_tokenizer_path
from lumiere_jax.parallel.backend import compiler_options
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import writing
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import Params

Text = Float[np.ndarray, "b l e"]
Mask = Bool[np.ndarray, "b l"]

_MAX_UNUSED = 128  # Embedding rows beyond the pieces of the right tokenizer.


class TextEncoder:
  """A tokenizer and a T5 encoder.

  Features depend on the caption only: captions are encoded one at a time, so
  that neither the batch nor the place in it matters.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    config: T5Config,
    params: Params,
    cleaning: str = "none",
  ):
    """Moves the parameters to the default device unless they are on one.

    Args:
      tokenizer: the one that the encoder was trained with; gives (b, l) ids, l
        its `max_length`.
      config: of the T5 encoder.
      params: its parameters; lazy ones are read one at a time.
      cleaning: of captions before tokenization, one of `CLEANINGS`.
    """
    check_choice("cleaning", cleaning, CLEANINGS)
    if tokenizer.vocab_size > config.vocab_size:
      raise UserError(
        f"{tokenizer.path}:",
        f"the tokenizer's {tokenizer.vocab_size} pieces exceed the "
        f"encoder's vocab_size of {config.vocab_size}",
        "use the tokenizer that belongs to the encoder",
      )
    self.tokenizer = tokenizer
    self.config = config
    self.cleaning = cleaning
    self.params = jax.tree.map(_on_device, params)
    self._apply = jax.jit(
      lambda p, *inputs: T5Encoder(config).apply({"params": p}, *inputs),
      compiler_options=compiler_options(jax.default_backend()),
    )

  @classmethod
  def random(
    cls,
    size: str = "tiny",
    max_length: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    tokenizer: str | os.PathLike | None = None,
    cleaning: str = "none",
  ) -> "TextEncoder":
    """An untrained encoder, by default with the built-in tokenizer."""
    check_choice("size of T5", size, T5_SIZES)
    config = dataclasses.replace(T5_SIZES[size], dtype=dtype)
    pieces = Tokenizer(tokenizer or default_tokenizer_path(), max_length)
    return cls(pieces, config, init_params(config, seed), cleaning)

  @classmethod
  def pretrained(
    cls,
    source: str | os.PathLike,
    max_length: int = 77,
    dtype: str = "float32",
    tokenizer: str | os.PathLike | None = None,
    cleaning: str = "none",
  ) -> "TextEncoder":
    """Published weights with their tokenizer; see `open_t5` for both formats.

    By default the tokenizer is spiece.model beside the weights, or in a folder
    `tokenizer` beside their folder.
    """
    config, leaves = open_t5(source, dtype)
    pieces = Tokenizer(tokenizer or _find_tokenizer(source), max_length)
    if config.vocab_size - pieces.vocab_size > _MAX_UNUSED:
      raise UserError(
        f"{pieces.path}:",
        f"the tokenizer has {pieces.vocab_size} pieces, far fewer than "
        f"the {config.vocab_size} embeddings of {source}",
        "use the tokenizer that belongs to the encoder",
      )
    return cls(pieces, config, unflatten(leaves), cleaning)

  @functools.cached_property
  def identity(self) -> str:
    """A hash of everything that features depend on besides the caption.

    It covers tokenizer, weights, config, length and cleaning. Takes about one
    second per 2 GB of weights.
    """
    parts = {
      "tokenizer": self.tokenizer.sha256,
      "max_length": self.tokenizer.max_length,
      "config": dataclasses.asdict(self.config),
      "params": safetensors.content_hash(flatten(self.params)),
    }
    if self.cleaning != "none":  # Keeps the hashes of older bundles valid.
      parts["cleaning"] = self.cleaning
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def offload(self) -> None:
    """Moves the weights to the host until `encode` is called again."""
    self.params = jax.device_get(self.params)

  def with_params(self, params: Params) -> "TextEncoder":
    """The same encoder with other parameters."""
    return TextEncoder(self.tokenizer, self.config, params, self.cleaning)

  def tokenize(self, captions: Sequence[str]) -> tuple[np.ndarray, Mask]:
    """Cleans captions and gives their token ids (b, l) and mask (b, l)."""
    clean = CLEANINGS[self.cleaning]
    return self.tokenizer.encode([clean(c) for c in captions])

  def encode(self, captions: Sequence[str]) -> tuple[Text, Mask]:
    """Features (b, l, e) float32 of captions, and their mask (b, l).

    Warns when it truncates a caption, see `Tokenizer.encode`.
    """
    check_captions(captions)
    self.params = jax.tree.map(jnp.asarray, self.params)  # If offloaded.
    tokens, mask = self.tokenize(captions)
    # One by one, as XLA rounds differently for different batch sizes. The calls
    # are asynchronous, so that only small encoders lose speed.
    rows = [
      self._apply(
        self.params, *jax.device_put((tokens[i, None], mask[i, None]))
      )
      for i in range(len(captions))
    ]
    shape = (len(rows), self.tokenizer.max_length, self.config.d_model)
    text = np.array(jax.device_get(rows), np.float32).reshape(shape)
    return text, mask


def check_captions(captions: Iterable[str]) -> None:
  """Checks that captions are not one string, a sequence of letters."""
  if isinstance(captions, str):
    raise TypeError("give a sequence of captions, not one caption")


def null_text(encoder: TextEncoder, kind: str) -> tuple[np.ndarray, np.ndarray]:
  """The conditioning that stands for "no caption": text (l, e) and mask (l,).

  `kind` is 'zeros' (Imagen: zero embeddings, all unmasked) or 'empty' (IF: the
  encoding of the empty caption).
  """
  text, mask = encoder.encode([""])
  if kind == "zeros":
    return np.zeros_like(text[0]), np.ones_like(mask[0])
  return text[0], mask[0]


# Weight files and configs.


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
    weights: T5 v1.1 weights in the format of Hugging Face or T5X; or a bundle
      or workdir, whose encoder is used as it is; '' is a small encoder of fixed
      random weights.
    max_length, dtype, cleaning: see `TextEncoder` and `T5Config`.
  """
  if weights and bundles.is_bundle(weights):
    return text_encoder_of(bundles.open_bundle(weights, "config.text.weights"))
  if weights:
    make = functools.partial(TextEncoder.pretrained, weights)
  else:
    make = functools.partial(TextEncoder.random)
  return make(
    max_length=max_length,
    dtype=dtype,
    tokenizer=tokenizer or None,
    cleaning=cleaning,
  )


def open_t5(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, dict[str, LazyArray]]:
  """Opens T5 v1.1 weights; gives the config and the leaves of `T5Encoder`.

  Nothing is read yet. `source` is a folder or file of safetensors with
  config.json (Hugging Face), or the folder or msgpack file of a T5X checkpoint.
  Weights are converted to `dtype`, "float32" or "bfloat16".
  """
  return (open_t5x if is_t5x(source) else open_hf)(source, dtype)


def _find_tokenizer(source: str | os.PathLike) -> Path:
  """The tokenizer that was published with some weights."""
  source = Path(source).absolute()
  folder = source if source.is_dir() else source.parent
  name = "spiece.model"
  for path in (folder / name, folder.parent / "tokenizer" / name):
    if path.is_file():
      return path
  raise UserError(
    f"{folder}:",
    f"has no {name}, nor is there one in tokenizer/ beside it (T5X "
    "checkpoints have none)",
    f"name the encoder's own with {option('tokenizer')} or "
    "config.text.tokenizer",
  )


def _on_device(leaf: Any) -> jax.Array:
  return jnp.asarray(np.asarray(leaf) if isinstance(leaf, LazyArray) else leaf)


# Bundles.


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
  if encoder.cleaning != "none":  # Older bundles do not have this key.
    meta["cleaning"] = encoder.cleaning
  return bundles.Part(
    meta=meta, tensors=(tensors,), files={"tokenizer": tokenizer}
  )


def text_encoder_of(bundle: bundles.Bundle) -> TextEncoder:
  """The text encoder in a bundle."""
  if bundles.TEXT not in bundle.parts:
    raise UserError(
      f"{bundle.folder}:", "holds no text encoder", "name a bundle that does"
    )
  meta = bundle.parts[bundles.TEXT].meta
  return TextEncoder(
    Tokenizer(bundle.file(bundles.TEXT, "tokenizer"), meta["max_length"]),
    build(T5Config, meta["config"], f"{bundle.folder}: parts.text.meta.config"),
    unflatten(bundle.load(bundles.TEXT)),
    meta.get("cleaning", "none"),
  )
