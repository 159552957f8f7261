"""The `tfds` source: videos of a TensorFlow Datasets builder, by index."""

from collections.abc import Sequence
import dataclasses
import functools
import os
import sys
from typing import Any

import numpy as np

from lumiere_jax.data.captions import label_captions
from lumiere_jax.data.dataset_report import Row, publish
from lumiere_jax.data.filters import Filters, Stretch
from lumiere_jax.data.sources import tfds_builder
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import StoredSource
from lumiere_jax.data.sources.tfds_builder import (
  Examples,
  Layout,
  Seen,
  example_at,
  example_name,
  scan,
  value_at,
)
from lumiere_jax.data.video_index import Finding, Video, judge
from lumiere_jax.errors import UserError
from lumiere_jax.media.container import TOLERANCE_S
from lumiere_jax.media.images import fit, read_image
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.resize import blend
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.typing import Clip

_ROUNDING = 1e-6  # of a frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleVideo(Video):
  """A video in an example.

  Attributes:
    examples: of the data set.
    index: of the example.
    keys: that lead to the frames in it.
  """

  examples: Examples
  index: int
  keys: tfds_builder.Keys

  def cut(self, path, rng: np.random.Generator | None = None) -> Clip:
    """As for files; `path` is what errors call it."""
    frames = value_at(example_at(self.examples, self.index), self.keys)
    spare_s = max(0.0, self.info.duration_s - self.spec.seconds)
    at = 0.5 if rng is None else rng.random()
    last = len(frames) - 1
    start = (at * spare_s + TOLERANCE_S) * self.info.fps
    steps = np.arange(self.spec.num_frames) * self.info.fps / self.spec.fps
    blends = self.spec.resample == "blend"
    places = int(start) + steps if blends else start + steps
    shown = np.minimum((places + _ROUNDING).astype(int), last)
    weights = (places - shown).clip(0) * (blends & (shown < last))
    image = functools.cache(
      lambda k: _image(path, frames[k], self.spec.resolution)
    )
    return np.stack(
      [
        blend(image(k), image(k + 1), weight)
        if weight > _ROUNDING
        else image(k)
        for k, weight in zip(shown.tolist(), weights, strict=True)
      ]
    )


def open_tfds(
  name: str,
  specs: Sequence[ClipSpec],
  *,
  data_dir: str = "",
  prompts: str = "",
  report_path: str | os.PathLike | None = None,
  num_threads: int | None = None,
  max_enlarge: float = 4.0,
  min_fps_ratio: float = Filters.min_fps_ratio,
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
    max_enlarge, min_fps_ratio: see `Filters`.
    cache: where what was seen is remembered; '' is in the user's cache.

  Raises:
    UserError: there is no such builder, it has no videos or captions, it is
      not prepared, or none of its videos can be used.
  """
  builder = tfds_builder.open_builder(name, data_dir)
  layout = tfds_builder.find_layout(name, builder)
  examples = tfds_builder.open_examples(name, builder, layout)
  threads = num_threads or os.cpu_count() or 1
  seen = scan(examples, builder, layout, threads, cache)
  captions = _caption(name, layout, seen, prompts)
  usual_fps = layout.all_fps or specs[0].fps
  if layout.all_fps is None and layout.fps is None:
    print(
      f"data: {name} does not say its frame rate; taken for {usual_fps:g} fps "
      "(config.data.fps)",
      file=sys.stderr,
    )
  filters = Filters(max_enlarge=max_enlarge, min_fps_ratio=min_fps_ratio)
  found = [
    _judge(index, looks, texts, usual_fps, specs, filters)
    for index, (looks, texts) in enumerate(zip(seen, captions, strict=True))
  ]
  rows = [row for row, _ in found]
  report = publish(rows, name, specs[0].fps, report_path)
  videos = [
    ExampleVideo(
      **vars(video), examples=examples, index=index, keys=layout.video
    )
    for index, (_, video) in enumerate(found)
    if video is not None
  ]
  return StoredSource(specs, videos, report)


def _image(name: str, frame: Any, resolution: tuple[int, int]) -> np.ndarray:
  """One frame, encoded or an array (h, w, 1 or 3)."""
  if isinstance(frame, bytes):
    return read_image(InMemoryFile(name, frame), resolution)
  return fit(np.broadcast_to(frame, (*frame.shape[:2], 3)), resolution)


def _caption(
  name: str, layout: Layout, seen: Sequence[Seen], prompts: str
) -> list[tuple[str, ...]]:
  """The captions of each example."""
  if layout.labels is None:
    if prompts:
      raise UserError(
        f"config.data.prompts={prompts}:",
        f"the videos of {name} have captions of their own",
        "leave it out",
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
  name, reason = example_name(index), looks.reason
  if not reason and not looks.frames:
    reason = "no frames: the video is empty"
  if not reason and not captions:
    reason = "empty caption"
  if reason:
    return Row(file=name, used=False, reason=reason), None
  info = VideoInfo(
    duration_s=looks.frames / (looks.fps or usual_fps),
    num_frames=looks.frames,
    height=looks.height,
    width=looks.width,
  )
  stretch = Stretch(start_s=0.0, info=info, motion=None)
  return judge(name, captions, stretch, specs, filters)
