"""The scheduler_config.json of DeepFloyd IF in diffusers, and our configs."""

from collections.abc import Mapping
import math
from typing import Any

from lumiere_jax.pipelines.stage import (
  DiffusionConfig,
  SamplingConfig,
  StageConfig,
)
from lumiere_jax.typing import UserError

_KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# What other values of these mean for sampling has no counterpart here. Absent
# keys have the first value, diffusers' own default or one that IF has too.
_ONLY: dict[str, tuple[Any, ...]] = {
  "beta_schedule": ("squaredcos_cap_v2",),
  "num_train_timesteps": (1000,),
  "rescale_betas_zero_snr": (False, None),
  "steps_offset": (0, None),
  "timestep_spacing": ("leading",),
  "trained_betas": (None,),
}
IF = {
  "_class_name": "DDPMScheduler",
  "_diffusers_version": "0.42.1",
  "beta_schedule": "squaredcos_cap_v2",
  "clip_sample": True,
  "dynamic_thresholding_ratio": 0.95,
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "sample_max_value": 1.5,
  "steps_offset": 0,
  "thresholding": True,
  "timestep_spacing": "leading",
  "variance_type": "learned_range",
}
"""As IF-I's is published; IF-II's has a sample_max_value of 1."""


def from_scheduler(
  content: Mapping[str, Any], name: str, *, learned: bool, upscales: bool
) -> tuple[DiffusionConfig, SamplingConfig]:
  """The process and the sampling that a scheduler's config describes.

  Steps, guidance and noise level are no part of it: they are those of
  diffusers' IF pipelines.

  Args:
    content: of scheduler_config.json.
    name: its path, for errors.
    learned: the network has a learned variance.
    upscales: it is a super-resolution model.

  Raises:
    UserError: a key has a value that has no counterpart here; it is named.
  """
  for key, values in _ONLY.items():
    _check(content, name, key, values)
  _check(content, name, "prediction_type", tuple(_KINDS), "epsilon")
  variance = ("learned_range",) if learned else ("fixed_small",)
  _check(content, name, "variance_type", variance, "fixed_small")
  if not content.get("thresholding", False):
    # Static clipping is dynamic thresholding that never goes above 1.
    _check(content, name, "clip_sample", (True,), True)
    _check(content, name, "clip_sample_range", (1, None), 1)
  thresholding = content.get("thresholding", False)
  ratio = _number(content, name, "dynamic_thresholding_ratio", 0.995, 0, 1)
  cap = _number(content, name, "sample_max_value", 1.0, 1, math.inf)
  return (
    DiffusionConfig(
      schedule="squaredcos_cap_v2",
      prediction=_KINDS[content.get("prediction_type", "epsilon")],
      null_text="empty",
    ),
    SamplingConfig(
      sampler="ddpm",
      steps=50 if upscales else 100,
      grid="schedule",
      guidance_scale=4.0 if upscales else 7.0,
      percentile=ratio,
      max_value=cap if thresholding else 1.0,
      noise_level=0.25,
    ),
  )


def to_scheduler(config: StageConfig) -> dict[str, Any]:
  """The scheduler_config.json of a stage.

  Raises:
    UserError: what its network is conditioned on has no counterpart in
      diffusers' pipelines: noise levels, or the low resolution.
  """
  needed = {"noise_embedding": "squaredcos_cap_v2", "noise_embedding_shift": 0}
  if config.model.in_channels == 6:
    needed["low_resolution"] = "corners"
  for field, only in needed.items():
    if (value := getattr(config.model, field)) != only:
      raise UserError(
        f"config.model.{field}={value!r} has no counterpart in diffusers, "
        f"which needs {only!r}; this model can be kept as a bundle only"
      )
  names = {ours: theirs for theirs, ours in _KINDS.items()}
  sampling, learned = config.defaults, config.model.out_channels == 6
  return {
    **IF,
    "dynamic_thresholding_ratio": sampling.percentile,
    "prediction_type": names[config.diffusion.prediction],
    "sample_max_value": sampling.max_value,
    "variance_type": "learned_range" if learned else "fixed_small",
  }


def _number(
  content: Mapping[str, Any],
  name: str,
  key: str,
  default: float,
  least: float,
  most: float,
) -> float:
  value = content.get(key, default)
  if type(value) not in (int, float) or not least <= value <= most:
    raise UserError(
      f"{name}: {key}={value!r} is no number from {least:g} to {most:g}; give "
      "the scheduler that the model was published with"
    )
  return float(value)


def _check(
  content: Mapping[str, Any],
  name: str,
  key: str,
  values: tuple[Any, ...],
  default: Any = None,
) -> None:
  absent = values[0] if default is None else default
  if (value := content.get(key, absent)) not in values:
    raise UserError(
      f"{name}: {key}={value!r} has no counterpart here, which knows "
      f"{' or '.join(map(repr, values))}; give the scheduler that the model "
      "was published with"
    )
