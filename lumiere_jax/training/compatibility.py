"""What gives weights their meaning, checked where a run starts or resumes."""

from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path
import sys
from typing import Any

from lumiere_jax.diffusion.noise_levels import auto_shift
from lumiere_jax.errors import UserError
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.stages.config import AUTO, StageConfig, upgrade_format_1
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.metric_logger import JsonLines

RUNS = "runs.jsonl"


SCRATCH = "scratch"


EVERYTHING = ".*"


# What weights mean and their shapes do not show.
_NETWORK = (
  *("noise_embedding", "noise_embedding_shift", "low_resolution", "mask_text"),
  *("activation", "norm_groups", "head_dim", "pool_heads", "skip_scale"),
  *("activate_embedding_once", "patch"),
)


# What frozen layers were trained to put out, and for which text.
_TASK = ("prediction", "null_text")


# What a run cannot change on the way. Weights of losses and dropout it can.
_FIXED = {
  "diffusion": (
    *("schedule", "noise", "noise_mean", "noise_std", "log_snr_min"),
    *("log_snr_max", "shift", *_TASK),
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
  """The same, as the run that is resumed settled it; says so."""
  shift = run.get("config", {}).get("diffusion", {}).get("shift")
  if experiment.diffusion.shift != AUTO or shift is None:
    return experiment
  if is_primary():
    print(
      f"config.diffusion.shift={AUTO}: {shift:g}, recorded when this run began",
      file=sys.stderr,
    )
  return _with_shift(experiment, shift)


def _with_shift(experiment: Experiment, shift: float) -> Experiment:
  diffusion = dataclasses.replace(experiment.diffusion, shift=shift)
  return dataclasses.replace(experiment, diffusion=diffusion)


def check_source(experiment: Experiment, source: StageConfig) -> None:
  """Raises a UserError where the weights to start from mean something else.

  Args:
    experiment: that starts from them. Where all layers train, it may take up
      another prediction or null text.
    source: what they were trained as.
  """
  checked = {"model": _NETWORK}
  if experiment.train.trainable != EVERYTHING or experiment.lora.rank:
    checked["diffusion"] = _TASK
  differing = [
    f"config.{part}.{key} is {ours!r} here and {theirs!r} there"
    for part, keys in checked.items()
    for key in keys
    if (ours := getattr(getattr(experiment, part), key))
    != (theirs := getattr(getattr(source, part), key))
  ]
  if differing:
    raise UserError(
      f"config.init_from={experiment.init_from}",
      f"was trained as something else than this stage: {'; '.join(differing)}",
      "set these as they are there",
    )


def check_resumed(experiment: Experiment, run: Mapping[str, Any]) -> None:
  """Raises a UserError where a run goes on as something else than it began.

  Args:
    experiment: as it is to go on.
    run: what `last_run` says of it; what an older version did not record is
      not compared.
  """
  before = upgrade_format_1(run.get("config", {}))
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
      "",
      "this config differs from the one the run in the workdir began "
      f"with: {said}",
      "give what it began with, or config.resume=false to begin anew",
    )


def check_same_encoder(identity: str, run: Mapping[str, Any]) -> None:
  """Raises a UserError where a resumed run has another text encoder now."""
  if identity != run.get("text_encoder", identity):
    raise UserError(
      "config.text",
      "names another text encoder than the run in the workdir began with",
      "give the same tokenizer and weights, or config.resume=false "
      "to begin anew",
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
