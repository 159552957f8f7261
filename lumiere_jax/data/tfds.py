"""The `tfds` source: videos of a TensorFlow Datasets builder, by index."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from lumiere_jax.data import tfds_builder
from lumiere_jax.data.filters import Filters, Stretch
from lumiere_jax.data.labels import label_captions
from lumiere_jax.data.probing import Finding, judge
from lumiere_jax.data.report import Report, Row, summarise
from lumiere_jax.data.source import Clip, ClipSpec
from lumiere_jax.data.stored import StoredSource
from lumiere_jax.data.tfds_builder import SPLIT, Layout, value_at
from lumiere_jax.data.video import Video
from lumiere_jax.io.atomic import writing
from lumiere_jax.io.blob import Blob
from lumiere_jax.io.container import TOLERANCE_S
from lumiere_jax.io.decode import VideoInfo
from lumiere_jax.io.errors import VideoError
from lumiere_jax.io.image import fit, read_image
from lumiere_jax.io.picture import open_picture
from lumiere_jax.io.remote import default_cache
from lumiere_jax.typing import UserError

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
    reason: "kind: details" of why it cannot be used, where it cannot.
  """

  texts: list[str] = dataclasses.field(default_factory=list)
  frames: int = 0
  height: int = 0
  width: int = 0
  fps: float | None = None
  reason: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleVideo(Video):
  """A video in an example.

  Attributes:
    examples: of the data set.
    index: of the example.
    path: to the frames in it.
  """

  examples: Examples
  index: int
  path: tfds_builder.Path

  def cut(self, path, rng: np.random.Generator | None = None) -> Clip:
    """As for files; `path` is what errors call it."""
    frames = _frames(_example(self.examples, self.index, path), self.path)
    spare_s = max(0.0, self.info.duration_s - self.spec.seconds)
    at = 0.5 if rng is None else rng.random()
    times_s = at * spare_s + np.arange(self.spec.num_frames) / self.spec.fps
    shown = ((times_s + TOLERANCE_S) * self.info.fps).astype(int)
    shown = np.minimum(shown, len(frames) - 1)
    images = {
      k: _image(path, frames[k], self.spec.resolution) for k in np.unique(shown)
    }
    return np.stack([images[k] for k in shown])


def open_tfds(
  name: str,
  specs: Sequence[ClipSpec],
  *,
  data_dir: str = "",
  prompts: str = "",
  report_path: str | os.PathLike | None = None,
  num_threads: int | None = None,
  max_enlarge: float = 4.0,
  cache: str = "",
) -> StoredSource:
  """Opens the training split of a builder.

  Looks at every example the first time, with a progress bar, and remembers
  what it saw. Prints a summary to stderr.

  Args:
    name: of the builder, such as 'ucf101/ucf101_1:2.0.0'.
    specs: the shapes of clips, of one frame rate.
    data_dir: of the data set; '' is the library's own default.
    prompts: see `label_captions`.
    report_path: where to write data_report.jsonl; None: nowhere.
    num_threads: that look; None: as many as there are cores.
    max_enlarge: see `Filters`.
    cache: where what was seen is remembered; '' is in the user's cache.

  Raises:
    UserError: there is no such builder, it has no videos or captions, it is
      not prepared, or none of its videos can be used.
  """
  builder = tfds_builder.open_builder(name, data_dir)
  layout = tfds_builder.find_layout(name, builder)
  examples = tfds_builder.open_examples(name, builder, layout)
  threads = num_threads or os.cpu_count() or 1
  seen = _recall(builder, layout, examples, threads, cache)
  captions = _caption(name, layout, seen, prompts)
  usual_fps = layout.all_fps or specs[0].fps
  if layout.all_fps is None and layout.fps is None:
    print(
      f"data: {name} does not say its frame rate; taken for {usual_fps:g} fps "
      "(config.data.fps)",
      file=sys.stderr,
    )
  filters = Filters(max_enlarge=max_enlarge)
  found = [
    _judge(index, looks, texts, usual_fps, specs, filters)
    for index, (looks, texts) in enumerate(zip(seen, captions, strict=True))
  ]
  rows = [row for row, _ in found]
  report = Report(report_path)
  report.write(rows)
  print(summarise(rows, name, specs[0].fps, report.path), file=sys.stderr)
  videos = [
    ExampleVideo(
      **vars(video), examples=examples, index=index, path=layout.video
    )
    for index, (_, video) in enumerate(found)
    if video is not None
  ]
  return StoredSource(specs, videos, report)


def _name(index: int) -> str:
  return f"{SPLIT}/{index}"


def _example(examples: Examples, index: int, name: str) -> Mapping[str, Any]:
  try:
    return examples[index]
  except _ERRORS as error:
    words = " ".join(str(error).split())
    raise VideoError(name, f"damaged: {words}; prepare it again") from error


def _frames(example: Mapping[str, Any], path: tfds_builder.Path) -> Any:
  """Encoded pictures, or an array (t, h, w, c)."""
  return value_at(example, path)


def _image(name: str, frame: Any, resolution: tuple[int, int]) -> np.ndarray:
  if isinstance(frame, bytes):
    return read_image(Blob(name, frame), resolution)
  return fit(np.broadcast_to(frame, (*frame.shape[:2], 3)), resolution)


def _size(name: str, frame: Any) -> tuple[int, int]:
  """(height, width)."""
  if not isinstance(frame, bytes):
    return frame.shape[:2]
  with open_picture(Blob(name, frame)) as image:
    return image.height, image.width


def _look(examples: Examples, index: int, layout: Layout) -> Seen:
  name = _name(index)
  try:
    example = _example(examples, index, name)
    frames = _frames(example, layout.video)
    if not len(frames):
      return Seen(reason="no frames: the video is empty")
    height, width = _size(name, frames[0])
  except VideoError as error:
    return Seen(reason=error.reason)
  return Seen(
    texts=_texts(value_at(example, layout.caption), layout.labels),
    frames=len(frames),
    height=height,
    width=width,
    fps=float(value_at(example, layout.fps)) if layout.fps else None,
  )


def _texts(value: Any, labels: Sequence[str] | None) -> list[str]:
  if labels is not None:
    return [labels[int(value)]] if value >= 0 else []  # -1: not known
  values = [value] if isinstance(value, bytes | str) else list(value)
  texts = [
    v.decode(errors="replace") if isinstance(v, bytes) else v for v in values
  ]
  return [" ".join(text.split()) for text in texts if text.strip()]


def _recall(
  builder: Any, layout: Layout, examples: Examples, threads: int, cache: str
) -> list[Seen]:
  """What the examples hold, as it was remembered, or from looking at all."""
  info = builder.info.splits.get(SPLIT)
  if info is None:  # one that makes its examples up
    return _look_at_all(examples, layout, threads)
  known = [str(builder.data_dir), info.shard_lengths, int(info.num_bytes)]
  known.append(dataclasses.astuple(layout))
  digest = hashlib.sha256(repr(known).encode()).hexdigest()
  path = (Path(cache) if cache else default_cache()) / "tfds" / f"{digest}.json"
  try:
    return [Seen(**values) for values in json.loads(path.read_bytes())]
  except (OSError, ValueError, TypeError):  # none yet, or not ours
    pass
  seen = _look_at_all(examples, layout, threads)
  with writing(path) as file:
    file.write(json.dumps([vars(one) for one in seen]).encode())
  return seen


def _look_at_all(
  examples: Examples, layout: Layout, threads: int
) -> list[Seen]:
  with futures.ThreadPoolExecutor(threads) as pool:
    looks = pool.map(
      lambda index: _look(examples, index, layout), range(len(examples))
    )
    return list(tqdm(looks, "looking at videos", len(examples), disable=None))


def _caption(
  name: str, layout: Layout, seen: Sequence[Seen], prompts: str
) -> list[tuple[str, ...]]:
  """The captions of each example."""
  if layout.labels is None:
    if prompts:
      raise UserError(
        f"config.data.prompts={prompts}: the videos of {name} have captions of "
        "their own; leave it out"
      )
    captions = [tuple(one.texts) for one in seen]
  else:
    by_label = label_captions(layout.labels, prompts)
    captions = [
      tuple(c for label in one.texts for c in by_label[label]) for one in seen
    ]
  example = next((c[0] for c in captions if c), "")
  print(
    f"data: {name}: captions from {'/'.join(layout.caption)!r}, such as "
    f"{example!r}",
    file=sys.stderr,
  )
  return captions


def _judge(
  index: int,
  looks: Seen,
  captions: tuple[str, ...],
  usual_fps: float,
  specs: Sequence[ClipSpec],
  filters: Filters,
) -> Finding:
  reason = looks.reason or (None if captions else "empty caption")
  if reason:
    return Row(file=_name(index), used=False, reason=reason), None
  info = VideoInfo(
    duration_s=looks.frames / (looks.fps or usual_fps),
    num_frames=looks.frames,
    height=looks.height,
    width=looks.width,
  )
  stretch = Stretch(start_s=0.0, info=info, motion=None)
  return judge(_name(index), captions, stretch, specs, filters)
