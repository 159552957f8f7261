"""Orbax checkpoints and frozen weights of a run."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from lumiere_jax.errors import UserError
from lumiere_jax.inference.adapters import fingerprint
from lumiere_jax.models.params import check_same_leaves, flatten, unflatten
from lumiere_jax.parallel.multihost import barrier, is_primary
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import require_space
from lumiere_jax.training.config import TrainConfig
from lumiere_jax.training.optimizer import SeparateCount, match_counts
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams

_COUNTS = ("step", "skipped", "skipped_in_a_row")
_MARGIN = 2**20  # Bytes for metadata of a checkpoint and a bundle.

# What Orbax and TensorStore raise for truncated or missing files.
_DAMAGE_ERRORS = (ValueError, OSError, KeyError, TypeError)
_DAMAGED = "damaged-"


class Checkpoints:
  """The newest checkpoints of a run and the best ones.

  Orbax writes a checkpoint in the background under a temporary name and renames
  it when complete. Frozen weights are not in it: `save_frozen` writes them
  once, named by a hash of their content.
  """

  def __init__(self, workdir: Path, config: TrainConfig):
    self._frozen = workdir / "frozen"
    self._stds = list(config.ema_stds)
    quality = lambda metrics: -metrics["held_out"]
    best = policies.BestN(
      get_metric_fn=quality,
      n=config.keep_best,
      keep_checkpoints_without_metrics=False,
    )
    kept = [policies.LatestN(config.keep), best]
    self._folder = (workdir / "checkpoints").resolve()
    if is_primary():
      self._set_aside_unreadable_metrics()
    barrier("checkpoints")
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=quality,  # Orbax writes metrics only if it is set
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # left by a killed run
      ),
    )

  def save(
    self, state: TrainState, frozen: str, held_out: float | None = None
  ) -> None:
    """Starts saving, unless this step is already saved.

    `frozen` is the name of `save_frozen`, `held_out` the loss at this step.
    """
    if self._manager.latest_step() == int(state.step):
      return
    # The average counts twice: it is also written to the bundle.
    require_space(
      self._folder,
      _MARGIN
      + sum(leaf.nbytes for leaf in jax.tree.leaves((state, state.ema))),
    )
    about = {
      "frozen": frozen,
      "ema_stds": self._stds,
      "trainable": _shapes(state.trainable),
      "opt_state": _shapes(_opt_leaves(state)),
    }
    with self._save_errors_as_user_errors():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_to_tree(state)),
          about=ocp.args.JsonSave(about),
        ),
        metrics=None if held_out is None else {"held_out": held_out},
      )

  def restore(self, abstract: TrainState) -> tuple[TrainState, str] | None:
    """The newest state and the name of its frozen weights, or None.

    `abstract` has the shapes and shardings to restore to. A damaged checkpoint
    is set aside, and the one before it is restored.

    Raises:
      UserError: it was saved with another config (differing leaves are named),
        or all checkpoints are damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        return self._restore(abstract, step)
      except _DAMAGE_ERRORS as error:
        if is_primary():
          self._set_aside(step, error)
        barrier(f"damaged {step}")
        self._manager.reload()
    if list(self._folder.glob(f"{_DAMAGED}*")):
      raise UserError(
        f"{self._folder}:",
        "every checkpoint is damaged",
        "start a new run with config.resume=false, from bundle/ if that is "
        "intact",
      )
    return None

  def _restore(self, abstract: TrainState, step: int) -> tuple[TrainState, str]:
    about = self._read(step, about=ocp.args.JsonRestore())["about"]
    saved = _match_saved_counts(about, abstract)
    _check_config(about, saved, step, self._stds)
    target = ocp.args.StandardRestore(_to_tree(saved))
    tree = self._read(step, state=target)["state"]
    leaves = [tree["opt_state"][name] for name in _opt_leaves(saved)]
    opt_state = jax.tree.unflatten(jax.tree.structure(saved.opt_state), leaves)
    state = TrainState(
      **{name: tree[name] for name in _COUNTS},
      trainable=flatten(tree["trainable"]),
      ema=flatten(tree["ema"]),
      averages=tuple(
        flatten(tree[_average(i)]) for i in range(len(self._stds))
      ),
      opt_state=match_counts(opt_state, abstract.opt_state),
    )
    return state, about["frozen"]

  def _set_aside(self, step: int, error: Exception) -> None:
    name = f"{_DAMAGED}{step}"
    earlier = len(list(self._folder.glob(f"{name}*")))
    name += f"-{earlier + 1}" if earlier else ""
    print(
      f"checkpoint {step} is damaged ({str(error).splitlines()[0]:.200}); "
      f"set aside as {name}",
      file=sys.stderr,
    )
    (self._folder / str(step)).rename(self._folder / name)

  def _set_aside_unreadable_metrics(self) -> None:
    """Orbax cannot open a folder unless it can read every step's metrics."""
    for step in self._complete_steps():
      path = self._folder / str(step) / "metrics" / "metrics"
      try:
        json.loads(path.read_text() if path.parent.exists() else "{}")
      except _DAMAGE_ERRORS as error:
        self._set_aside(step, error)

  def _read(self, step: int, **items: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**items))

  def frozen_path(self, name: str) -> Path:
    """File of frozen weights."""
    return self._frozen / name

  def save_frozen(self, frozen: FlatParams) -> str:
    """Writes frozen weights unless the file exists; returns its name."""
    if not frozen:
      return ""
    name = f"{fingerprint(frozen)}.safetensors"
    if is_primary() and not self.frozen_path(name).exists():
      safetensors.save(self.frozen_path(name), frozen)
    barrier(name)
    return name

  def load_frozen(self, name: str) -> FlatParams:
    """Reads what `save_frozen` wrote."""
    return safetensors.load(self.frozen_path(name)) if name else {}

  def close(self) -> None:
    """Waits until everything is on disk."""
    with self._save_errors_as_user_errors():
      self._manager.wait_until_finished()
    self._manager.close()

  @contextlib.contextmanager
  def _save_errors_as_user_errors(self) -> Iterator[None]:
    """Orbax writes in the background and raises at a later call."""
    try:
      yield
    except (OSError, ValueError) as error:  # TensorStore raises ValueErrors
      cause = str(error).rpartition(": ")[2].partition(" [")[0]
      steps = self._complete_steps()
      raise UserError(
        f"{self._folder}:",
        f"a checkpoint cannot be written ({cause})",
        "check permissions and free space, then run the same command again: "
        f"it resumes from {f'step {max(steps)}' if steps else 'the start'}",
      ) from error

  def _complete_steps(self) -> list[int]:
    """Steps whose checkpoints on disk are complete."""
    if not self._folder.is_dir():
      return []
    names = [path.name for path in self._folder.iterdir()]
    return [int(name) for name in names if name.isdigit()]


def _to_tree(state: TrainState) -> dict[str, Any]:
  """The state as nested dicts, for Orbax."""
  return {
    **{name: getattr(state, name) for name in _COUNTS},
    "trainable": unflatten(state.trainable),
    "ema": unflatten(state.ema),
    **{_average(i): unflatten(x) for i, x in enumerate(state.averages)},
    "opt_state": _opt_leaves(state),
  }


def _average(number: int) -> str:
  return f"average_{number}"


def _opt_leaves(state: TrainState) -> FlatParams:
  """The optimizer's leaves by number."""
  return {
    f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))
  }


def _shapes(flat: FlatParams) -> dict[str, list[int]]:
  return {name: list(leaf.shape) for name, leaf in flat.items()}


def _match_saved_counts(
  about: Mapping[str, Any], abstract: TrainState
) -> TrainState:
  """The state with a separate count exactly if the checkpoint has one."""
  state, count = abstract.opt_state, abstract.step
  if isinstance(state, SeparateCount):
    other = state.state
  else:
    sums = getattr(state[-1], "weight_sum", None)
    other = SeparateCount(state, count, sums)
  changed = dataclasses.replace(abstract, opt_state=other)
  matches = about["opt_state"] == _shapes(_opt_leaves(changed))
  return changed if matches else abstract


def _check_config(
  about: Mapping[str, Any], abstract: TrainState, step: int, stds: list[float]
) -> None:
  """Raises a UserError where a checkpoint was saved with another config."""
  name = f"checkpoint {step} of this workdir"
  saved = {
    k: jax.ShapeDtypeStruct(shape, "float32")
    for k, shape in about["trainable"].items()
  }
  check_same_leaves(saved, abstract.trainable, name)
  if (old := about.get("ema_stds", [])) != stds:
    raise UserError(
      name,
      f"was made with config.train.ema_stds={tuple(old)} and not {tuple(stds)}",
      "use the same ones: averages begin with the run",
    )
  if about["opt_state"] != _shapes(_opt_leaves(abstract)):
    raise UserError(
      name,
      "was made with another config.train.optimizer, weight_decay or decay",
      "use the same ones, or start from its bundle (config.init_from) in "
      "another workdir",
    )
