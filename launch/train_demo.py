"""Trains the cascade that ships, as launch/train_demo.sh says.

python -m launch.train_demo [--out=out/train_demo] [--warm] [-- FLAG...]

Flags after -- go to every stage of `lumiere_jax.main`.
"""

from pathlib import Path
import sys

from absl import app, flags

from launch.shipping import Training

OUT = flags.DEFINE_string("out", "out/train_demo", "Folder of all runs.")
WARM = flags.DEFINE_bool(
  "warm",
  False,
  "Compiles later stages while the first one trains, which an accelerator by "
  "the minute wants.",
)


def main(argv: list[str]) -> None:
  """Trains all stages, then writes the bundle."""
  sys.exit(Training(Path(OUT.value), argv[1:]).run(warm=WARM.value))


if __name__ == "__main__":
  app.run(main)
