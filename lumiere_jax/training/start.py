"""Where the weights of a stage come from at step 0."""

import jax

from lumiere_jax.io import bundle as bundles
from lumiere_jax.models.inflate import inflate
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.tasks import Task
from lumiere_jax.typing import FlatParams, UserError

SCRATCH = "scratch"
EVERYTHING = ".*"


def check_init_from(experiment: Experiment) -> None:
  """Raises a UserError where a stage that inflates another is given none."""
  if experiment.parent and not experiment.init_from:
    raise UserError(
      f"config.init_from is missing: stage {experiment.stage!r} inflates a "
      f"trained {experiment.parent!r} model; give its bundle or workdir with "
      "--config.init_from=DIR (train one with "
      f"--config=configs/{experiment.parent}.py), or "
      f"--config.init_from={SCRATCH} to train every layer from nothing"
    )
  if not from_scratch(experiment):
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
