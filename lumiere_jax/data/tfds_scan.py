"""What the examples of a data set hold: looked at once, then remembered.

No index says how long its videos are, so every example has to be read.
"""

from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lumiere_jax.data.tfds_builder import SPLIT, Layout, value_at
from lumiere_jax.io.atomic import writing
from lumiere_jax.io.blob import Blob
from lumiere_jax.io.errors import VideoError
from lumiere_jax.io.picture import open_picture
from lumiere_jax.io.remote import default_cache

Examples = Sequence[Mapping[str, Any]]
# What readers of examples raise for files that are damaged or gone.
_ERRORS = (RuntimeError, OSError, ValueError, LookupError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
  """What an example holds.

  Attributes:
    texts: its captions, or the label of its class.
    frames, height, width: of its video.
    fps: that it says itself; None: it does not.
    reason: "kind: details" of why it could not be read, if it could not.
  """

  texts: list[str] = dataclasses.field(default_factory=list)
  frames: int = 0
  height: int = 0
  width: int = 0
  fps: float | None = None
  reason: str | None = None


def example_name(index: int) -> str:
  """What reports and errors call an example."""
  return f"{SPLIT}/{index}"


def example_at(examples: Examples, index: int) -> Mapping[str, Any]:
  """Reads an example.

  Raises:
    VideoError: it cannot be read.
  """
  try:
    return examples[index]
  except _ERRORS as error:
    words = " ".join(str(error).split())
    raise VideoError(
      example_name(index), f"damaged: {words}; prepare the data set again"
    ) from error


def scan(
  examples: Examples, builder: Any, layout: Layout, threads: int, cache: str
) -> list[Seen]:
  """What each example holds.

  Args:
    examples: of the builder.
    builder: that says which data set it is, for it to be remembered by.
    layout: of the examples.
    threads: that look at them.
    cache: folder in which is remembered; '' is `default_cache()`.

  Raises:
    UserError: the cache cannot be written.
  """
  info = builder.info.splits.get(SPLIT)
  if info is None:  # one that makes its examples up
    return _look_at_all(examples, layout, threads)
  state = info.shard_lengths, int(info.num_bytes)
  known = str(builder.data_dir), state, dataclasses.astuple(layout)
  digest = hashlib.sha256(repr(known).encode()).hexdigest()
  path = (Path(cache) if cache else default_cache()) / "tfds" / f"{digest}.json"
  try:
    return [Seen(**values) for values in json.loads(path.read_bytes())]
  except (OSError, ValueError, TypeError):  # none yet, or not ours
    seen = _look_at_all(examples, layout, threads)
  if not any(one.reason for one in seen):  # what is damaged may be mended
    with writing(path) as file:
      file.write(json.dumps([vars(one) for one in seen]).encode())
  return seen


def _look_at_all(
  examples: Examples, layout: Layout, threads: int
) -> list[Seen]:
  look = lambda index: _look(examples, index, layout)
  with futures.ThreadPoolExecutor(threads) as pool:
    looks = pool.map(look, range(len(examples)))
    return list(tqdm(looks, "looking at videos", len(examples), disable=None))


def _look(examples: Examples, index: int, layout: Layout) -> Seen:
  try:
    example = example_at(examples, index)
    frames = value_at(example, layout.video)
    size = _size(index, frames[0]) if len(frames) else (0, 0)
  except VideoError as error:
    return Seen(reason=error.reason)
  return Seen(
    texts=_texts(value_at(example, layout.caption), layout.labels),
    frames=len(frames),
    height=size[0],
    width=size[1],
    fps=float(value_at(example, layout.fps)) if layout.fps else None,
  )


def _size(index: int, frame: Any) -> tuple[int, int]:
  """(height, width)."""
  if not isinstance(frame, bytes):
    return frame.shape[:2]
  with open_picture(Blob(example_name(index), frame)) as image:
    return image.height, image.width


def _texts(value: Any, labels: Sequence[str] | None) -> list[str]:
  if labels is not None:
    return [labels[int(value)]] if value >= 0 else []  # -1: not known
  values = [value] if isinstance(value, bytes | str) else list(value)
  texts = [
    v.decode(errors="replace") if isinstance(v, bytes) else v for v in values
  ]
  return [" ".join(text.split()) for text in texts if text.strip()]
