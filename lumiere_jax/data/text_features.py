"""Text features on disk: one file a caption in a cache, or in shards."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import hashlib
import os
import pathlib
import threading
from typing import Protocol

import numpy as np
from tqdm import tqdm

from lumiere_jax.errors import UserError
from lumiere_jax.models.text_encoder import (
  Mask,
  Text,
  TextEncoder,
  check_captions,
)
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import FlatParams

Entry = tuple[np.ndarray, np.ndarray]
"""Features (l, e) float32 and mask (l,) bool of one caption."""


_CHUNK = 16  # Captions encoded between two updates of the progress bar.


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
    check_captions(captions)
    with self._lock:
      found = {c: self._find(c) for c in captions}
      missing = [c for c, entry in found.items() if entry is None]
      found |= self._encode(missing)
    text, mask = zip(*(found[c] for c in captions), strict=True)
    return np.stack(text), np.stack(mask)

  def fill(self, captions: Iterable[str]) -> int:
    """Encodes the captions that have no valid entry; returns how many."""
    check_captions(captions)
    with self._lock:
      missing = [c for c in dict.fromkeys(captions) if self._find(c) is None]
      with tqdm(
        total=len(missing),
        desc="encoding captions",
        unit="caption",
        disable=not missing or not is_primary(),
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
        "",
        f"text cache {self._folder}: made by another encoder than the "
        "one given",
        "give the weights and tokenizer it was made with, or drop the "
        "recorded identity",
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


class TextShelf:
  """Features that `fill_shelf` has put into a folder."""

  def __init__(self, folder: Folder):
    """Looks at nothing yet: shards of an encoder are opened when asked for.

    Args:
      folder: the one given to `fill_shelf`.
    """
    self._folder = folder
    self._records = functools.cache(lambda i: Records(folder, shelf_name(i)))

  def find(self, identity: str, caption: str) -> Entry | None:
    """The features of a caption, or None where they are not there.

    Args:
      identity: the text encoder's.
      caption: any text.

    Raises:
      UserError: a shard is damaged.
    """
    records, key = self._records(identity), caption_key(caption)
    if key not in records:
      return None
    flat = safetensors.loads(records[key], f"{self._folder}: {caption!r}")
    return flat["text"], flat["mask"]


def fill_shelf(folder, encoder: TextEncoder, captions: Iterable[str]) -> int:
  """Encodes the captions whose features are not in `folder`, which exists.

  Interrupted anywhere and called again, it goes on where it was.

  Returns:
    How many were encoded.

  Raises:
    UserError: the place cannot be written, or a shard is damaged.
  """
  name = shelf_name(encoder.identity)
  there = Records(Folder(folder), name)
  missing = [c for c in dict.fromkeys(captions) if caption_key(c) not in there]
  bar = tqdm(
    total=len(missing),
    desc="encoding captions",
    unit="caption",
    disable=not missing,
  )
  with bar, RecordWriter(folder, name) as writer:
    for first in range(0, len(missing), _CHUNK):
      part = missing[first : first + _CHUNK]
      for key, entry in make_entries(encoder, part):
        writer[key] = entry
      bar.update(len(part))
  return len(missing)


def make_entries(
  encoder: TextEncoder, captions: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
  """Encodes captions: the key of each, and its features as they are stored."""
  for caption, text, mask in zip(
    captions, *encoder.encode(captions), strict=True
  ):
    flat = {"text": text, "mask": mask}
    yield caption_key(caption), safetensors.dumps(flat)


def shelf_name(identity: str) -> str:
  """What the names of the shards of an encoder's features begin with."""
  return f"text/{identity}/text"
