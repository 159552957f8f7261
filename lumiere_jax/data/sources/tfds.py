"""The `tfds` source: videos of a TensorFlow Datasets builder."""

from collections.abc import Sequence
import dataclasses
import functools
import os
import sys
from typing import Any

import numpy as np

from lumiere_jax.data.captions import label_captions
from lumiere_jax.data.dataset_report import Row
from lumiere_jax.data.filters import DEFAULT_FILTERS, Filters, Shot
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.tfds_builder import (
  ExampleInfo,
  Examples,
  Keys,
  Layout,
  example_at,
  example_name,
  find_layout,
  open_builder,
  open_examples,
  probe_examples,
  value_at,
)
from lumiere_jax.data.video_index import IndexEntry, Video, index_shot
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import fit, read_image
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.resize import blend
from lumiere_jax.media.track import TOLERANCE_S
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.storage.atomic import AnyPath
from lumiere_jax.typing import Clip

_ROUNDING = 1e-6  # Of a frame.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleVideo(Video):
  """A video in an example; `keys` is the path of its frames there."""

  examples: Examples
  index: int
  keys: Keys

  def read(self, path, rng: np.random.Generator | None = None) -> Clip:
    """As for files; `path` is the name used in errors."""
    frames = value_at(example_at(self.examples, self.index), self.keys)
    last = len(frames) - 1
    start = (self.draw_offset(rng) + TOLERANCE_S) * self.info.fps
    steps = np.arange(self.spec.num_frames) * self.info.fps / self.spec.fps
    blends = self.spec.resample == "blend"
    places = int(start) + steps if blends else start + steps
    shown = np.minimum((places + _ROUNDING).astype(int), last)
    weights = (places - shown).clip(0) * (blends & (shown < last))
    image = functools.cache(
      lambda k: _image(path, frames[k], self.spec.resolution)
    )
    frame = lambda k, weight: (
      blend(image(k), image(k + 1), weight) if weight > _ROUNDING else image(k)
    )
    return np.stack(list(map(frame, shown.tolist(), weights.tolist())))


def open_tfds(
  name: str,
  specs: Sequence[ClipSpec],
  *,
  data_dir: str = "",
  prompts: str = "",
  filters: Filters = DEFAULT_FILTERS,
  report_path: AnyPath | None = None,
  num_threads: int | None = None,
  cache: str = "",
) -> FilesSource:
  """Opens the training split of a builder.

  Probes every example the first time, with a progress bar, and caches the
  result. Prints a summary to stderr.

  Args:
    name: of the builder, such as 'ucf101/ucf101_1:2.0.0'.
    specs: see `FilesSource.open` for these and for other arguments.
    data_dir: of the data set; '' is the library's default.
    filters: criteria for videos; the `FRAME_FILTERS` have no effect.
    cache: folder for probed examples; '' is one in the user's cache.
  """
  builder = open_builder(name, data_dir)
  layout = find_layout(name, builder)
  examples = open_examples(name, builder, layout)
  threads = num_threads or os.cpu_count() or 1
  infos = probe_examples(examples, builder, layout, threads, cache)
  captions = _caption(name, layout, infos, prompts)
  default_fps = layout.all_fps or specs[0].fps
  if layout.all_fps is None and layout.fps is None:
    print(
      f"data: {name} does not give its frame rate; {default_fps:g} fps is "
      "assumed (config.data.fps)",
      file=sys.stderr,
    )
  found: list[IndexEntry] = []
  for k, (info, texts) in enumerate(zip(infos, captions, strict=True)):
    row, video = _index_example(k, info, texts, default_fps, specs, filters)
    if video is not None:
      keys = layout.video
      video = ExampleVideo(**vars(video), examples=examples, index=k, keys=keys)
    found.append((row, video))
  return FilesSource(found, specs, name, report_path)


def _image(name: str, frame: Any, resolution: tuple[int, int]) -> np.ndarray:
  """Resizes a frame, which is encoded or an array (h, w, 1 or 3)."""
  if isinstance(frame, bytes):
    return read_image(InMemoryFile(name, frame), resolution)
  return fit(np.broadcast_to(frame, (*frame.shape[:2], 3)), resolution)


def _caption(
  name: str, layout: Layout, infos: Sequence[ExampleInfo], prompts: str
) -> list[tuple[str, ...]]:
  """The captions of each example."""
  if layout.labels is None and prompts:
    raise UserError(
      f"config.data.prompts={prompts}:",
      f"the videos of {name} already have captions",
      "leave it out",
    )
  captions = [tuple(info.texts) for info in infos]
  if layout.labels is not None:
    of = label_captions(layout.labels, prompts)
    captions = [tuple(c for x in labels for c in of[x]) for labels in captions]
  example = next((c[0] for c in captions if c), "")
  print(
    f"data: {name}: captions from {'/'.join(layout.caption)!r}, for example "
    f"{example!r}",
    file=sys.stderr,
  )
  return captions


def _index_example(
  index: int,
  example: ExampleInfo,
  captions: tuple[str, ...],
  default_fps: float,
  specs: Sequence[ClipSpec],
  filters: Filters,
) -> IndexEntry:
  name, reason = example_name(index), example.reason
  if not reason and not (example.frames and captions):
    empty = "no frames: the video is empty"
    reason = "empty caption" if example.frames else empty
  if reason:
    return Row(file=name, used=False, reason=reason), None
  info = VideoInfo(
    duration_s=example.frames / (example.fps or default_fps),
    num_frames=example.frames,
    height=example.height,
    width=example.width,
  )
  shot = Shot(start_s=0.0, info=info)
  return index_shot(name, captions, shot, specs, filters)
