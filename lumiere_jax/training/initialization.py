"""Where a run starts: from nothing, from a bundle, or where it stopped."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from lumiere_jax.errors import UserError
from lumiere_jax.models import lora, t5
from lumiere_jax.models.params import (
  inflate,
  is_spatial,
  split,
  widen_position_bias,
)
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.backend import drawing_options, platform_of
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.stages.config import AUTO, StageConfig
from lumiere_jax.stages.denoiser import cast_kernels
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.compatibility import (
  EVERYTHING,
  SCRATCH,
  check_source,
  settle_shift,
)
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import TrainState, init_state
from lumiere_jax.training.task import Task
from lumiere_jax.typing import FlatParams

# What else a stage can start from than itself and its parent: models that
# hold all of it and more.
_LARGER = {
  "t2i": ("base", "conditional"),
  "base": ("conditional",),
  "ssr_image": ("ssr",),
}


def check_init_from(experiment: Experiment, *, resuming: bool) -> None:
  """Raises a UserError where a stage that needs another is given none.

  Args:
    experiment: the stage.
    resuming: the workdir has a checkpoint, so that what the run once started
      from may be gone.
  """
  if experiment.parent and not experiment.init_from:
    raise UserError(
      "config.init_from",
      f"is missing: stage {experiment.stage!r} starts from a trained "
      f"{experiment.parent!r} model",
      "give its bundle or workdir with config.init_from=DIR (train "
      f"one with --config=configs/{experiment.parent}.py), or "
      f"config.init_from={SCRATCH} to train every layer from nothing",
    )
  if experiment.lora.rank and from_scratch(experiment):
    raise UserError(
      f"config.lora.rank={experiment.lora.rank}",
      "adapts a trained model",
      "give its bundle or workdir with config.init_from=DIR, or rank 0",
    )
  if not from_scratch(experiment) and not resuming:
    check_source(experiment, stage_config(*_source(experiment)))


def with_max_distance(
  experiment: Experiment, run: Mapping[str, Any] | None
) -> Experiment:
  """The experiment, with `model.temporal.max_distance` as a number.

  A run that goes on, and an adapter, have that of the weights they belong to.
  A run from a video model has at least that: its clips may be longer, for
  which the bias is widened, or shorter, and what was learned stays.

  Args:
    experiment: a number in it is kept, if it can be.
    run: the last start of the run that goes on; None: it starts.

  Raises:
    UserError: its number is another than has to be, or smaller.
  """
  if not experiment.model.temporal:
    return experiment
  asked = experiment.model.temporal.max_distance
  ours = experiment.network.temporal.max_distance
  if run is not None:
    theirs = _distance(run["config"]) if run else 0
    name = "the run in the workdir has"
  else:
    theirs, name = (
      _source_distance(experiment),
      (f"config.init_from={experiment.init_from} has"),
    )
  fixed = bool(run is not None or experiment.lora.rank)
  if theirs and asked and (asked != theirs if fixed else asked < theirs):
    raise UserError(
      f"config.model.temporal.max_distance={asked},",
      f"but {name} {theirs}",
      f"set config.model.temporal.max_distance={theirs}, or 0 to take "
      "what fits",
    )
  number = theirs if theirs and fixed else max(ours, theirs)
  temporal = dataclasses.replace(experiment.model.temporal, max_distance=number)
  model = dataclasses.replace(experiment.model, temporal=temporal)
  return dataclasses.replace(experiment, model=model)


def _source_distance(experiment: Experiment) -> int:
  """That of the network it starts from; 0: there is none, or an image's."""
  if from_scratch(experiment):
    return 0
  bundle, stage = _source(experiment)
  return _distance(bundle.parts[stage].meta)


def _distance(config: Mapping[str, Any]) -> int:
  temporal = config["model"].get("temporal")
  return temporal["max_distance"] if temporal else 0


def from_scratch(experiment: Experiment) -> bool:
  """Whether the stage starts from nothing."""
  return experiment.init_from in ("", SCRATCH)


def trainable_pattern(experiment: Experiment) -> str:
  """Regex of the leaves that train: from scratch, all of them."""
  if experiment.lora.rank:
    return f"^{lora.PREFIX}"
  if from_scratch(experiment):
    return EVERYTHING
  return experiment.train.trainable


def initial_params(
  experiment: Experiment,
  task: Task,
  mesh: jax.sharding.Mesh,
  text: TextEncoder,
  fresh: Callable[[], FlatParams],
) -> FlatParams:
  """Fresh weights, or those of `init_from` with fresh ones where it has none.

  Fresh ones are made where they will lie; the source's are on the host.

  Args:
    experiment: the stage.
    task: of the stage.
    mesh: where fresh weights will lie.
    text: the encoder, which may train along.
    fresh: makes them; see `fresh_params`.

  Raises:
    UserError: `init_from` holds no such stage, was made with another config
      (differing leaves are named) or with another text encoder.
  """
  encoder = t5.prefix_params(text.params) if task.text_encoder else {}
  if from_scratch(experiment):
    return _made_in_place(fresh, mesh) | encoder
  bundle, stage = _source(experiment)
  _check_same_text(experiment, bundle, text.identity)
  name = f"config.init_from={experiment.init_from}, stage {stage!r},"
  source = _without_surplus(experiment, lora.merge(bundle.load(stage)), name)
  if temporal := experiment.network.temporal:
    source = widen_position_bias(source, temporal.max_distance)
  source |= encoder
  weights, adapter = lora.split_params(jax.eval_shape(fresh))
  params = inflate(source, weights, name)
  if adapter and source.keys() != params.keys():
    raise UserError(
      name,
      f"lacks layers of stage {experiment.stage!r}: there is nothing to adapt",
      "train the stage first, then its adapter",
    )
  # Fresh weights of what the source has are never made: they are most of it.
  lacking = (params.keys() | adapter.keys()) - source.keys()
  made = _made_in_place(
    lambda: {k: v for k, v in fresh().items() if k in lacking}, mesh
  )
  return {k: source[k] if k in source else made[k] for k in params | adapter}


def settled(experiment: Experiment) -> Experiment:
  """The experiment with its shift as a number, by what it starts from.

  Raises:
    UserError: `init_from` holds no such stage.
  """
  if experiment.diffusion.shift != AUTO or from_scratch(experiment):
    return settle_shift(experiment)
  bundle, stage = _source(experiment)
  config = stage_config(bundle, stage)
  if "inflated_from" in bundle.parts[stage].meta:  # and trained on no clip
    config = config.as_image()
  return settle_shift(experiment, config)


def stage_config(bundle: bundles.Bundle, stage: str) -> StageConfig:
  """The config of a stage of a bundle."""
  where = f"{bundle.folder}: parts.{stage}.meta"
  return StageConfig.from_meta(bundle.parts[stage].meta, where)


def _made_in_place(
  fresh: Callable[[], FlatParams], mesh: jax.sharding.Mesh
) -> FlatParams:
  """Fresh leaves, each device making its own parts of them."""
  leaves = jax.eval_shape(fresh)
  where = shardings(leaves, mesh)
  options = drawing_options(platform_of(mesh), leaves)
  return jax.jit(fresh, out_shardings=where, compiler_options=options)()


def _check_same_text(
  experiment: Experiment, bundle: bundles.Bundle, identity: str
) -> None:
  """An imported image model brings no text encoder, and takes any as wide."""
  text = bundle.parts.get(bundles.TEXT)
  if text and text.meta["identity"] != identity:
    raise UserError(
      f"config.init_from={experiment.init_from}",
      "was trained with another text encoder than config.text names",
      "use the same tokenizer, weights and max_length",
    )


def start_or_resume(
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
    UserError: weights or checkpoint are of another config.
  """
  optimizer = make_optimizer(experiment.train, joint=experiment.joint)
  pattern = trainable_pattern(experiment)
  # One object: what is traced once is not traced again.
  fresh = functools.partial(fresh_params, experiment, task)
  abstract, _ = _abstract_state(experiment, jax.eval_shape(fresh), mesh)
  restored = checkpoints.restore(abstract)
  if restored is None:
    params = initial_params(experiment, task, mesh, text, fresh)
    trainable, frozen = split(params, pattern)
    name = checkpoints.save_frozen(multihost.to_host(frozen))
    # What trains is float32, whatever the source was (IF's is float16).
    float32 = lambda x: x.astype(jnp.float32) if x.dtype != jnp.float32 else x
    trainable = multihost.lay_out(
      jax.tree.map(float32, trainable), shardings(trainable, mesh)
    )
    where = jax.tree.map(lambda x: x.sharding, abstract)
    first = functools.partial(init_state, optimizer=optimizer)
    state = jax.jit(first, out_shardings=where)(trainable)
  else:
    state, name = restored
    frozen = checkpoints.load_frozen(name)
  _check_pictures(experiment, state.trainable)
  held = multihost.lay_out(as_held(frozen, experiment), shardings(frozen, mesh))
  return state, held, name


def abstract_state(
  experiment: Experiment, task: Task, mesh: jax.sharding.Mesh
) -> tuple[TrainState, FlatParams]:
  """Shapes of state and frozen weights, and where they lie, at no memory.

  Frozen weights as the config would make them: a source may keep them in
  another dtype.
  """
  shapes = jax.eval_shape(functools.partial(fresh_params, experiment, task))
  return _abstract_state(experiment, shapes, mesh)


def _abstract_state(
  experiment: Experiment, shapes: FlatParams, mesh: jax.sharding.Mesh
) -> tuple[TrainState, FlatParams]:
  """`abstract_state`, of the shapes of all weights."""
  optimizer = make_optimizer(experiment.train, joint=experiment.joint)
  trainable, frozen = split(shapes, trainable_pattern(experiment))
  state = jax.eval_shape(
    functools.partial(init_state, optimizer=optimizer), trainable
  )
  held = jax.eval_shape(lambda tree: as_held(tree, experiment), frozen)
  return tuple(
    multihost.abstract(tree, shardings(tree, mesh)) for tree in (state, held)
  )


def check_text(experiment: Experiment, text: TextEncoder) -> None:
  """Raises a UserError where network and text encoder differ in width."""
  wanted, given = experiment.model.text_dim, text.config.d_model
  if wanted != given:
    raise UserError(
      f"config.model.text_dim={wanted},",
      f"but the text encoder is {given} wide",
      "give T5 v1.1 weights of that width with config.text.weights=DIR",
    )


def fresh_params(experiment: Experiment, task: Task) -> FlatParams:
  """Newly initialised weights, and an adapter where one is to train."""
  key, config = jax.random.key(experiment.seed), experiment.lora
  weights = task.init(key)
  if not config.rank:
    return weights
  return weights | lora.init_adapter(weights, config.target, config.rank, key)


def as_held(frozen: FlatParams, experiment: Experiment) -> FlatParams:
  """Frozen weights as they lie on the device."""
  if experiment.train.frozen_dtype == "source":
    return frozen
  return cast_kernels(frozen, experiment.train.frozen_dtype)


def _check_pictures(experiment: Experiment, trainable: FlatParams) -> None:
  """Pictures go past what inflation added: something else has to train."""
  spatial = any(map(is_spatial, trainable))
  if experiment.data.images and experiment.model.temporal and not spatial:
    raise UserError(
      "config.data.images:",
      "pictures teach the spatial layers, which are frozen here",
      "leave images out, or set config.train.trainable to train them",
    )


def _without_surplus(
  experiment: Experiment, source: FlatParams, name: str
) -> FlatParams:
  """Leaves out what a larger stage has beyond this one, and says so."""
  surplus = ["temporal_"] if experiment.model.temporal is None else []
  surplus += [] if experiment.model.cond_channels else ["cond_in"]
  kept = {k: v for k, v in source.items() if not k.startswith(tuple(surplus))}
  if len(kept) < len(source):
    print(
      f"{name} has {len(source) - len(kept)} leaves of {' and '.join(surplus)} "
      f"that stage {experiment.stage!r} does without: they are left out",
      file=sys.stderr,
    )
  return kept


def _source(experiment: Experiment) -> tuple[bundles.Bundle, str]:
  """The bundle to start from and the stage in it."""
  bundle = bundles.open_bundle(experiment.init_from, "config.init_from")
  wanted = [s for s in (experiment.stage, experiment.parent) if s]
  wanted += _LARGER.get(experiment.stage, ())
  for stage in wanted:
    if stage in bundle.parts:
      return bundle, stage
  raise UserError(
    f"config.init_from={experiment.init_from}",
    f"holds {', '.join(sorted(bundle.parts))}",
    f"stage {experiment.stage!r} starts from {' or '.join(wanted)}",
  )
