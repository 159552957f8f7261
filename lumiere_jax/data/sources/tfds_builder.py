"""TensorFlow Datasets builders: opened, and what in their examples is what.

The package is imported when a builder is asked for, as it is large. Its videos
need TensorFlow to be described, not to be read: frames come encoded, one by
one, and are decoded here.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
from pathlib import Path
import re
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from lumiere_jax.errors import UserError, VideoError, suggest
from lumiere_jax.media.input_file import InMemoryFile, open_picture
from lumiere_jax.storage.atomic import writing
from lumiere_jax.storage.remote import default_cache

SPLIT = "train"


_CAPTIONS = ("caption", "captions", "text", "description", "prompt")


_FPS = ("fps", "frame_rate", "framerate")


# What builders and their readers raise for what a user can mend.
_BUILDER_ERRORS = (
  ValueError,
  AssertionError,
  NotImplementedError,
  LookupError,
  ImportError,
  OSError,
)


Keys = tuple[str, ...]
"""That lead to a value in an example, which may be nested."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where in the examples of a builder things are.

  Attributes:
    video: the frames.
    caption: a text, several texts, or the number of a class.
    labels: the names of the classes; None: captions are texts.
    fps: a number; None: examples do not say it.
    all_fps: frames per second of all; None: the builder does not say it.
  """

  video: Keys
  caption: Keys
  labels: Sequence[str] | None
  fps: Keys | None
  all_fps: float | None


def open_builder(name: str, data_dir: str) -> Any:
  """The builder of a name, such as 'ucf101/ucf101_1:2.0.0'.

  Raises:
    UserError: there is none, or a package is not installed.
  """
  tfds = _import()
  given = {"data_dir": data_dir} if data_dir else {}
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # its advice on packages
      builder = tfds.builder(name, **given)
      _ = builder.info
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)  # these: remote
    near = suggest(re.split("[/:]", name)[0], known)
    raise UserError(
      f"config.data.path={name}:",
      f"no such builder{_needs_tensorflow() or near}",
    ) from error
  except _BUILDER_ERRORS as error:
    hint = _needs_tensorflow() if isinstance(error, ImportError) else ""
    raise UserError(
      f"config.data.path={name}:", f"{_one_line(error)}{hint}"
    ) from error
  return builder


def find_layout(name: str, builder: Any) -> Layout:
  """Finds videos and captions among the features of a builder.

  Prints which are taken where there is a choice.

  Raises:
    UserError: it has no videos, or no captions; its features are listed.
  """
  features = _import().features
  leaves = dict(_leaves(features, builder.info.features, ()))
  of_kind = lambda kind: [p for p, f in leaves.items() if isinstance(f, kind)]
  videos = of_kind(features.Video)
  if not videos:
    raise UserError(
      f"config.data.path={name}:",
      f"no video among its features ({_listed(leaves)})",
      "take a builder with a Video feature",
    )
  texts = [path for path, f in leaves.items() if _is_text(features, f)]
  numbers = [path for path, f in leaves.items() if _is_number(features, f)]
  caption = _caption(texts, of_kind(features.ClassLabel))
  if caption is None:
    raise UserError(
      f"config.data.path={name}:",
      f"no captions among its features ({_listed(leaves)})",
      "take a builder with a Text named caption or text, or with a ClassLabel",
    )
  if len(videos) > 1:
    print(
      f"data: {name} has {len(videos)} videos in an example: "
      f"{', '.join(map('/'.join, videos))}; the first is taken",
      file=sys.stderr,
    )
  metadata = builder.info.metadata or {}
  stated = [metadata[key] for key in _FPS if key in metadata]
  return Layout(
    video=videos[0],
    caption=caption,
    labels=getattr(leaves[caption], "names", None),
    fps=next((path for path in numbers if path[-1] in _FPS), None),
    all_fps=float(stated[0]) if stated else None,
  )


def open_examples(
  name: str, builder: Any, layout: Layout
) -> Sequence[Mapping[str, Any]]:
  """The examples to train on, by index, their frames not decoded.

  Raises:
    UserError: they are not on disk, or not in a form that can be read by
      index; or there is no such split.
  """
  decoders: Any = _keep_encoded()
  for key in reversed(layout.video):
    decoders = {key: decoders}
  try:
    return builder.as_data_source(split=SPLIT, decoders=decoders)
  except _BUILDER_ERRORS as error:
    raise UserError(
      f"config.data.path={name}:", f"{_complaint(builder, error)}"
    ) from error


def value_at(example: Mapping[str, Any], path: Keys) -> Any:
  """The value in an example that a path leads to."""
  value: Any = example
  for key in path:
    value = value[key]
  return value


def _import() -> Any:
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise UserError(
      "config.data.source=tfds",
      f"needs tensorflow-datasets ({error})",
      "pip install tensorflow-datasets",
    ) from error
  return tensorflow_datasets


def _needs_tensorflow() -> str:
  if importlib.util.find_spec("tensorflow"):
    return ""
  return (
    "; TensorFlow, which most builders of videos need (ucf101 too), is not "
    "installed: pip install tensorflow"
  )


def _leaves(
  features: Any, feature: Any, path: Keys
) -> Iterator[tuple[Keys, Any]]:
  """(path, feature) of all that are not nested any further."""
  if isinstance(feature, features.FeaturesDict):
    for key, below in feature.items():
      yield from _leaves(features, below, (*path, key))
  else:
    yield path, feature


def _is_text(features: Any, feature: Any) -> bool:
  """Whether it is a text, or several."""
  if type(feature) is features.Sequence:
    feature = feature.feature
  return isinstance(feature, features.Text)


def _is_number(features: Any, feature: Any) -> bool:
  return (
    isinstance(feature, features.Tensor)
    and feature.shape == ()
    and np.issubdtype(feature.np_dtype, np.number)
  )


def _caption(texts: list[Keys], classes: list[Keys]) -> Keys | None:
  """The best text by its name; then the class; then the only text.

  A text by any other name may be an identity or a place.
  """
  named = [t for name in _CAPTIONS for t in texts if t[-1] == name]
  only = texts if len(texts) == 1 else []
  return next(iter([*named, *classes, *only]), None)


def _listed(leaves: Mapping[Keys, Any]) -> str:
  return ", ".join(
    f"{'/'.join(path)}: {type(feature).__name__}"
    for path, feature in leaves.items()
  )


def _keep_encoded() -> Any:
  """A decoder that leaves frames as they are stored.

  The library's own cannot do so for sequences without TensorFlow.
  """

  class KeepEncoded(_import().decode.SkipDecoding):
    def decode_batch_example_np(self, frames: Any) -> Any:
      return frames

  return KeepEncoded()


def _complaint(builder: Any, error: Exception) -> str:
  splits = builder.info.splits
  if not splits:
    return f"not prepared in {builder.data_dir}; {_preparation(builder)}"
  if SPLIT not in splits:
    return f"no split {SPLIT!r}; it has {', '.join(splits)}"
  if isinstance(error, NotImplementedError):
    return (
      f"prepared as {builder.info.file_format.value}, which cannot be read by "
      f"index; move {builder.data_dir} away, then {_preparation(builder)}"
    )
  return _one_line(error)


def _preparation(builder: Any) -> str:
  name = builder.info.full_name.rpartition("/")[0]  # without the version
  return (
    'prepare it: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{builder.data_dir_root}')"
    ".download_and_prepare(file_format='array_record')\""
  )


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


Examples = Sequence[Mapping[str, Any]]


# What readers of examples raise for files that are damaged or gone.
_READ_ERRORS = (RuntimeError, OSError, ValueError, LookupError)


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
  except _READ_ERRORS as error:
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
  with open_picture(InMemoryFile(example_name(index), frame)) as image:
    return image.height, image.width


def _texts(value: Any, labels: Sequence[str] | None) -> list[str]:
  if labels is not None:
    return [labels[int(value)]] if value >= 0 else []  # -1: not known
  values = [value] if isinstance(value, bytes | str) else list(value)
  texts = [
    v.decode(errors="replace") if isinstance(v, bytes) else v for v in values
  ]
  return [" ".join(text.split()) for text in texts if text.strip()]
