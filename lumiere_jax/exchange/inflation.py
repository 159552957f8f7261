"""From an image stage to the video stage that training starts from."""

import dataclasses
import functools
import re

import jax
import numpy as np

from lumiere_jax.exchange.carried import Carried
from lumiere_jax.io.lazy import Lazy
from lumiere_jax.models.inflate import ADDED_LEAVES
from lumiere_jax.models.unet import UNetConfig, abstract_params, init_params
from lumiere_jax.parallel.backend import drawing_options
from lumiere_jax.training.config import PARENTS, Experiment
from lumiere_jax.typing import UserError


def inflated(stage: Carried, experiment: Experiment) -> Carried:
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
      f"--inflate: stage {stage.name!r} is no image stage; give a t2i or an "
      "ssr_image"
    )
  if experiment.model.temporal is None:
    raise UserError(
      f"--temporal: stage {experiment.stage!r} has no temporal layers; give "
      "configs/base.py or configs/ssr.py"
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
  return Carried(
    name=video_stages[stage.name],
    config=dataclasses.replace(config, model=model, video=video),
    leaves={**stage.leaves, **_fresh(model, experiment.seed)},
    about={**stage.about, "inflated_from": stage.name},
  )


def _fresh(model: UNetConfig, seed: int) -> dict[str, Lazy]:
  """The temporal leaves, made level by level."""
  leaves = abstract_params(model).items()
  added = {k: leaf for k, leaf in leaves if re.search(ADDED_LEAVES, k)}

  options = drawing_options(jax.default_backend(), added)
  made_once = functools.partial(jax.jit, compiler_options=options)

  # As they are written in order, one level at a time is enough in memory.
  @functools.lru_cache(maxsize=1)
  def made(level: str) -> dict[str, np.ndarray]:
    own = {path for path in added if _level(path) == level}
    init = lambda key: {
      k: v for k, v in init_params(model, key).items() if k in own
    }
    return jax.device_get(made_once(init)(jax.random.key(seed)))

  def lazy(path: str, leaf: jax.ShapeDtypeStruct) -> Lazy:
    make = lambda: made(_level(path))[path]
    return Lazy(leaf.shape, np.dtype(leaf.dtype), make)

  return {path: lazy(path, leaf) for path, leaf in added.items()}


def _level(path: str) -> str:
  """'temporal_up_3_2/conv/kernel' -> 'temporal_up_3'."""
  return "_".join(path.split("/")[0].split("_")[:3])
