"""Text features in shards, `FOLDER/text/IDENTITY/text-00000`, by caption."""

from collections.abc import Iterable
import functools
from pathlib import Path

from tqdm import tqdm

from lumiere_jax.data.text import Entry, TextEncoder, caption_key
from lumiere_jax.io import safetensors
from lumiere_jax.io.records import Records, RecordWriter

_NAME = "text"
_CHUNK = 16  # Captions encoded between two updates of the progress bar.


class TextShelf:
  """Features that `fill_shelf` has put into a folder."""

  def __init__(self, folder):
    """Opens a folder; a shard of it is read when it is asked for.

    Args:
      folder: the one given to `fill_shelf`.
    """
    self._records = functools.cache(lambda i: Records(_place(folder, i), _NAME))

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
    flat = safetensors.loads(records[key], f"{records.folder}: {caption!r}")
    return flat["text"], flat["mask"]


def fill_shelf(folder, encoder: TextEncoder, captions: Iterable[str]) -> int:
  """Encodes the captions whose features are not in `folder`.

  Interrupted anywhere and called again, it goes on where it was.

  Returns:
    How many were encoded.

  Raises:
    UserError: the place cannot be written, or a shard is damaged.
  """
  place = _place(folder, encoder.identity)
  there = Records(place, _NAME)
  missing = [c for c in dict.fromkeys(captions) if caption_key(c) not in there]
  bar = tqdm(
    total=len(missing),
    desc="encoding captions",
    unit="caption",
    disable=not missing,
  )
  with bar, RecordWriter(place, _NAME) as writer:
    for first in range(0, len(missing), _CHUNK):
      part = missing[first : first + _CHUNK]
      for caption, text, mask in zip(part, *encoder.encode(part), strict=True):
        flat = {"text": text, "mask": mask}
        writer[caption_key(caption)] = safetensors.dumps(flat)
      bar.update(len(part))
  return len(missing)


def _place(folder, identity: str) -> Path:
  return Path(folder) / "text" / identity
