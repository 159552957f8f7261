"""Scores models.

python -m lumiere_jax.evaluate --metric=alignment --model=BUNDLE \
    --out=scores.json [--markdown=scores.md] [--keep=FOLDER] [--count=128] \
    [--tasks=text_to_video,image_to_video] [--seed=0] [--steps=50]

alignment is for models of the procedural scenes: whether their videos show
what is asked for, read from the pixels, for every task the model can do.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.evals.runner import METRICS, EvalRequest, evaluate
from lumiere_jax.evals.tasks import TASKS
from lumiere_jax.flags import MeshParser, read_settings, settings_flags

METRIC = flags.DEFINE_string("metric", "alignment", " or ".join(METRICS) + ".")


MODEL = flags.DEFINE_multi_string(
  "model",
  [],
  "Bundle, workdir of a run, or name on the Hugging Face hub; give it again to "
  "add what is lacking: base, super-resolution, text encoder.",
)


ASKED = {
  "out": flags.DEFINE_string("out", "", "JSON file for all numbers."),
  "markdown": flags.DEFINE_string(
    "markdown", "", "File for tables of them, for a model card."
  ),
  "keep": flags.DEFINE_string(
    "keep", "", "Folder for the videos, and pictures of those that fail."
  ),
  "overwrite": flags.DEFINE_bool(
    "overwrite", False, "Replaces files that are there already."
  ),
  "count": flags.DEFINE_integer(
    "count", EvalRequest.count, "Videos for each line of the tables."
  ),
  "seed": flags.DEFINE_integer(
    "seed", EvalRequest.seed, "Of scenes and noise."
  ),
  "batch_size": flags.DEFINE_integer(
    "batch_size",
    EvalRequest.batch_size,
    "Videos made of prompts alone that are sampled at once.",
  ),
  "two_objects": flags.DEFINE_float(
    "two_objects",
    EvalRequest.two_objects,
    "Share of text_to_video prompts with two objects.",
  ),
  "strength": flags.DEFINE_float(
    "strength",
    EvalRequest.strength,
    "Of video_to_video, above 0 to 1; default: as sample has it.",
  ),
  "style": flags.DEFINE_string(
    "style",
    EvalRequest.style,
    "For stylize: as for sample, of the look of style_scenes; e.g. pastel.",
  ),
  "mesh": flags.DEFINE(
    MeshParser(), "mesh", None, "DATA,FSDP,SPACE: devices, as for sample."
  ),
}


WANTED = flags.DEFINE_list(
  "tasks", [], f"Of {', '.join(TASKS)}; default: all that the model can do."
)


SETTINGS = settings_flags()


def main(argv: list[str]) -> None:
  """Reads the flags and scores."""
  del argv
  request = EvalRequest(
    metric=METRIC.value,
    models=tuple(MODEL.value),
    tasks=tuple(WANTED.value),
    settings=read_settings(SETTINGS),
    **{name: flag.value for name, flag in ASKED.items()},
  )
  evaluate(request)


if __name__ == "__main__":
  cli.run(main)
