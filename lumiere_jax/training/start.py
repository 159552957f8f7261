"""Where a run starts: from nothing, from a bundle, or where it stopped."""

import functools

import jax

from lumiere_jax.data.text import TextEncoder
from lumiere_jax.io import bundle as bundles
from lumiere_jax.models.inflate import inflate, split
from lumiere_jax.parallel import mesh as meshes
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.state import TrainState, init_state, make_optimizer
from lumiere_jax.training.tasks import Task
from lumiere_jax.typing import FlatParams, UserError

SCRATCH = "scratch"
EVERYTHING = ".*"


def check_init_from(experiment: Experiment, *, resuming: bool) -> None:
  """Raises a UserError where a stage that inflates another is given none.

  Args:
    experiment: the stage.
    resuming: the workdir has a checkpoint, so that what the run once started
      from may be gone.
  """
  if experiment.parent and not experiment.init_from:
    raise UserError(
      f"config.init_from is missing: stage {experiment.stage!r} inflates a "
      f"trained {experiment.parent!r} model; give its bundle or workdir with "
      "--config.init_from=DIR (train one with "
      f"--config=configs/{experiment.parent}.py), or "
      f"--config.init_from={SCRATCH} to train every layer from nothing"
    )
  if not from_scratch(experiment) and not resuming:
    _source(experiment)


def from_scratch(experiment: Experiment) -> bool:
  """Whether the stage starts from nothing."""
  return experiment.init_from in ("", SCRATCH)


def trainable_pattern(experiment: Experiment) -> str:
  """Regex of the leaves that train: from scratch, all of them."""
  if from_scratch(experiment):
    return EVERYTHING
  return experiment.train.trainable


def initial_params(
  experiment: Experiment, task: Task, text_identity: str
) -> FlatParams:
  """Fresh weights, or those of `init_from` with fresh temporal ones added.

  Raises:
    UserError: `init_from` holds no such stage, was made with another config
      (differing leaves are named) or with another text encoder.
  """
  fresh = jax.jit(task.init)(jax.random.key(experiment.seed))
  if from_scratch(experiment):
    return fresh
  bundle, stage = _source(experiment)
  if bundle.parts["text"].meta["identity"] != text_identity:
    raise UserError(
      f"config.init_from={experiment.init_from} was trained with another text "
      "encoder than config.text names; use the same tokenizer, weights and "
      "max_length"
    )
  name = f"config.init_from={experiment.init_from}, stage {stage!r},"
  return inflate(bundle.load(stage), fresh, name)


def start_or_resume(
  experiment: Experiment,
  task: Task,
  checkpoints: Checkpoints,
  mesh: jax.sharding.Mesh,
  text_identity: str,
) -> tuple[TrainState, FlatParams, str]:
  """The newest state of the workdir, or the first one.

  Returns:
    state, frozen weights and the name these are saved under.

  Raises:
    UserError: weights or checkpoint are of another config.
  """
  optimizer = make_optimizer(experiment.train)
  pattern = trainable_pattern(experiment)
  everywhere = meshes.replicated(mesh)
  step = checkpoints.latest_step()
  if step is None:
    params = initial_params(experiment, task, text_identity)
    trainable, frozen = split(params, pattern)
    state = init_state(trainable, optimizer)
    name = checkpoints.save_frozen(jax.device_get(frozen))
  else:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    abstract = jax.eval_shape(
      functools.partial(init_state, optimizer=optimizer),
      split(shapes, pattern)[0],
    )
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      abstract,
    )
    state, name = checkpoints.restore(abstract, step)
    frozen = checkpoints.load_frozen(name)
  put = functools.partial(jax.device_put, device=everywhere)
  return put(state), put(frozen), name


def check_text(experiment: Experiment, text: TextEncoder) -> None:
  """Raises a UserError where network and text encoder differ in width."""
  wanted, given = experiment.model.text_dim, text.config.d_model
  if wanted != given:
    raise UserError(
      f"config.model.text_dim={wanted}, but the text encoder is {given} wide; "
      "give T5 v1.1 weights of that width with --config.text.weights=DIR"
    )


def _source(experiment: Experiment) -> tuple[bundles.Bundle, str]:
  """The bundle to start from and the stage in it."""
  bundle = bundles.open_bundle(experiment.init_from, "config.init_from")
  wanted = [s for s in (experiment.stage, experiment.parent) if s]
  for stage in wanted:
    if stage in bundle.parts:
      return bundle, stage
  raise UserError(
    f"config.init_from={experiment.init_from} holds "
    f"{', '.join(sorted(bundle.parts))}; stage {experiment.stage!r} starts "
    f"from {' or '.join(wanted)}"
  )
