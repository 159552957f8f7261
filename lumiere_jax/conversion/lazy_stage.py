"""A stage with lazily read weights: inflation, conversion to float16."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lumiere_jax.errors import UserError, option
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.params import is_spatial
from lumiere_jax.models.unet import abstract_params, init_params
from lumiere_jax.parallel.backend import few_params, init_compiler_options
from lumiere_jax.stages.config import PARENTS, StageConfig
from lumiere_jax.storage.safetensors import LazyArray, check_finite
from lumiere_jax.training.config import Experiment
from lumiere_jax.typing import FlatParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class LazyStage:
  """A stage whose weights are read when they are written.

  Attributes:
    name: of the stage, as in `stages.config.PARENTS`.
    config: what sampling needs to know.
    leaves: path -> array.
    about: other entries of bundle.json: `trained_on`, `licence`, ...
  """

  name: str
  config: StageConfig
  leaves: FlatParams
  about: Mapping[str, Any]

  @property
  def nbytes(self) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in self.leaves.values())


def map_leaves(
  fn: Callable[[np.ndarray], np.ndarray], leaves: FlatParams, dtype: Any = None
) -> dict[str, LazyArray]:
  """Applies `fn` to each leaf on access; `dtype` is that of its results."""

  def lazy(leaf: LazyArray | np.ndarray) -> LazyArray:
    make = lambda: fn(np.asarray(leaf))
    return LazyArray(leaf.shape, np.dtype(dtype or leaf.dtype), make)

  return {path: lazy(leaf) for path, leaf in leaves.items()}


def to_float16(stage: LazyStage) -> LazyStage:
  """The stage in float16: each weight to about 1 part in 2,000."""

  def half(path: str, leaf: LazyArray | np.ndarray) -> LazyArray:
    def make() -> np.ndarray:
      with np.errstate(over="ignore"):
        array = np.asarray(leaf).astype(np.float16)
      return check_finite(array, f"{path} in float16", option("half"))

    return LazyArray(leaf.shape, np.dtype(np.float16), make)

  leaves = {path: half(path, leaf) for path, leaf in stage.leaves.items()}
  return dataclasses.replace(stage, leaves=leaves)


@contextlib.contextmanager
def progress_bar(
  total: int, name: str
) -> Iterator[Callable[[FlatParams], dict[str, LazyArray]]]:
  """A progress bar in bytes; the function it yields makes leaves advance it."""
  bar = tqdm(
    total=total,
    desc=name,
    unit="B",
    unit_scale=True,
    dynamic_ncols=True,
    disable=not total,
  )

  def count(array: np.ndarray) -> np.ndarray:
    bar.update(array.nbytes)
    return array

  with bar:
    yield functools.partial(map_leaves, count)


def inflate(stage: LazyStage, experiment: Experiment) -> LazyStage:
  """The video stage of an image stage: its leaves and new temporal ones.

  Before training, it maps each frame as the image stage does (Lumiere, section
  3.1): the new layers start at zero or as the identity.

  Of the experiment, only the temporal layers and the clip's length and frame
  rate are used.
  """
  video_stages = {parent: name for name, parent in PARENTS.items() if parent}
  if stage.config.model.temporal or stage.name not in video_stages:
    raise UserError(
      f"{option('inflate')}:",
      f"stage {stage.name!r} is not an image stage",
      "give a t2i or an ssr_image",
    )
  if experiment.model.temporal is None:
    raise UserError(
      f"{option('temporal')}:",
      f"stage {experiment.stage!r} has no temporal layers",
      "give configs/base.py or configs/ssr.py",
    )
  config = stage.config
  temporal = experiment.network.temporal
  model = dataclasses.replace(config.model, temporal=temporal)
  video = dataclasses.replace(
    config.video, num_frames=experiment.data.num_frames, fps=experiment.data.fps
  )
  model.check_video(video.num_frames, *video.resolution)
  return LazyStage(
    name=video_stages[stage.name],
    config=dataclasses.replace(config, model=model, video=video),
    leaves={**stage.leaves, **_init_temporal(model, experiment.seed)},
    about={**stage.about, "inflated_from": stage.name},
  )


def _init_temporal(model: UNetConfig, seed: int) -> dict[str, LazyArray]:
  """The new leaves, initialised at once if few, else level by level."""
  leaves = abstract_params(model).items()
  added = {k: leaf for k, leaf in leaves if not is_spatial(k)}
  options = init_compiler_options(jax.default_backend(), added)
  level_of = (lambda path: "all") if few_params(added) else _level
  init_all = jax.jit(functools.partial(init_params, model))  # traced once

  # Leaves are written in order, so the cache needs to hold one level only.
  @functools.lru_cache(maxsize=1)
  def init_level(level: str) -> dict[str, np.ndarray]:
    own = {path for path in added if level_of(path) == level}
    init = lambda key: {k: v for k, v in init_all(key).items() if k in own}
    init = jax.jit(init, compiler_options=options)
    return jax.device_get(init(jax.random.key(seed)))

  def lazy(path: str, leaf: jax.ShapeDtypeStruct) -> LazyArray:
    make = lambda: init_level(level_of(path))[path]
    return LazyArray(leaf.shape, np.dtype(leaf.dtype), make)

  return {path: lazy(path, leaf) for path, leaf in added.items()}


def _level(path: str) -> str:
  """'temporal_up_3_2/conv/kernel' -> 'temporal_up_3'."""
  return "_".join(path.split("/")[0].split("_")[:3])
