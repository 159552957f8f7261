"""A stage whose weights are read one by one, and its inflation."""

from collections.abc import Mapping
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
from lumiere_jax.parallel.backend import init_compiler_options
from lumiere_jax.stages.config import PARENTS, StageConfig
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.training.config import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class LazyStage:
  """A stage whose leaves are read when they are written.

  Attributes:
    name: of the stage, as in `stages.config.PARENTS`.
    config: what sampling needs to know.
    leaves: path -> array, or one that is made when asked for.
    about: what else bundle.json says of it: `trained_on`, `licence`, ...
  """

  name: str
  config: StageConfig
  leaves: Mapping[str, LazyArray | np.ndarray]
  about: Mapping[str, Any]

  @property
  def nbytes(self) -> int:
    """Of all leaves."""
    return sum(leaf.nbytes for leaf in self.leaves.values())


def halved(stage: LazyStage) -> LazyStage:
  """The stage in float16: each weight to about 1 part in 2,000."""

  def half(leaf: LazyArray | np.ndarray) -> LazyArray:
    make = lambda: np.asarray(leaf).astype(np.float16)
    return LazyArray(leaf.shape, np.dtype(np.float16), make)

  leaves = {path: half(leaf) for path, leaf in stage.leaves.items()}
  return dataclasses.replace(stage, leaves=leaves)


def watched(
  leaves: Mapping[str, LazyArray | np.ndarray], bar: tqdm
) -> dict[str, LazyArray]:
  """The same leaves; a bar in bytes moves as they are made."""

  def watch(leaf: LazyArray) -> LazyArray:
    def make() -> np.ndarray:
      array = np.asarray(leaf)
      bar.update(leaf.nbytes)
      return array

    return LazyArray(leaf.shape, np.dtype(leaf.dtype), make)

  return {path: watch(leaf) for path, leaf in leaves.items()}


def progress(total: int, what: str) -> tqdm:
  """A bar in bytes, with the time that is left."""
  return tqdm(
    total=total,
    desc=what,
    unit="B",
    unit_scale=True,
    dynamic_ncols=True,
    disable=not total,
  )


def inflated(stage: LazyStage, experiment: Experiment) -> LazyStage:
  """The video stage of an image stage: its leaves, and fresh temporal ones.

  It makes of every video what the image stage makes of its frames (Lumiere,
  section 3.1): what is new starts at zero, or as the identity.

  Args:
    stage: an image stage.
    experiment: what the video stage's temporal layers and clips are like; its
      own spatial layers do not matter.

  Raises:
    UserError: the stage is no image stage, the experiment has no temporal
      layers, or they do not fit the network.
  """
  video_stages = {parent: name for name, parent in PARENTS.items() if parent}
  if stage.config.model.temporal or stage.name not in video_stages:
    raise UserError(
      f"{option('inflate')}:",
      f"stage {stage.name!r} is no image stage",
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
    config.video,
    num_frames=experiment.data.num_frames,
    fps=experiment.data.fps,
  )
  model.check_video(video.num_frames, *video.resolution)
  return LazyStage(
    name=video_stages[stage.name],
    config=dataclasses.replace(config, model=model, video=video),
    leaves={**stage.leaves, **_fresh(model, experiment.seed)},
    about={**stage.about, "inflated_from": stage.name},
  )


def _fresh(model: UNetConfig, seed: int) -> dict[str, LazyArray]:
  """The temporal leaves, made level by level."""
  leaves = abstract_params(model).items()
  added = {k: leaf for k, leaf in leaves if not is_spatial(k)}
  options = init_compiler_options(jax.default_backend(), added)
  made_once = functools.partial(jax.jit, compiler_options=options)

  # As they are written in order, one level at a time is enough in memory.
  @functools.lru_cache(maxsize=1)
  def made(level: str) -> dict[str, np.ndarray]:
    own = {path for path in added if _level(path) == level}
    init = lambda key: {
      k: v for k, v in init_params(model, key).items() if k in own
    }
    return jax.device_get(made_once(init)(jax.random.key(seed)))

  def lazy(path: str, leaf: jax.ShapeDtypeStruct) -> LazyArray:
    make = lambda: made(_level(path))[path]
    return LazyArray(leaf.shape, np.dtype(leaf.dtype), make)

  return {path: lazy(path, leaf) for path, leaf in added.items()}


def _level(path: str) -> str:
  """'temporal_up_3_2/conv/kernel' -> 'temporal_up_3'."""
  return "_".join(path.split("/")[0].split("_")[:3])
