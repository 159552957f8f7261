"""Trains the shipped cascade; see launch/train_demo.sh.

python -m launch.train_demo [--out=out/train_demo] \
    [--budget_minutes=30] [--warm] [-- FLAG...]

Flags after -- go to every stage of `lumiere_jax.main`.
"""

from pathlib import Path
import sys

from absl import app, flags

from launch.shipping import Training

OUT = flags.DEFINE_string("out", "out/train_demo", "Folder of all runs.")
BUDGET = flags.DEFINE_float(
  "budget_minutes",
  None,
  "Wall-clock minutes for all stages; without it each trains to its last step. "
  "A second run continues the stages that no other stage has started from.",
  lower_bound=2,
)
WARM = flags.DEFINE_bool(
  "warm",
  False,
  "Compiles later stages while the first one trains, to save accelerator time.",
)


def main(argv: list[str]) -> None:
  """Trains all stages, then writes the bundle."""
  budget = BUDGET.value and 60 * BUDGET.value
  training = Training(Path(OUT.value), argv[1:])
  sys.exit(training.run(warm=WARM.value, budget=budget))


if __name__ == "__main__":
  app.run(main)
