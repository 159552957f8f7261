"""Text features in shards, `FOLDER/text/IDENTITY/text-00000`, by caption."""

from collections.abc import Iterable, Iterator, Sequence
import functools

from tqdm import tqdm

from lumiere_jax.data.text import Entry, TextEncoder, caption_key
from lumiere_jax.io import safetensors
from lumiere_jax.io.folder import Folder
from lumiere_jax.io.records import Records, RecordWriter

_CHUNK = 16  # Captions encoded between two updates of the progress bar.


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
