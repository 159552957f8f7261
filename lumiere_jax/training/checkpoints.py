"""Checkpoints to resume from (Orbax), and the frozen weights beside them."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lumiere_jax.io import safetensors
from lumiere_jax.models.inflate import check_same_leaves, flatten, unflatten
from lumiere_jax.training.config import TrainConfig
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams


class Checkpoints:
  """The newest `keep` states of a run, in `folder`.

  A state is complete or absent: Orbax writes it under a temporary name in the
  background and renames it. Frozen weights are in none of them; `save_frozen`
  keeps them once, named by their content.
  """

  def __init__(self, workdir: Path, config: TrainConfig):
    self._frozen = workdir / "frozen"
    self._manager = ocp.CheckpointManager(
      (workdir / "checkpoints").resolve(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep, enable_async_checkpointing=True
      ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, state: TrainState, frozen: str) -> None:
    """Starts saving; `frozen` is what `save_frozen` returned."""
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_to_tree(state)),
        about=ocp.args.JsonSave({"frozen": frozen}),
      ),
    )

  def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, str]:
    """The state at `step`, laid out as `abstract` says, and its frozen name.

    Raises:
      UserError: it was saved by another config; differing leaves are named.
    """
    target = _to_tree(abstract)
    saved = self._manager.item_metadata(step)["state"]
    check_same_leaves(
      _leaves(saved), _leaves(target), f"checkpoint {step} of this workdir"
    )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(target), about=ocp.args.JsonRestore()
      ),
    )
    tree = restored["state"]
    state = abstract.replace(
      step=tree["step"],
      trainable=flatten(tree["trainable"]),
      ema=flatten(tree["ema"]),
      opt_state=jax.tree.unflatten(
        jax.tree.structure(abstract.opt_state),
        [tree["opt_state"][f"{i:04d}"] for i in range(len(tree["opt_state"]))],
      ),
    )
    return state, restored["about"]["frozen"]

  def frozen_path(self, name: str) -> Path:
    """File of frozen weights."""
    return self._frozen / name

  def save_frozen(self, frozen: FlatParams) -> str:
    """Writes frozen weights unless they are there; returns the file's name."""
    if not frozen:
      return ""
    name = f"{safetensors.content_hash(frozen)[:16]}.safetensors"
    if not self.frozen_path(name).exists():
      safetensors.save(self.frozen_path(name), frozen)
    return name

  def load_frozen(self, name: str) -> FlatParams:
    """The inverse of `save_frozen`."""
    return safetensors.load(self.frozen_path(name)) if name else {}

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def _to_tree(state: TrainState) -> dict[str, Any]:
  """Plain nested dicts, which is what Orbax stores most plainly."""
  leaves = jax.tree.leaves(state.opt_state)
  return {
    "step": state.step,
    "trainable": unflatten(state.trainable),
    "ema": unflatten(state.ema),
    "opt_state": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)},
  }


def _leaves(tree: Any) -> FlatParams:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: hasattr(x, "shape")
    )
  }
