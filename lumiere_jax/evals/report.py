"""Scores as JSON and as Markdown tables for a model card."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from lumiere_jax.evals.tasks import TASKS
from lumiere_jax.evals.verdicts import SHARE, Score, Table

_UNITS = {"db": "(dB)", "hz": "(Hz)", "psnr": "PSNR"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """The scores of one task, and the seconds it took with compilation."""

  table: Table
  seconds: float


def to_json(
  about: Mapping[str, Any], tasks: Mapping[str, Scored]
) -> dict[str, Any]:
  """All scores; `about` describes the model and how it was scored."""
  return {
    **about,
    "seconds": round(sum(scored.seconds for scored in tasks.values()), 1),
    "tasks": {
      name: {
        "seconds": round(scored.seconds, 1),
        "scores": {
          row: {k: dataclasses.asdict(score) for k, score in scores.items()}
          for row, scores in scored.table.items()
        },
      }
      for name, scored in tasks.items()
    },
  }


def to_markdown(about: Mapping[str, Any], tasks: Mapping[str, Scored]) -> str:
  """A table for each task; see `to_json`."""
  parts = [
    f"{', '.join(about['model'])}: {_steps(about['stages'])}seed "
    f"{about['seed']}; {_sampling(about['sampling'])}. In brackets: 95% "
    "intervals."
  ]
  for name, scored in tasks.items():
    parts.append(f"**{_words(name)}**. {TASKS[name].about}")
    parts.append(_table(scored.table))
  return "\n\n".join(parts) + "\n"


def _steps(stages: Mapping[str, Mapping[str, Any]]) -> str:
  steps = {k: v["step"] for k, v in stages.items() if "step" in v}
  return "".join(f"{name} at step {step}; " for name, step in steps.items())


def _sampling(stages: Mapping[str, Mapping[str, Any]]) -> str:
  return "; ".join(
    f"{name} sampled by {own['sampler']} in {own['steps']} steps at guidance "
    f"{own['guidance_scale']:g}"
    for name, own in stages.items()
  )


def _table(table: Table) -> str:
  columns = list(dict.fromkeys(k for scores in table.values() for k in scores))
  lines = [["", *map(_words, columns)], ["---"] * (len(columns) + 1)]
  for row, scores in table.items():
    cells = [_cell(scores[k]) if k in scores else "" for k in columns]
    lines.append([_words(row), *cells])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(score: Score) -> str:
  scale, end = (100, "%") if score.kind == SHARE else (1, "")
  value, low, high = (
    f"{scale * x:.{0 if scale > 1 else 2}f}"
    for x in (score.value, score.low, score.high)
  )
  return f"{value}{end} ({low} to {high}; n={score.count})"


def _words(name: str) -> str:
  return " ".join(_UNITS.get(word, word) for word in name.split("_"))
