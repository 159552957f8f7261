"""Scores models.

python -m lumiere_jax.evaluate --metric=alignment --model=BUNDLE \
    --out=scores.json [--markdown=scores.md] [--keep=FOLDER] [--count=128] \
    [--tasks=text_to_video,image_to_video] [--seed=0] [--steps=50]

alignment is for models of the procedural scenes: it reads from the pixels
whether videos show what the prompt asks for, for every task the model supports.
"""

from lumiere_jax import cli
from lumiere_jax.evals.runner import EvalRequest, evaluate
from lumiere_jax.flags import define, read
from lumiere_jax.inference.settings import Settings

REQUEST = define(EvalRequest)
SETTINGS = define(Settings)


def main(argv: list[str]) -> None:
  """Reads the flags and scores."""
  del argv
  settings = read(Settings, SETTINGS)
  evaluate(read(EvalRequest, REQUEST, settings=settings))


if __name__ == "__main__":
  cli.run(main)
