"""TensorFlow Datasets builders: opening them and finding videos and captions.

The package is large, so it is imported on demand. Its video feature needs
TensorFlow to be constructed, but not to be read: frames are stored encoded, and
are decoded here.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import io
import json
import operator
from pathlib import Path
import re
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from lumiere_jax.errors import UserError, VideoError, foreign_errors, suggest
from lumiere_jax.media.input_file import InMemoryFile, open_picture
from lumiere_jax.storage.atomic import writing
from lumiere_jax.storage.remote import default_cache

SPLIT = "train"
_CAPTIONS = ("caption", "captions", "text", "description", "prompt")
_FPS = ("fps", "frame_rate", "framerate")

# Errors of builders and their readers that a user can fix.
_BUILDER_ERRORS = (
  *(ValueError, AssertionError, NotImplementedError),
  *(LookupError, ImportError, OSError),
)

Examples = Sequence[Mapping[str, Any]]
Keys = tuple[str, ...]
"""Path of a value in a nested example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where the examples of a builder have their values.

  Attributes:
    video: path of the frames.
    caption: path of a text, several texts, or the number of a class.
    labels: the names of the classes; None: captions are texts.
    fps: path of the frame rate; None: examples do not have it.
    all_fps: frame rate of all examples; None: the builder does not give it.
  """

  video: Keys
  caption: Keys
  labels: Sequence[str] | None
  fps: Keys | None
  all_fps: float | None


def open_builder(name: str, data_dir: str) -> Any:
  """The builder of a name, such as 'ucf101/ucf101_1:2.0.0'."""
  tfds = _import()
  given = {"data_dir": data_dir} if data_dir else {}
  where = f"config.data.path={name}:"
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # Advice on packages.
      builder = tfds.builder(name, **given)
      _ = builder.info
  except tfds.core.DatasetNotFoundError as error:
    # Community data sets would be looked up over the network.
    known = tfds.list_builders(with_community_datasets=False)
    near = suggest(re.split("[/:]", name)[0], known)
    fix = _needs_tensorflow()
    problem = f"no such builder{'' if fix else near}"
    raise UserError(where, problem, fix) from error
  except _BUILDER_ERRORS as error:
    fix = _needs_tensorflow() if isinstance(error, ImportError) else ""
    raise UserError(where, _one_line(error), fix) from error
  return builder


def find_layout(name: str, builder: Any) -> Layout:
  """Finds videos and captions among the features of a builder.

  Prints its choice if there are several videos.
  """
  features = _import().features
  leaves = dict(_leaves(features, builder.info.features, ()))
  of_kind = lambda kind: [p for p, f in leaves.items() if isinstance(f, kind)]
  videos = of_kind(features.Video)
  texts = [path for path, f in leaves.items() if _is_text(features, f)]
  numbers = [path for path, f in leaves.items() if _is_number(features, f)]
  caption = _caption(texts, of_kind(features.ClassLabel))
  if not videos or caption is None:
    what, fix = "video", "choose a builder with a Video feature"
    if videos:
      what = "captions"
      fix = (
        "choose a builder with a Text named caption or text, or a ClassLabel"
      )
    listed = ", ".join(
      f"{'/'.join(path)}: {type(f).__name__}" for path, f in leaves.items()
    )
    problem = f"no {what} among its features ({listed})"
    raise UserError(f"config.data.path={name}:", problem, fix)
  if len(videos) > 1:
    print(
      f"data: {name} has {len(videos)} videos in an example: "
      f"{', '.join(map('/'.join, videos))}; the first is used",
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


def open_examples(name: str, builder: Any, layout: Layout) -> Examples:
  """The training examples by index, with encoded frames."""
  decoders: Any = _keep_encoded()
  for key in reversed(layout.video):
    decoders = {key: decoders}
  try:
    return builder.as_data_source(split=SPLIT, decoders=decoders)
  except _BUILDER_ERRORS as error:
    raise UserError(
      f"config.data.path={name}:", *_explain(builder, error)
    ) from error


def value_at(example: Mapping[str, Any], path: Keys) -> Any:
  """The value at a path in an example."""
  return functools.reduce(operator.getitem, path, example)


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
    "TensorFlow, which most video builders need (ucf101 too), is not "
    "installed: pip install tensorflow"
  )


def _leaves(
  features: Any, feature: Any, path: Keys
) -> Iterator[tuple[Keys, Any]]:
  """(path, feature) of the leaves of a nested feature."""
  if isinstance(feature, features.FeaturesDict):
    for key, below in feature.items():
      yield from _leaves(features, below, (*path, key))
  else:
    yield path, feature


def _is_text(features: Any, feature: Any) -> bool:
  """Whether a feature is a text or a sequence of texts."""
  one = feature.feature if type(feature) is features.Sequence else feature
  return isinstance(one, features.Text)


def _is_number(features: Any, feature: Any) -> bool:
  return (
    isinstance(feature, features.Tensor)
    and feature.shape == ()
    and np.issubdtype(feature.np_dtype, np.number)
  )


def _caption(texts: list[Keys], classes: list[Keys]) -> Keys | None:
  """The first text with a known name; else the class; else the only text.

  Several texts of other names may be anything, such as identifiers.
  """
  named = [t for name in _CAPTIONS for t in texts if t[-1] == name]
  only = texts if len(texts) == 1 else []
  return next(iter([*named, *classes, *only]), None)


def _keep_encoded() -> Any:
  """A decoder that leaves frames encoded.

  That of the library needs TensorFlow for sequences.
  """
  base: Any = _import().decode.SkipDecoding
  members = {"decode_batch_example_np": lambda self, frames: frames}
  return type("KeepEncoded", (base,), members)()


def _explain(builder: Any, error: Exception) -> tuple[str, str]:
  """The problem that an error means, and how to fix it."""
  splits = builder.info.splits
  if not splits:
    return f"not prepared in {builder.data_dir}", _how_to_prepare(builder)
  if SPLIT not in splits:
    return f"no split {SPLIT!r}", f"it has {', '.join(splits)}"
  if isinstance(error, NotImplementedError):
    return (
      f"prepared as {builder.info.file_format.value}, which cannot be read by "
      "index",
      f"move {builder.data_dir} away, then {_how_to_prepare(builder)}",
    )
  return _one_line(error), ""


def _how_to_prepare(builder: Any) -> str:
  name = builder.info.full_name.rpartition("/")[0]  # Without the version.
  return (
    'prepare it: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{builder.data_dir_root}')"
    ".download_and_prepare(file_format='array_record')\""
  )


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleInfo:
  """Properties of an example; the `texts` are captions or labels of classes.

  The `reason` is "kind: details" of why it cannot be read; None if it can.
  """

  texts: list[str] = dataclasses.field(default_factory=list)
  frames: int = 0
  height: int = 0
  width: int = 0
  fps: float | None = None
  reason: str | None = None


def example_name(index: int) -> str:
  """Name of an example in reports and errors."""
  return f"{SPLIT}/{index}"


def example_at(examples: Examples, index: int) -> Mapping[str, Any]:
  """Reads an example, or raises a VideoError."""
  damaged = lambda reason: VideoError(
    example_name(index), f"damaged: {reason}; prepare the data set again"
  )
  with foreign_errors(damaged):
    return examples[index]


def probe_examples(
  examples: Examples, builder: Any, layout: Layout, threads: int, cache: str
) -> list[ExampleInfo]:
  """Reads the properties of all examples, or takes them from the cache.

  The folder of the cache is `cache`, or `default_cache()`.
  """
  split = builder.info.splits.get(SPLIT)
  if split is None:  # A builder of mock examples.
    return _probe_all(examples, layout, threads)
  state = split.shard_lengths, int(split.num_bytes)
  key = str(builder.data_dir), state, dataclasses.astuple(layout)
  digest = hashlib.sha256(repr(key).encode()).hexdigest()
  path = (Path(cache) if cache else default_cache()) / "tfds" / f"{digest}.json"
  try:
    return [ExampleInfo(**values) for values in json.loads(path.read_bytes())]
  except (OSError, ValueError, TypeError):  # Missing or invalid.
    infos = _probe_all(examples, layout, threads)
  if not any(info.reason for info in infos):  # Damaged files may be repaired.
    with writing(path) as file:
      file.write(json.dumps([vars(info) for info in infos]).encode())
  return infos


def _probe_all(
  examples: Examples, layout: Layout, threads: int
) -> list[ExampleInfo]:
  probe = lambda index: _probe_example(examples, index, layout)
  with futures.ThreadPoolExecutor(threads) as pool:
    infos = pool.map(probe, range(len(examples)))
    return list(tqdm(infos, "probing videos", len(examples), disable=None))


def _probe_example(
  examples: Examples, index: int, layout: Layout
) -> ExampleInfo:
  try:
    example = example_at(examples, index)
    frames = value_at(example, layout.video)
    size = _size(index, frames[0]) if len(frames) else (0, 0)
  except VideoError as error:
    return ExampleInfo(reason=error.reason)
  return ExampleInfo(
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
    return [labels[int(value)]] if value >= 0 else []  # -1: unknown.
  values = [value] if isinstance(value, bytes | str) else list(value)
  texts = [
    v.decode(errors="replace") if isinstance(v, bytes) else v for v in values
  ]
  return [" ".join(text.split()) for text in texts if text.strip()]
