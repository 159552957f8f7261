"""Checks that a config means the same as the weights it starts from."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from lumiere_jax.errors import UserError
from lumiere_jax.stages.config import StageConfig, upgrade_format_1
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.training.config import SCHEDULE_FREE, Experiment
from lumiere_jax.training.metric_logger import JsonLines

RUNS = "runs.jsonl"
SCRATCH = "scratch"
EVERYTHING = ".*"

# Settings that change what weights compute, but not their shapes.
_NETWORK = (
  *("noise_embedding", "noise_embedding_shift", "low_resolution", "mask_text"),
  *("activation", "norm_groups", "head_dim", "pool_heads", "skip_scale"),
  *("activate_embedding_once", "patch"),
)

# What frozen layers were trained to predict, and for which null text.
_TASK = ("prediction", "null_text")

# What cannot change within a run. Loss weights and dropout can.
_FIXED = {
  "diffusion": (
    *("schedule", "noise", "noise_mean", "noise_std", "log_snr_min"),
    *("log_snr_max", "shift", *_TASK),
  ),
  "model": _NETWORK,
  "text": ("max_length", "cleaning"),
}


def last_run(workdir: Path) -> dict[str, Any]:
  """The newest record in `runs.jsonl`, or {}."""
  records = JsonLines(workdir / RUNS).read()
  return records[-1] if records else {}


def check_source(experiment: Experiment, source: StageConfig) -> None:
  """Raises a UserError where the source's weights mean something else.

  If all layers train, prediction and null text may differ.
  """
  checked: dict[str, tuple[str, ...]] = {"model": _NETWORK}
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
      f"was trained with other settings: {'; '.join(differing)}",
      "use the same ones",
    )


def check_resumed(experiment: Experiment, run: Mapping[str, Any]) -> None:
  """Raises a UserError where a fixed setting of the `last_run` has changed.

  What an older version did not record is not compared.
  """
  before = upgrade_format_1(run.get("config", {}))
  now = dataclasses.asdict(experiment)
  fixed: dict[str, tuple[str, ...]] = dict(_FIXED)
  if experiment.train.optimizer == SCHEDULE_FREE:
    fixed["train"] = ("b1",)  # its average is read from the weights with it
  differing = [
    (f"config.{part}.{key}", now[part][key], before[part][key])
    for part, keys in fixed.items()
    for key in keys
    if key in before.get(part, {}) and now[part][key] != before[part][key]
  ]
  source, old_source = experiment.init_from, before.get("init_from")
  if old_source is not None and not _same_source(source, old_source):
    differing.append(("config.init_from", source, old_source))
  if differing:
    changes = "; ".join(f"{k} is {a!r} and was {b!r}" for k, a, b in differing)
    raise UserError(
      "config",
      f"differs from that of the run in the workdir: {changes}",
      "use the old values, or set config.resume=false to start a new run",
    )


def check_text_encoder(identity: str, run: Mapping[str, Any]) -> None:
  """Raises a UserError where the text encoder of a run has changed."""
  if identity != run.get("text_encoder", identity):
    raise UserError(
      "config.text",
      "names another text encoder than that of the run in the workdir",
      "use the same tokenizer and weights, or set config.resume=false to "
      "start a new run",
    )


def _same_source(a: str, b: str) -> bool:
  nothing = ("", SCRATCH)
  if a in nothing or b in nothing:
    return a in nothing and b in nothing
  return Path(a).resolve() == Path(b).resolve()


def finished_step(experiment: Experiment, workdir: Path) -> int | None:
  """The last step of a finished run; None if there is work left.

  A run killed between its last checkpoint and its bundle is not finished.
  """
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  latest = max((int(name) for name in names if name.isdigit()), default=0)
  if latest < experiment.train.steps or not bundles.is_bundle(workdir):
    return None
  part = bundles.open_bundle(workdir).parts.get(experiment.stage)
  return latest if part and part.meta.get("step") == latest else None
