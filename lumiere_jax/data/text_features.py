"""Text features on disk: shards beside prepared clips, and a per-caption cache.

Both store an entry per caption under `caption_key`, as safetensors `text` and
`mask`, apart for each encoder. Shards are read-only once written, and moved
with the data set; the cache is filled as captions are needed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import hashlib
import pathlib
import threading

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
from lumiere_jax.storage.atomic import AnyPath
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import FlatParams

Entry = tuple[np.ndarray, np.ndarray]
"""Features (l, e) float32 and mask (l,) bool of one caption."""

_CHUNK = 16  # Captions encoded between two updates of the progress bar.


def caption_key(caption: str) -> str:
  """The hash (hex) that the features of a caption are stored under."""
  return hashlib.sha256(caption.encode(errors="surrogatepass")).hexdigest()


def text_shard_prefix(identity: str) -> str:
  """Prefix of the names of the shards of an encoder's features."""
  return f"text/{identity}/text"


def encode_entries(
  encoder: TextEncoder, captions: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
  """Encodes captions; yields the key and the stored bytes of each."""
  for caption, text, mask in zip(
    captions, *encoder.encode(captions), strict=True
  ):
    flat = {"text": text, "mask": mask}
    yield caption_key(caption), safetensors.dumps(flat)


def write_text_shards(
  folder, encoder: TextEncoder, captions: Iterable[str]
) -> int:
  """Encodes the captions without features in `folder`; returns their number.

  The folder exists. After an interruption, call it again: it continues.
  """
  name = text_shard_prefix(encoder.identity)
  stored = Records(Folder(folder), name)
  unique = dict.fromkeys(captions)
  missing = [c for c in unique if caption_key(c) not in stored]
  with RecordWriter(folder, name) as writer:
    for part in _in_chunks(missing):
      for key, entry in encode_entries(encoder, part):
        writer[key] = entry
  return len(missing)


def _in_chunks(captions: list[str], show: bool = True) -> Iterator[list[str]]:
  """Chunks of captions to encode, with a progress bar if there are any."""
  hidden = not captions or not show
  with tqdm(
    total=len(captions),
    desc="encoding captions",
    unit="caption",
    disable=hidden,
  ) as bar:
    for first in range(0, len(captions), _CHUNK):
      part = captions[first : first + _CHUNK]
      yield part
      bar.update(len(part))


class TextShards:
  """Reads features that `write_text_shards` wrote into a folder."""

  def __init__(self, folder: Folder):
    """Opens nothing yet: the shards of an encoder are opened at first use."""
    self._folder = folder
    self._records = functools.cache(
      lambda identity: Records(folder, text_shard_prefix(identity))
    )

  def find(self, identity: str, caption: str) -> Entry | None:
    """The features of a caption by the encoder `identity`; None if absent."""
    records, key = self._records(identity), caption_key(caption)
    if key not in records:
      return None
    flat = safetensors.loads(records[key], f"{self._folder}: {caption!r}")
    return flat["text"], flat["mask"]


class TextCache:
  """Features from memory, shards or disk; missing ones are encoded.

  Each caption has a file `folder/<identity>/<aa>/<sha256 of the caption>`. A
  file is complete or absent, so processes may share a folder and threads a
  cache. An entry holds the hash of its content; a damaged one is encoded
  again. At 77 tokens, an entry of the XXL encoder takes 1.3 MB.
  """

  def __init__(
    self,
    encoder: TextEncoder | Callable[[], TextEncoder],
    folder: AnyPath,
    identity: str | None = None,
    memory_bytes: int = 2**30,
    shards: Sequence[TextShards] = (),
  ):
    """Sets up a cache; nothing is read or encoded yet.

    Args:
      encoder: the encoder, or a function that makes it. The function is called
        when a caption is missing, or at first use without `identity`.
      folder: of the entries; each encoder has a sub-folder of its own.
      identity: value of `identity` in an earlier run.
      memory_bytes: maximum size of the least-recently-used memory cache.
      shards: read-only features to look up before the folder.
    """
    make = (
      (lambda e=encoder: e) if isinstance(encoder, TextEncoder) else encoder
    )
    self._make_encoder: Callable[[], TextEncoder] = make
    self._encoder: TextEncoder | None = None
    self._folder = pathlib.Path(folder)
    self._identity = identity
    self._memory: OrderedDict[str, Entry] = OrderedDict()
    self._memory_left = memory_bytes
    self._shards = tuple(shards)
    self._lock = threading.RLock()

  @property
  def identity(self) -> str:
    """The encoder's identity; pass it to open the cache without weights."""
    if self._identity is None:
      self._identity = self._get_encoder().identity
    return self._identity

  def __call__(self, captions: Sequence[str]) -> tuple[Text, Mask]:
    """Features (b, l, e) float32 and mask (b, l) bool; b at least 1."""
    check_captions(captions)
    with self._lock:
      found = {c: self._find(c) for c in captions}
      missing = [c for c, entry in found.items() if entry is None]
      found |= self._encode(missing)
    text, mask = zip(*(found[c] for c in captions), strict=True)
    return np.stack(text), np.stack(mask)

  def fill(self, captions: Iterable[str]) -> int:
    """Encodes the captions without a valid entry; returns their number."""
    check_captions(captions)
    with self._lock:
      missing = [c for c in dict.fromkeys(captions) if self._find(c) is None]
      for part in _in_chunks(missing, show=is_primary()):
        self._encode(part)
    return len(missing)

  def release(self) -> None:
    """Frees weights that a function made; they are made again when needed."""
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
        f"text cache {self._folder}:",
        "belongs to another text encoder",
        "use the weights and tokenizer that it was made with, or drop the "
        "recorded identity",
      )
    entries = {}
    for caption, *rows in zip(captions, *encoder.encode(captions), strict=True):
      # Copies, so that no entry keeps the whole batch in memory.
      text, mask = entries[caption] = tuple(row.copy() for row in rows)
      flat = {"text": text, "mask": mask}
      path = self._path(caption)
      safetensors.save(path, flat, _metadata(path, flat))
      self._keep(caption, (text, mask))
    return entries

  def _find(self, caption: str) -> Entry | None:
    if caption in self._memory:
      self._memory.move_to_end(caption)
      return self._memory[caption]
    found = (shards.find(self.identity, caption) for shards in self._shards)
    entry = next(filter(None, found), None) or self._read(caption)
    if entry is not None:
      self._keep(caption, entry)
    return entry

  def _keep(self, caption: str, entry: Entry) -> None:
    """Puts an entry into memory and drops those used longest ago."""
    size = lambda entry: sum(array.nbytes for array in entry)
    self._memory[caption] = entry
    self._memory_left -= size(entry)
    while self._memory_left < 0:
      self._memory_left += size(self._memory.popitem(last=False)[1])

  def _path(self, caption: str) -> pathlib.Path:
    key = caption_key(caption)
    return self._folder / self.identity / key[:2] / f"{key}.safetensors"

  def _read(self, caption: str) -> Entry | None:
    """The stored entry; None if it is absent or damaged."""
    path = self._path(caption)
    if not path.exists():
      return None
    try:
      flat, metadata = safetensors.load(path), safetensors.load_metadata(path)
    except UserError:
      return None
    is_whole = metadata == _metadata(path, flat)
    return (flat["text"], flat["mask"]) if is_whole else None


def _metadata(path: pathlib.Path, flat: FlatParams) -> dict[str, str]:
  """Metadata that identifies an entry: its caption and its content."""
  return {"caption": path.stem, "content": safetensors.content_hash(flat)}
