"""The experiment: a locked ConfigDict checked once into dataclasses."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.unet import UNetConfig
from lumiere_jax.pipelines.stage import (
  DiffusionConfig,
  StageConfig,
  VideoConfig,
)
from lumiere_jax.typing import UserError, build, check_choice

PARENTS = {"t2i": None, "base": "t2i", "ssr_image": None, "ssr": "ssr_image"}
"""Stages, and the image stage that each video stage inflates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
  """The frozen text encoder.

  Attributes:
    tokenizer: sentencepiece model; '' is the small built-in one.
    weights: folder or file of T5 v1.1 encoder weights (safetensors, Hugging
      Face names); '' takes a small encoder with fixed random weights, whose
      features tell words apart but know nothing of English.
    max_length: tokens, the end mark included.
    cache: folder of encoded captions; '' is `text_cache` in the workdir.
  """

  tokenizer: str = ""
  weights: str = ""
  max_length: int = 77
  cache: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """How a stage is trained.

  Attributes:
    steps: to train in all, earlier runs in the workdir included.
    batch_size: clips a step over all devices.
    trainable: regex searched in parameter paths; the rest is frozen.
      `init_from=scratch` trains everything.
    learning_rate: of Adam, after warm-up.
    warmup_steps: of linear warm-up.
    cooldown_steps: of linear decay to 0 at the end; a short run needs it.
    b1: of Adam.
    b2: of Adam.
    eps: of Adam.
    clip_norm: global gradient norm above which gradients are scaled down.
    ema_decay: of the averaged weights that bundles hold.
    log_every: steps between lines of metrics.jsonl.
    eval_every: steps between held-out losses; 0: at the start and end only.
    eval_clips: fixed held-out clips.
    eval_levels: noise levels that each of them is tried at.
    save_every: steps between checkpoints; the last step is always saved.
    keep: checkpoints kept.
  """

  steps: int
  batch_size: int
  trainable: str
  learning_rate: float = 1e-4
  warmup_steps: int = 10_000
  cooldown_steps: int = 0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip_norm: float = 1.0
  ema_decay: float = 0.9999
  log_every: int = 100
  eval_every: int = 5_000
  eval_clips: int = 16
  eval_levels: int = 8
  save_every: int = 5_000
  keep: int = 3

  def __post_init__(self):
    positive = (
      "steps",
      "batch_size",
      "log_every",
      "save_every",
      "keep",
      "eval_clips",
      "eval_levels",
      "learning_rate",
      "clip_norm",
    )
    for name in positive:
      if getattr(self, name) <= 0:
        raise UserError(
          f"config.train.{name}={getattr(self, name)} must be above 0"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """One training stage.

  Attributes:
    stage: 't2i', 'base', 'ssr_image' or 'ssr'.
    seed: of initialisation, data order and noise.
    init_from: a bundle or workdir to start from, or 'scratch'; '' is scratch
      for image stages, an error for stages that inflate one.
    upscale: super-resolution factor of the ssr stages.
    licence: of the weights, as written into the bundle.
  """

  stage: str
  model: UNetConfig
  text: TextConfig
  diffusion: DiffusionConfig
  data: DataConfig
  train: TrainConfig
  seed: int = 0
  init_from: str = ""
  upscale: int = 1
  licence: str = ""

  def __post_init__(self):
    check_choice("config.stage", self.stage, PARENTS)
    height, width = self.data.size
    self.model.check_video(self.data.num_frames, height, width)
    crop = self.data.crop
    if crop:
      self.model.check_video(self.data.num_frames, crop, crop)
      if crop > min(height, width):
        raise UserError(
          f"config.data.crop={crop} is larger than the frames, "
          f"{height}x{width}; take at most {min(height, width)}"
        )
    for side in (height, width, crop):
      if side % self.upscale:
        raise UserError(
          f"config.data.resolution or crop: {side} is no multiple of "
          f"config.upscale={self.upscale}"
        )

  @property
  def parent(self) -> str | None:
    """The image stage that this stage inflates, if it is a video stage."""
    return PARENTS[self.stage]

  @property
  def sampling(self) -> StageConfig:
    """What the bundle records of the stage."""
    return StageConfig(
      model=self.model,
      diffusion=self.diffusion,
      video=VideoConfig(
        num_frames=self.data.num_frames,
        fps=self.data.fps,
        resolution=self.data.size,
        upscale=self.upscale,
      ),
    )

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> "Experiment":
    """Checks every key and value.

    Raises:
      UserError: a key is unknown (the nearest is suggested) or a value is bad.
    """
    return build(cls, config, "config")
