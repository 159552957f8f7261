"""Captions to T5 features: encoded once, kept on disk by content.

The features of a caption depend on its text alone. Not on its place in a
batch, nor on what else is in it: the encoder sees one caption at a time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import threading
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np
from tqdm import tqdm

from lumiere_jax.data.cleaning import CLEANINGS
from lumiere_jax.io import safetensors
from lumiere_jax.io.lazy import Lazy
from lumiere_jax.models.inflate import flatten, unflatten
from lumiere_jax.models.t5 import T5_SIZES, T5Config, T5Encoder, init_params
from lumiere_jax.models.t5_load import open_t5
from lumiere_jax.models.tokenizer import Tokenizer, default_tokenizer_path
from lumiere_jax.parallel.agree import is_first
from lumiere_jax.parallel.backend import compiler_options
from lumiere_jax.typing import (
  FlatParams,
  Params,
  UserError,
  check_choice,
  suggest,
)

Text = Float[np.ndarray, "b l e"]
Mask = Bool[np.ndarray, "b l"]
Entry = tuple[np.ndarray, np.ndarray]
"""Features (l, e) float32 and mask (l,) bool of one caption."""
_CHUNK = 16  # Captions encoded between two updates of the progress bar.
_MOST_SPARE = 128  # Rows of an embedding beyond its tokenizer's pieces.


class TextEncoder:
  """A tokenizer and a T5 encoder.

  Attributes:
    tokenizer: gives (b, l) ids, l its `max_length`.
    config: of the encoder.
    params: of the encoder, on the device.
    cleaning: of captions before they are tokenized, one of `CLEANINGS`.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    config: T5Config,
    params: Params,
    cleaning: str = "none",
  ):
    """Puts the parameters on the default device, unless they are on one.

    Args:
      tokenizer: the one that the encoder was trained with.
      config: of the encoder.
      params: its parameters; lazy ones are made one at a time.
      cleaning: one of `CLEANINGS`.

    Raises:
      UserError: the tokenizer has more pieces than the encoder embeddings, or
        there is no such cleaning.
    """
    check_choice("cleaning", cleaning, CLEANINGS)
    if tokenizer.vocab_size > config.vocab_size:
      raise UserError(
        f"{tokenizer.path}: the tokenizer's {tokenizer.vocab_size} pieces "
        f"exceed the encoder's vocab_size of {config.vocab_size}; use the "
        "tokenizer that belongs to the encoder"
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
    if size not in T5_SIZES:
      raise UserError(
        f"T5 size: {size!r} is not one of {', '.join(T5_SIZES)}"
        f"{suggest(size, T5_SIZES)}"
      )
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
    """Published weights with the tokenizer that belongs to them.

    Args:
      source: safetensors with config.json, or a T5X checkpoint; see `open_t5`.
      max_length: tokens.
      dtype: "float32" or "bfloat16", what the weights are converted to.
      tokenizer: by default spiece.model beside the weights, or in the folder
        `tokenizer` beside theirs.
      cleaning: one of `CLEANINGS`.

    Raises:
      UserError: files are missing, broken, not T5 v1.1 or not of one model.
    """
    check_choice("cleaning", cleaning, CLEANINGS)
    config, leaves = open_t5(source, dtype)
    pieces = Tokenizer(tokenizer or _find_tokenizer(source), max_length)
    spare = config.vocab_size - pieces.vocab_size
    if spare > _MOST_SPARE:
      raise UserError(
        f"{pieces.path}: the tokenizer has {pieces.vocab_size} pieces, far "
        f"fewer than the {config.vocab_size} that {source} embeds; use the "
        "tokenizer that belongs to the encoder"
      )
    return cls(pieces, config, unflatten(leaves), cleaning)

  @functools.cached_property
  def identity(self) -> str:
    """A hash of all that features depend on: texts aside, they are fixed.

    That is the tokenizer, the weights, the config, the length and, where there
    is any, the cleaning. Takes about a second for every 2 GB of weights.
    """
    flat = flatten(self.params)
    parts = {
      "tokenizer": self.tokenizer.sha256,
      "max_length": self.tokenizer.max_length,
      "config": dataclasses.asdict(self.config),
      "params": safetensors.content_hash(flat),
    }
    if self.cleaning != "none":  # without, identities are as they ever were
      parts["cleaning"] = self.cleaning
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def rest(self) -> None:
    """Takes the weights off the device until the next caption to encode."""
    self.params = jax.device_get(self.params)

  def wearing(self, params: Params) -> "TextEncoder":
    """The same encoder with other parameters."""
    return TextEncoder(self.tokenizer, self.config, params, self.cleaning)

  def tokenize(self, captions: Sequence[str]) -> tuple[np.ndarray, Mask]:
    """Token ids (b, l) and mask (b, l) of captions, cleaned first."""
    clean = CLEANINGS[self.cleaning]
    return self.tokenizer.encode([clean(c) for c in captions])

  def encode(self, captions: Sequence[str]) -> tuple[Text, Mask]:
    """Features and mask (True where a token is real) of each caption.

    Warns of captions that are too long, see `Tokenizer.encode`.

    Returns:
      text, (b, l, e) float32, and mask, (b, l) bool.
    """
    _refuse_one_text(captions)
    self.params = jax.tree.map(jnp.asarray, self.params)  # if at rest
    tokens, mask = self.tokenize(captions)
    # One by one: XLA rounds differently at different batch sizes.
    # The calls queue up on the device, so only small encoders lose speed.
    rows = [
      self._apply(
        self.params, *jax.device_put((tokens[i, None], mask[i, None]))
      )
      for i in range(len(captions))
    ]
    shape = (len(rows), self.tokenizer.max_length, self.config.d_model)
    text = np.array(jax.device_get(rows), np.float32).reshape(shape)
    return text, mask


class Shelf(Protocol):
  """Features that others have made."""

  def find(self, identity: str, caption: str) -> Entry | None:
    """What the encoder of this identity gave for a caption, if it is here."""
    ...


class TextCache:
  """Features looked up in memory, on shelves, on disk; encoded when in none.

  One file per caption, `folder/<identity>/<aa>/<sha256 of the caption>`, that
  is complete or absent: processes may share a folder, and threads a cache. An
  entry holds the hash of its content; one that does not match is encoded again.
  At 77 tokens an entry of the XXL encoder takes 1.3 MB.
  """

  def __init__(
    self,
    encoder: TextEncoder | Callable[[], TextEncoder],
    folder: str | os.PathLike,
    identity: str | None = None,
    memory_bytes: int = 2**30,
    shelves: Sequence[Shelf] = (),
  ):
    """Sets up a cache; nothing is read or encoded yet.

    Args:
      encoder: the encoder, or a function that makes it. The function is called
        when a caption is missing; if `identity` is not given, at first use.
      folder: where entries are kept, those of each encoder by themselves.
      identity: the encoder's, as `identity` told it in an earlier run.
      memory_bytes: how much to keep in memory: what was used last.
      shelves: where to look before the folder; nothing is put on them.
    """
    self._encoder = encoder if isinstance(encoder, TextEncoder) else None
    self._make_encoder = encoder
    self._folder = pathlib.Path(folder)
    self._identity = identity
    self._memory: OrderedDict[str, Entry] = OrderedDict()
    self._memory_left = memory_bytes
    self._shelves = tuple(shelves)
    self._lock = threading.RLock()

  @property
  def identity(self) -> str:
    """The encoder's identity; keep it to open the cache without weights."""
    if self._identity is None:
      self._identity = self._get_encoder().identity
    return self._identity

  def __call__(self, captions: Sequence[str]) -> tuple[Text, Mask]:
    """Features (b, l, e) float32 and mask (b, l) bool; b at least 1.

    Raises:
      UserError: the folder cannot be written, or the encoder is not the one
        that `identity` names.
    """
    _refuse_one_text(captions)
    with self._lock:
      found = {c: self._find(c) for c in captions}
      missing = [c for c, entry in found.items() if entry is None]
      found |= self._encode(missing)
    text, mask = zip(*(found[c] for c in captions), strict=True)
    return np.stack(text), np.stack(mask)

  def fill(self, captions: Iterable[str]) -> int:
    """Encodes the captions that have no valid entry; returns how many."""
    _refuse_one_text(captions)
    with self._lock:
      missing = [c for c in dict.fromkeys(captions) if self._find(c) is None]
      with tqdm(
        total=len(missing),
        desc="encoding captions",
        unit="caption",
        disable=not missing or not is_first(),
      ) as bar:
        for i in range(0, len(missing), _CHUNK):
          bar.update(len(self._encode(missing[i : i + _CHUNK])))
    return len(missing)

  def release(self) -> None:
    """Frees the weights, if a function made them; a miss makes them again."""
    if not isinstance(self._make_encoder, TextEncoder):
      self._encoder = None

  def _get_encoder(self) -> TextEncoder:
    if self._encoder is None:
      self._encoder = self._make_encoder()
    return self._encoder

  def _encode(self, captions: list[str]) -> dict[str, Entry]:
    if not captions:
      return {}
    encoder = self._get_encoder()
    if encoder.identity != self.identity:
      raise UserError(
        f"text cache {self._folder}: made by another encoder than the one "
        "given; give the weights and tokenizer it was made with, or drop the "
        "recorded identity"
      )
    entries = {}
    for caption, *rows in zip(captions, *encoder.encode(captions), strict=True):
      # Copies, so that no entry keeps the whole batch in memory.
      text, mask = entries[caption] = tuple(row.copy() for row in rows)
      flat = {"text": text, "mask": mask}
      path = self._path(caption)
      safetensors.save(path, flat, _proof(path, flat))
      self._remember(caption, (text, mask))
    return entries

  def _find(self, caption: str) -> Entry | None:
    if caption in self._memory:
      self._memory.move_to_end(caption)
      return self._memory[caption]
    found = (shelf.find(self.identity, caption) for shelf in self._shelves)
    entry = next((e for e in found if e is not None), None)
    if entry is None:
      entry = _read_entry(self._path(caption))
    if entry is not None:
      self._remember(caption, entry)
    return entry

  def _remember(self, caption: str, entry: Entry) -> None:
    self._memory[caption] = entry
    self._memory_left -= _size(entry)
    while self._memory_left < 0:
      self._memory_left += _size(self._memory.popitem(last=False)[1])

  def _path(self, caption: str) -> pathlib.Path:
    key = caption_key(caption)
    return self._folder / self.identity / key[:2] / f"{key}.safetensors"


def caption_key(caption: str) -> str:
  """The hash (hex) that features of a caption are kept under."""
  return hashlib.sha256(caption.encode(errors="surrogatepass")).hexdigest()


def _on_device(leaf: Any) -> jax.Array:
  return jnp.asarray(np.asarray(leaf) if isinstance(leaf, Lazy) else leaf)


def _find_tokenizer(source: str | os.PathLike) -> pathlib.Path:
  """The tokenizer that was published with some weights."""
  source = pathlib.Path(source).absolute()
  folder = source if source.is_dir() else source.parent
  name = "spiece.model"
  for path in (folder / name, folder.parent / "tokenizer" / name):
    if path.is_file():
      return path
  raise UserError(
    f"{folder}: has no {name}, nor is there one in tokenizer/ beside it (T5X "
    "checkpoints have none); name the encoder's own with --tokenizer or "
    "config.text.tokenizer"
  )


def _refuse_one_text(captions: Iterable[str]) -> None:
  # A text is a sequence of texts, too: its letters.
  if isinstance(captions, str):
    raise TypeError("give a sequence of captions, not one caption")


def _size(entry: Entry) -> int:
  return sum(array.nbytes for array in entry)


def _proof(path: pathlib.Path, flat: FlatParams) -> dict[str, str]:
  """What an entry says of itself: whose it is, and what it holds."""
  return {"caption": path.stem, "content": safetensors.content_hash(flat)}


def _read_entry(path: pathlib.Path) -> Entry | None:
  """The entry at `path`, or None if it is absent or not as it was written."""
  if not path.exists():
    return None
  try:
    flat, proof = safetensors.load(path), safetensors.load_metadata(path)
  except UserError:
    return None
  if proof != _proof(path, flat):
    return None
  return flat["text"], flat["mask"]
