"""Checkpoints to resume from (Orbax), and the frozen weights beside them."""

from collections.abc import Iterator, Mapping
import contextlib
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
from lumiere_jax.training.optimizer import CountedApart, counted_as
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams

_COUNTS = ("step", "skipped", "skipped_in_a_row")


_MARGIN = 2**20  # Bytes for all that a checkpoint and a bundle hold besides.


# What Orbax and TensorStore raise where files are cut short or missing.
_DAMAGE = (ValueError, OSError, KeyError, TypeError)


_DAMAGED = "damaged-"


class Checkpoints:
  """The newest states of a run and the best ones.

  A state is complete or absent: Orbax writes it under a temporary name in the
  background and renames it. Frozen weights are in none of them; `save_frozen`
  keeps them once, named by their content.
  """

  def __init__(self, workdir: Path, config: TrainConfig):
    self._frozen = workdir / "frozen"
    quality = lambda metrics: -metrics["held_out"]
    best = policies.BestN(
      get_metric_fn=quality,
      n=config.keep_best,
      keep_checkpoints_without_metrics=False,
    )
    kept = [policies.LatestN(config.keep), best]
    self._folder = (workdir / "checkpoints").resolve()
    if is_primary():
      self._set_aside_without_metrics()
    barrier("checkpoints")
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=quality,  # without which metrics are not written
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # what a killed run began to write
      ),
    )

  def save(
    self, state: TrainState, frozen: str, held_out: float | None = None
  ) -> None:
    """Starts saving, unless this step is saved.

    Args:
      state: to save.
      frozen: what `save_frozen` returned.
      held_out: its held-out loss, where that was just measured.
    """
    if self._manager.latest_step() == int(state.step):
      return
    # Weights and average twice: once more in the bundle that comes with it.
    require_space(
      self._folder,
      _MARGIN
      + sum(leaf.nbytes for leaf in jax.tree.leaves((state, state.ema))),
    )
    about = {
      "frozen": frozen,
      "trainable": _shapes(state.trainable),
      "opt_state": _shapes(_opt_leaves(state)),
    }
    with self._telling_what_failed():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_to_tree(state)),
          about=ocp.args.JsonSave(about),
        ),
        metrics=None if held_out is None else {"held_out": held_out},
      )

  def restore(self, abstract: TrainState) -> tuple[TrainState, str] | None:
    """The newest state, laid out as `abstract` says, and its frozen name.

    A checkpoint that is damaged is set aside, with a word, for the one before
    it.

    Returns:
      None: there is no checkpoint.

    Raises:
      UserError: it was saved by another config (differing leaves are named),
        or all there are are damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        return self._restore(abstract, step)
      except _DAMAGE as error:
        if is_primary():
          self._set_aside(step, error)
        barrier(f"damaged {step}")
        self._manager.reload()
    if list(self._folder.glob(f"{_DAMAGED}*")):
      raise UserError(
        f"{self._folder}:",
        "every checkpoint is damaged",
        "start anew with config.resume=false, from bundle/ if that is whole",
      )
    return None

  def _restore(self, abstract: TrainState, step: int) -> tuple[TrainState, str]:
    about = self._read(step, about=ocp.args.JsonRestore())["about"]
    saved = _counted_as_saved(about, abstract)
    _check_config(about, saved, step)
    target = ocp.args.StandardRestore(_to_tree(saved))
    tree = self._read(step, state=target)["state"]
    leaves = [tree["opt_state"][name] for name in _opt_leaves(saved)]
    opt_state = jax.tree.unflatten(jax.tree.structure(saved.opt_state), leaves)
    state = abstract.replace(
      **{name: tree[name] for name in _COUNTS},
      trainable=flatten(tree["trainable"]),
      ema=flatten(tree["ema"]),
      opt_state=counted_as(opt_state, abstract.opt_state),
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

  def _set_aside_without_metrics(self) -> None:
    """Orbax opens no folder in which it cannot read every step's metrics."""
    for step in self._whole_steps():
      path = self._folder / str(step) / "metrics" / "metrics"
      try:
        json.loads(path.read_text() if path.parent.exists() else "{}")
      except _DAMAGE as error:
        self._set_aside(step, error)

  def _read(self, step: int, **items: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**items))

  def frozen_path(self, name: str) -> Path:
    """File of frozen weights."""
    return self._frozen / name

  def save_frozen(self, frozen: FlatParams) -> str:
    """Writes frozen weights unless they are there; returns the file's name."""
    if not frozen:
      return ""
    name = f"{fingerprint(frozen)}.safetensors"
    if is_primary() and not self.frozen_path(name).exists():
      safetensors.save(self.frozen_path(name), frozen)
    barrier(name)
    return name

  def load_frozen(self, name: str) -> FlatParams:
    """The inverse of `save_frozen`."""
    return safetensors.load(self.frozen_path(name)) if name else {}

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      UserError: what was being saved could not be written.
    """
    with self._telling_what_failed():
      self._manager.wait_until_finished()
    self._manager.close()

  @contextlib.contextmanager
  def _telling_what_failed(self) -> Iterator[None]:
    """Orbax writes in the background, and says later that it could not."""
    try:
      yield
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
      cause = str(error).rpartition(": ")[2].partition(" [")[0]
      whole = self._whole_steps()
      raise UserError(
        f"{self._folder}:",
        f"a checkpoint cannot be written ({cause})",
        "see to it that there is room and that you may write there, "
        "then run the same command again: it goes on from "
        f"{f'step {max(whole)}' if whole else 'the start'}",
      ) from error

  def _whole_steps(self) -> list[int]:
    """Steps whose checkpoints are complete, by what lies on the disk."""
    if not self._folder.is_dir():
      return []
    names = [path.name for path in self._folder.iterdir()]
    return [int(name) for name in names if name.isdigit()]


def _to_tree(state: TrainState) -> dict[str, Any]:
  """Plain nested dicts, which is what Orbax stores most plainly."""
  return {
    **{name: getattr(state, name) for name in _COUNTS},
    "trainable": unflatten(state.trainable),
    "ema": unflatten(state.ema),
    "opt_state": _opt_leaves(state),
  }


def _opt_leaves(state: TrainState) -> FlatParams:
  """The optimizer's leaves by their number."""
  return {
    f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))
  }


def _shapes(flat: FlatParams) -> dict[str, list[int]]:
  return {name: list(leaf.shape) for name, leaf in flat.items()}


def _counted_as_saved(
  about: Mapping[str, Any], abstract: TrainState
) -> TrainState:
  """The state with a count of added leaves if the checkpoint has one."""
  state, count = abstract.opt_state, abstract.step
  apart = isinstance(state, CountedApart)
  other = state.state if apart else CountedApart(state, count)
  changed = abstract.replace(opt_state=other)
  as_saved = about["opt_state"] == _shapes(_opt_leaves(changed))
  return changed if as_saved else abstract


def _check_config(
  about: Mapping[str, Any], abstract: TrainState, step: int
) -> None:
  """Raises a UserError where a checkpoint is not of this config."""
  name = f"checkpoint {step} of this workdir"
  saved = {
    k: jax.ShapeDtypeStruct(shape, "float32")
    for k, shape in about["trainable"].items()
  }
  check_same_leaves(saved, abstract.trainable, name)
  if about["opt_state"] != _shapes(_opt_leaves(abstract)):
    raise UserError(
      name,
      "was made with another config.train.optimizer, weight_decay or decay",
      "use those it was trained with, or start anew from its bundle "
      "(config.init_from) in another workdir",
    )
