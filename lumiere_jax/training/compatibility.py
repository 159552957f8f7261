"""What gives weights their meaning, checked where a run starts or resumes."""

from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path
from typing import Any

from lumiere_jax.diffusion.noise_levels import auto_shift
from lumiere_jax.io import bundle as bundles
from lumiere_jax.pipelines.stage import AUTO, StageConfig, of_format_1
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.logs import JsonLines
from lumiere_jax.typing import UserError

RUNS = "runs.jsonl"
SCRATCH = "scratch"
_NETWORK = ("noise_embedding", "noise_embedding_shift", "low_resolution")
# What a frozen layer was trained on, by the part of the config that says it.
_INHERITED = {"diffusion": ("prediction", "null_text"), "model": _NETWORK}
# What a run cannot change on the way. Weights of losses and dropout it can.
_FIXED = {
  "diffusion": (
    *("schedule", "noise", "noise_mean", "noise_std", "log_snr_min"),
    *("log_snr_max", "shift", "prediction", "null_text"),
  ),
  "model": _NETWORK,
  "text": ("max_length", "cleaning"),
}


def last_run(workdir: Path) -> dict[str, Any]:
  """What `runs.jsonl` says of the last start of the run in a workdir, or {}."""
  records = JsonLines(workdir / RUNS).read()
  return records[-1] if records else {}


def settle_shift(
  experiment: Experiment, source: StageConfig | None = None
) -> Experiment:
  """The experiment with the number that a shift of 'auto' stands for.

  Args:
    experiment: of which the clips' frames and pixels count.
    source: the model it starts from. None: of a stage that starts from another,
      an unshifted picture model of the same pixels; of others, none.
  """
  if experiment.diffusion.shift != AUTO:
    return experiment
  pixels = math.prod(experiment.data.resolution)
  if source:
    video, shift = source.video, float(source.diffusion.shift)
    parent = video.num_frames, math.prod(video.resolution), shift
  else:
    parent = (1, pixels, 0.0) if experiment.parent else None
  shift = auto_shift(experiment.data.num_frames, pixels, parent)
  return _with_shift(experiment, round(shift, 4))


def recorded_shift(
  experiment: Experiment, run: Mapping[str, Any]
) -> Experiment:
  """The same, as the run that is resumed settled it."""
  shift = run.get("config", {}).get("diffusion", {}).get("shift")
  if experiment.diffusion.shift != AUTO or shift is None:
    return experiment
  return _with_shift(experiment, shift)


def _with_shift(experiment: Experiment, shift: float) -> Experiment:
  diffusion = dataclasses.replace(experiment.diffusion, shift=shift)
  return dataclasses.replace(experiment, diffusion=diffusion)


def check_inherited(
  experiment: Experiment, source: StageConfig, name: str
) -> None:
  """Raises a UserError where frozen layers learnt another task.

  Args:
    experiment: a stage that freezes layers of the source.
    source: what they were trained as.
    name: of the source, for the error.
  """
  differing = [
    f"config.{part}.{key} is {ours!r} here and {theirs!r} there"
    for part, keys in _INHERITED.items()
    for key in keys
    if (ours := getattr(getattr(experiment, part), key))
    != (theirs := getattr(getattr(source, part), key))
  ]
  if differing:
    raise UserError(
      f"{name} was trained on another task than this stage, which freezes its "
      f"layers: {'; '.join(differing)}; set these as they are there"
    )


def check_resumed(experiment: Experiment, run: Mapping[str, Any]) -> None:
  """Raises a UserError where a run goes on as something else than it began.

  Args:
    experiment: as it is to go on.
    run: what `last_run` says of it; what an older version did not record is
      not compared.
  """
  before = of_format_1(run.get("config", {}))
  now = dataclasses.asdict(experiment)
  differing = [
    (f"config.{part}.{key}", now[part][key], before[part][key])
    for part, keys in _FIXED.items()
    for key in keys
    if key in before.get(part, {}) and now[part][key] != before[part][key]
  ]
  if "init_from" in before and not _same_source(
    experiment.init_from, before["init_from"]
  ):
    differing.append(
      ("config.init_from", experiment.init_from, before["init_from"])
    )
  if differing:
    said = "; ".join(f"{k} is {a!r} and was {b!r}" for k, a, b in differing)
    raise UserError(
      f"the run in the workdir began as another one: {said}; give what it "
      "began with, or --config.resume=false to begin anew"
    )


def check_same_encoder(identity: str, run: Mapping[str, Any]) -> None:
  """Raises a UserError where a resumed run has another text encoder now."""
  if identity != run.get("text_encoder", identity):
    raise UserError(
      "config.text names another text encoder than the run in the workdir "
      "began with; give the same tokenizer and weights, or "
      "--config.resume=false to begin anew"
    )


def _same_source(a: str, b: str) -> bool:
  nothing = ("", SCRATCH)
  if a in nothing or b in nothing:
    return a in nothing and b in nothing
  return Path(a).resolve() == Path(b).resolve()


def finished_at(experiment: Experiment, workdir: Path) -> int | None:
  """The last step of a run that has taken all of them; None: there are more.

  A run killed between its last checkpoint and its bundle has more to do.
  """
  folders = (workdir / "checkpoints").iterdir()
  latest = max((int(p.name) for p in folders if p.name.isdigit()), default=0)
  if latest < experiment.train.steps or not bundles.is_bundle(workdir):
    return None
  part = bundles.open_bundle(workdir).parts.get(experiment.stage)
  return latest if part and part.meta.get("step") == latest else None
