"""Restores a run's checkpoint on a mesh: python -m ... WORKDIR MESH OUT.npz."""

from pathlib import Path
import sys

import jax
import numpy as np

from lumiere_jax.parallel import distributed, multihost
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.initialization import abstract_state
from tests.scale.experiments import MICRO, mesh_of
from tests.training.conftest import make_task


def main(workdir: str, shape: str, out: str) -> None:
  """Saves all leaves of the restored state."""
  with distributed.joined():
    mesh = mesh_of(*map(int, shape.split("x")))
    state, _ = abstract_state(MICRO, make_task(MICRO), mesh)
    checkpoints = Checkpoints(Path(workdir), MICRO.train)
    restored, _ = checkpoints.restore(state)
    for leaf, wanted in zip(
      jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
    ):
      assert leaf.sharding == wanted.sharding
    leaves = jax.tree.leaves(multihost.to_host(restored))
    if is_primary():
      np.savez(out, *leaves)
    checkpoints.close()


if __name__ == "__main__":
  main(*sys.argv[1:])
