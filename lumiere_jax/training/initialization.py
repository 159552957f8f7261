"""The first state of a run: from scratch, a bundle or a checkpoint."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp

from lumiere_jax.diffusion.noise_levels import auto_shift
from lumiere_jax.errors import UserError, option
from lumiere_jax.models import lora, t5
from lumiere_jax.models.params import (
  inflate,
  is_spatial,
  is_temporal,
  split,
  widen_position_bias,
)
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.backend import init_compiler_options, platform_of
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.stages.config import AUTO, StageConfig, descendants
from lumiere_jax.stages.denoiser import cast_kernels
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.compatibility import EVERYTHING, SCRATCH, check_source
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import TrainState, init_state
from lumiere_jax.training.task import Task
from lumiere_jax.typing import FlatParams


def check_init_from(experiment: Experiment, *, resuming: bool) -> None:
  """Raises a UserError where `init_from` is missing or does not fit.

  A run that resumes from a checkpoint no longer needs it; it may be gone.
  """
  name = option("config.init_from")
  if experiment.parent and not experiment.init_from:
    raise UserError(
      name,
      f"is missing: stage {experiment.stage!r} starts from a trained "
      f"{experiment.parent!r} model",
      f"set {name}=DIR to its bundle or workdir (train one with "
      f"configs/{experiment.parent}.py), or {name}={SCRATCH} to train every "
      "layer from scratch",
    )
  if experiment.lora.rank and from_scratch(experiment):
    raise UserError(
      f"config.lora.rank={experiment.lora.rank}",
      "adapts a trained model, but config.init_from names none",
      "set config.init_from=DIR to its bundle or workdir, or the rank to 0",
    )
  if not from_scratch(experiment) and not resuming:
    bundle, stage = _open_source(experiment)
    check_source(experiment, _stage_config(bundle, stage))


def resolve_max_distance(
  experiment: Experiment, run: Mapping[str, Any] | None
) -> Experiment:
  """The experiment, with `model.temporal.max_distance` as a number.

  A resumed run and an adapter keep that of the weights they belong to. A run
  that starts from a video model has at least that: for longer clips its
  position biases are widened, for shorter ones they stay. A number in the
  config that is too small, or differs where it is fixed, is a UserError.

  Args:
    experiment: the stage.
    run: the record of the run to resume; None: a new run.
  """
  temporal, network = experiment.model.temporal, experiment.network.temporal
  if not temporal or not network:
    return experiment
  asked = temporal.max_distance
  known, owner = 0, "the resumed run"
  if run:
    known = _max_distance(run["config"])
  elif run is None and not from_scratch(experiment):
    bundle, stage = _open_source(experiment)
    known = _max_distance(bundle.parts[stage].meta)
    owner = f"config.init_from={experiment.init_from}"
  fixed = run is not None or experiment.lora.rank > 0
  if known and asked and (asked != known if fixed else asked < known):
    raise UserError(
      f"config.model.temporal.max_distance={asked}",
      f"does not fit: {owner} has {known}",
      f"set it to {known}, or to 0 to choose it automatically",
    )
  number = known if known and fixed else max(network.max_distance, known)
  temporal = dataclasses.replace(temporal, max_distance=number)
  model = dataclasses.replace(experiment.model, temporal=temporal)
  return dataclasses.replace(experiment, model=model)


def _max_distance(config: Mapping[str, Any]) -> int:
  """That of a stage's config; 0 if it has no temporal layers."""
  temporal = config["model"].get("temporal")
  return temporal["max_distance"] if temporal else 0


def from_scratch(experiment: Experiment) -> bool:
  """Whether all weights are freshly initialised."""
  return experiment.init_from in ("", SCRATCH)


def trainable_pattern(experiment: Experiment) -> str:
  """Regex of the leaves that train; from scratch, all of them do."""
  if experiment.lora.rank:
    return f"^{lora.PREFIX}"
  if from_scratch(experiment):
    return EVERYTHING
  return experiment.train.trainable


def resolve_shift(
  experiment: Experiment, run: Mapping[str, Any] | None = None
) -> Experiment:
  """The experiment, with its noise shift as a number.

  A resumed `run` keeps the recorded one; others follow `set_auto_shift`.
  """
  if experiment.diffusion.shift != AUTO:
    return experiment
  shift = (run or {}).get("config", {}).get("diffusion", {}).get("shift")
  if shift is not None:
    if multihost.is_primary():
      print(
        f"config.diffusion.shift={AUTO}: {shift:g}, recorded when this run "
        "began",
        file=sys.stderr,
      )
    return _with_shift(experiment, shift)
  if from_scratch(experiment):
    return set_auto_shift(experiment)
  bundle, stage = _open_source(experiment)
  config = _stage_config(bundle, stage)
  if "inflated_from" in bundle.parts[stage].meta:  # not trained on clips yet
    config = config.as_image()
  return set_auto_shift(experiment, config)


def set_auto_shift(
  experiment: Experiment, source: StageConfig | None = None
) -> Experiment:
  """The experiment, with the number that a shift of 'auto' stands for.

  Args:
    experiment: its frames and pixels count.
    source: the model it starts from. None: for a stage with a parent, an
      unshifted image model at the same resolution; for others, none.
  """
  if experiment.diffusion.shift != AUTO:
    return experiment
  pixels = math.prod(experiment.data.resolution)
  parent = (1, pixels, 0.0) if experiment.parent else None
  if source:
    video, shift = source.video, float(source.diffusion.shift)
    parent = video.num_frames, math.prod(video.resolution), shift
  shift = auto_shift(experiment.data.num_frames, pixels, parent)
  return _with_shift(experiment, round(shift, 4))


def _with_shift(experiment: Experiment, shift: float) -> Experiment:
  diffusion = dataclasses.replace(experiment.diffusion, shift=shift)
  return dataclasses.replace(experiment, diffusion=diffusion)


def _stage_config(bundle: bundles.Bundle, stage: str) -> StageConfig:
  where = f"{bundle.folder}: parts.{stage}.meta"
  return StageConfig.from_meta(bundle.parts[stage].meta, where)


def check_text_width(experiment: Experiment, text: TextEncoder) -> None:
  """Raises a UserError where network and text encoder differ in width."""
  expected, actual = experiment.model.text_dim, text.config.d_model
  if expected != actual:
    raise UserError(
      f"config.model.text_dim={expected}",
      f"does not match the text encoder, whose features have width {actual}",
      "give T5 v1.1 weights of the right width with config.text.weights=DIR",
    )


def init_or_restore(
  experiment: Experiment,
  task: Task,
  checkpoints: Checkpoints,
  mesh: jax.sharding.Mesh,
  text: TextEncoder,
) -> tuple[TrainState, FlatParams, str]:
  """The newest state of the workdir, or the first one.

  Returns:
    state, frozen weights and the name these are saved under.

  Raises:
    UserError: weights or checkpoint were made with another config.
  """
  # Traced once: plain functions are traced again by each transformation.
  fresh = jax.jit(functools.partial(fresh_params, experiment, task))
  abstract, _ = abstract_state(experiment, task, mesh, fresh)
  restored = checkpoints.restore(abstract)
  if restored is None:
    params = _initial_params(experiment, task, mesh, text, fresh)
    trainable, frozen = split(params, trainable_pattern(experiment))
    name = checkpoints.save_frozen(multihost.to_host(frozen))
    # Trainable leaves are float32, whatever the source was (IF's is float16).
    float32 = lambda x: x.astype(jnp.float32) if x.dtype != jnp.float32 else x
    trainable = multihost.lay_out(
      jax.tree.map(float32, trainable), shardings(trainable, mesh)
    )
    first = _first_state(experiment)
    where = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(first, out_shardings=where)(trainable)
  else:
    state, name = restored
    frozen = checkpoints.load_frozen(name)
  _check_images(experiment, state.trainable)
  frozen = multihost.lay_out(
    cast_frozen(frozen, experiment), shardings(frozen, mesh)
  )
  return state, frozen, name


def abstract_state(
  experiment: Experiment,
  task: Task,
  mesh: jax.sharding.Mesh,
  fresh: Callable[[], FlatParams] | None = None,
) -> tuple[TrainState, FlatParams]:
  """Shapes and shardings of the state and the frozen weights.

  Dtypes of frozen weights are those the config initialises them in; a source
  may have others. `fresh` defaults to `fresh_params`.
  """
  fresh = fresh or functools.partial(fresh_params, experiment, task)
  shapes = jax.eval_shape(fresh)
  trainable, frozen = split(shapes, trainable_pattern(experiment))
  first = _first_state(experiment)
  state = jax.eval_shape(first, trainable)
  frozen = jax.eval_shape(lambda flat: cast_frozen(flat, experiment), frozen)
  sharded = lambda tree: multihost.abstract(tree, shardings(tree, mesh))
  return sharded(state), sharded(frozen)


def _first_state(experiment: Experiment) -> Callable[[FlatParams], TrainState]:
  return functools.partial(
    init_state,
    optimizer=make_optimizer(experiment.train, joint=experiment.joint),
    num_averages=len(experiment.train.ema_stds),
  )


def fresh_params(experiment: Experiment, task: Task) -> FlatParams:
  """Newly initialised weights, and an adapter if one is to train."""
  key, config = jax.random.key(experiment.seed), experiment.lora
  weights = task.init(key)
  if not config.rank:
    return weights
  return weights | lora.init_adapter(weights, config.target, config.rank, key)


def cast_frozen(frozen: FlatParams, experiment: Experiment) -> FlatParams:
  """Frozen weights in the dtype they have on the device."""
  if experiment.train.frozen_dtype == "source":
    return frozen
  return cast_kernels(frozen, experiment.train.frozen_dtype)


def _initial_params(
  experiment: Experiment,
  task: Task,
  mesh: jax.sharding.Mesh,
  text: TextEncoder,
  fresh: Callable[[], FlatParams],
) -> FlatParams:
  """Weights of `init_from`, and fresh ones for the leaves it does not have.

  Fresh leaves are sharded over the mesh; the source's are on the host.
  """
  encoder = t5.prefix_params(text.params) if task.text_encoder else {}
  if from_scratch(experiment):
    return _init_sharded(fresh, mesh) | encoder
  bundle, stage = _open_source(experiment)
  _check_same_text(experiment, bundle, text.identity)
  name = f"config.init_from={experiment.init_from}, stage {stage!r},"
  source = _drop_extra_leaves(experiment, lora.merge(bundle.load(stage)), name)
  if temporal := experiment.network.temporal:
    source = widen_position_bias(source, temporal.max_distance)
  source |= encoder
  weights, adapter = lora.split_params(jax.eval_shape(fresh))
  params = inflate(source, weights, name)
  if adapter and source.keys() != params.keys():
    raise UserError(
      name,
      f"lacks layers of stage {experiment.stage!r}, so there is nothing to "
      "adapt",
      "train the stage first, then its adapter",
    )
  # Most fresh leaves would only be replaced: they are not computed.
  missing = (params.keys() | adapter.keys()) - source.keys()
  made = _init_sharded(
    lambda: {k: v for k, v in fresh().items() if k in missing}, mesh
  )
  return {k: source[k] if k in source else made[k] for k in params | adapter}


def _init_sharded(
  fresh: Callable[[], FlatParams], mesh: jax.sharding.Mesh
) -> FlatParams:
  """Fresh leaves; each device computes its own shards."""
  leaves = jax.eval_shape(fresh)
  where = shardings(leaves, mesh)
  options = init_compiler_options(platform_of(mesh), leaves)
  return jax.jit(fresh, out_shardings=where, compiler_options=options)()


def _check_same_text(
  experiment: Experiment, bundle: bundles.Bundle, identity: str
) -> None:
  """An imported image model has no text encoder: any of its width will do."""
  text = bundle.parts.get(bundles.TEXT)
  if text and text.meta["identity"] != identity:
    raise UserError(
      f"config.init_from={experiment.init_from}",
      "was trained with another text encoder than the one in config.text",
      "use the same tokenizer, weights and max_length",
    )


def _check_images(experiment: Experiment, trainable: FlatParams) -> None:
  """Images bypass the temporal layers: spatial ones must train."""
  spatial = any(map(is_spatial, trainable))
  if experiment.data.images and experiment.model.temporal and not spatial:
    raise UserError(
      "config.data.images",
      "trains the spatial layers, which are frozen here",
      "leave it out, or set config.train.trainable to train them",
    )


def _drop_extra_leaves(
  experiment: Experiment, source: FlatParams, name: str
) -> FlatParams:
  """Drops the leaves of a larger stage that this one does not have."""

  def is_extra(path: str) -> bool:
    if is_temporal(path):
      return experiment.model.temporal is None
    return not is_spatial(path) and not experiment.model.cond_channels

  extra = set(filter(is_extra, source))
  if extra:
    dropped = sorted({path.partition("/")[0] for path in extra})
    print(
      f"{name} has {len(extra)} leaves that stage {experiment.stage!r} does "
      f"not use; dropped: {', '.join(dropped)}",
      file=sys.stderr,
    )
  return {k: v for k, v in source.items() if k not in extra}


def _open_source(experiment: Experiment) -> tuple[bundles.Bundle, str]:
  """The bundle to start from and the stage in it."""
  bundle = bundles.open_bundle(experiment.init_from, "config.init_from")
  usable = [s for s in (experiment.stage, experiment.parent) if s]
  usable += descendants(experiment.stage)
  for stage in usable:
    if stage in bundle.parts:
      return bundle, stage
  raise UserError(
    f"config.init_from={experiment.init_from}",
    f"holds {', '.join(sorted(bundle.parts))}, but stage "
    f"{experiment.stage!r} starts from {' or '.join(usable)}",
    "give a bundle or workdir that holds one of these",
  )
