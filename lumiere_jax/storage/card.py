"""The model card of a bundle: README.md as the Hugging Face hub reads it."""

from collections.abc import Iterable, Mapping
import json
import re
from typing import Any

from lumiere_jax.storage.atomic import writing
from lumiere_jax.storage.bundle import TEXT, Bundle

CARD = "README.md"
NOT_STATED = "not stated"
_MARK = (
  "<!-- Written by lumiere_jax; without this line it is left as it is. -->"
)
_LICENCE = re.compile(
  r"apache-2\.0|mit|bsd-[23]-clause|mpl-2\.0|(a|l)?gpl-[23]\.0|unlicense|cc0-1\.0"
  r"|cc-by(-nc)?(-sa|-nd)?-[34]\.0|deepfloyd-if-license"
  r"|openrail(\+\+)?|(creativeml|bigscience)-openrail-m"
)
"""Identifiers of the hub; others have to be given as "other"."""


def write_card(
  bundle: Bundle,
  *,
  name: str = "",
  licence: str = "",
  datasets: Iterable[str] = (),
  scores: Mapping[str, Any] | None = None,
  clips: Mapping[str, str] | None = None,
) -> bool:
  """Writes README.md, unless the user has written their own.

  Args:
    bundle: the bundle.
    name: what `--model` is to be; the folder's name by default.
    licence: of stages that state none.
    datasets: names of repositories on the hub.
    scores: of the evaluation, as its JSON file has them.
    clips: file in the bundle -> the prompt it was made from.

  Returns:
    Whether it was written.
  """
  path = bundle.folder / CARD
  if path.exists() and _MARK not in path.read_text(errors="replace"):
    return False
  stages = {k: p.meta for k, p in bundle.parts.items() if k != TEXT}
  images = all(meta["video"]["num_frames"] == 1 for meta in stages.values())
  task = "text_to_image" if stages and images else "text_to_video"
  licences = licences_of(bundle, licence)
  header = _licence_keys(licences.values()) | {
    "library_name": "lumiere_jax",
    "pipeline_tag": task.replace("_", "-"),
    "datasets": [*datasets],
    "tags": ["lumiere", "jax", "diffusion", *stages],
    "widget": [
      {"text": prompt, "output": {"url": file}}
      for file, prompt in (clips or {}).items()
    ],
  }
  lines = [f"{key}: {_yaml(value)}" for key, value in header.items() if value]
  rows = [
    f"| {stage} | {_clips(meta['video'])} | {meta.get('trained_on', '')} "
    f"| {licences[stage]} |"
    for stage, meta in stages.items()
  ]
  encoder = "none: add a bundle that has one"
  if text := bundle.parts.get(TEXT):
    encoder = f"T5 v1.1, {text.meta['config']['d_model']} wide"
  sections = [
    "\n".join(["---", *lines, "---", _MARK]),
    "## Stages and data",
    "\n".join(
      ["| stage | makes | trained on | licence |", "|---|---|---|---|", *rows]
    ),
    f"Text encoder: {encoder}.",
    f"```\npython -m lumiere_jax.sample --model={name or bundle.folder.name} "
    f'--task={task} --prompt="..."\n```',
  ]
  if scores:
    sections += ["## Scores", _scores(scores)]
  if clips:
    sections += ["## Clips", "<Gallery />"]
  with writing(path) as file:
    file.write(("\n\n".join(sections) + "\n").encode())
  return True


def licences_of(bundle: Bundle, unstated: str = "") -> dict[str, str]:
  """The licence of each stage; `unstated` for those that state none."""
  found = {
    name: part.meta.get("licence", NOT_STATED)
    for name, part in bundle.parts.items()
    if name != TEXT
  }
  return {
    name: (unstated or NOT_STATED) if licence == NOT_STATED else licence
    for name, licence in found.items()
  }


def _licence_keys(licences: Iterable[str]) -> dict[str, str]:
  """The keys that the hub reads the licence from."""
  stated = sorted({*licences} - {NOT_STATED})
  if not stated:
    return {}
  if len(stated) == 1 and _LICENCE.fullmatch(stated[0].lower()):
    return {"license": stated[0].lower()}
  words = re.findall(r"[a-z0-9.]+", " ".join(stated).lower())
  return {"license": "other", "license_name": "-".join(words)}


def _yaml(value: Any) -> str:
  """A value as JSON, which YAML reads; it lacks JSON's surrogate pairs."""
  escape = lambda c: c if c.isprintable() else f"\\U{ord(c):08x}"
  return "".join(map(escape, json.dumps(value, ensure_ascii=False)))


def _scores(scores: Mapping[str, Any]) -> str:
  """A table of all scores; raises where they are not an evaluation's."""
  lines = [
    f"Seed {scores['seed']}. Ranges are 95% intervals.",
    "",
    "| task | row | measure | score | range | n |",
    "|---|---|---|---|---|---|",
  ]
  for task, scored in scores["tasks"].items():
    for row, measures in scored["scores"].items():
      for measure, score in measures.items():
        share = score["kind"] == "share"
        value, low, high = (
          f"{score[k]:.0%}" if share else f"{score[k]:.2f}"
          for k in ("value", "low", "high")
        )
        cells = [task, row, measure, value, f"{low} to {high}", score["count"]]
        lines.append(f"| {' | '.join(map(str, cells))} |".replace("_", " "))
  return "\n".join(lines)


def _clips(video: Mapping[str, Any]) -> str:
  height, width = video["resolution"]
  frames = video["num_frames"]
  if frames == 1:
    return f"pictures of {width}x{height}"
  return f"{frames} frames of {width}x{height}, {video['fps']:g} a second"
