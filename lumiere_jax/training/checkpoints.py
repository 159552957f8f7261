"""Checkpoints to resume from (Orbax), and the frozen weights beside them."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from lumiere_jax.io import safetensors
from lumiere_jax.models.inflate import check_same_leaves, flatten, unflatten
from lumiere_jax.pipelines.adapters import fingerprint
from lumiere_jax.training.config import TrainConfig
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams

_COUNTS = ("step", "skipped", "skipped_in_a_row")


class Checkpoints:
  """The newest states of a run and the best ones.

  A state is complete or absent: Orbax writes it under a temporary name in the
  background and renames it. Frozen weights are in none of them; `save_frozen`
  keeps them once, named by their content.
  """

  def __init__(self, workdir: Path, config: TrainConfig):
    self._frozen = workdir / "frozen"
    kept = [policies.LatestN(config.keep)]
    if config.keep_best:
      kept.append(
        policies.BestN(
          get_metric_fn=lambda metrics: metrics["held_out"],
          reverse=True,  # the lowest are the best
          n=config.keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      (workdir / "checkpoints").resolve(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        enable_async_checkpointing=True,
      ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(
    self, state: TrainState, frozen: str, held_out: float | None = None
  ) -> None:
    """Starts saving, unless this step is saved.

    Args:
      state: to save.
      frozen: what `save_frozen` returned.
      held_out: its held-out loss, where that was just measured.
    """
    if self.latest_step() == int(state.step):
      return
    shapes = {k: list(leaf.shape) for k, leaf in state.trainable.items()}
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_to_tree(state)),
        about=ocp.args.JsonSave({"frozen": frozen, "trainable": shapes}),
      ),
      metrics=None if held_out is None else {"held_out": held_out},
    )

  def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, str]:
    """The state at `step`, laid out as `abstract` says, and its frozen name.

    Raises:
      UserError: it was saved by another config; differing leaves are named.
    """
    about = self._restore(step, about=ocp.args.JsonRestore())["about"]
    saved = {
      k: jax.ShapeDtypeStruct(shape, "float32")
      for k, shape in about["trainable"].items()
    }
    name = f"checkpoint {step} of this workdir"
    check_same_leaves(saved, abstract.trainable, name)
    target = ocp.args.StandardRestore(_to_tree(abstract))
    tree = self._restore(step, state=target)["state"]
    counts = {name: tree[name] for name in _COUNTS}
    state = abstract.replace(
      **counts,
      trainable=flatten(tree["trainable"]),
      ema=flatten(tree["ema"]),
      opt_state=jax.tree.unflatten(
        jax.tree.structure(abstract.opt_state),
        [tree["opt_state"][f"{i:04d}"] for i in range(len(tree["opt_state"]))],
      ),
    )
    return state, about["frozen"]

  def _restore(self, step: int, **items: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**items))

  def frozen_path(self, name: str) -> Path:
    """File of frozen weights."""
    return self._frozen / name

  def save_frozen(self, frozen: FlatParams) -> str:
    """Writes frozen weights unless they are there; returns the file's name."""
    if not frozen:
      return ""
    name = f"{fingerprint(frozen)}.safetensors"
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
    **{name: getattr(state, name) for name in _COUNTS},
    "trainable": unflatten(state.trainable),
    "ema": unflatten(state.ema),
    "opt_state": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)},
  }
