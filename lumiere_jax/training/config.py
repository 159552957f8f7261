"""The training config: a ConfigDict, validated into frozen dataclasses."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from lumiere_jax.data.config import DataConfig
from lumiere_jax.errors import (
  Range,
  UserError,
  build,
  check_choice,
  check_least,
)
from lumiere_jax.models.caption_cleaning import CLEANINGS
from lumiere_jax.models.config import (
  ExecutionConfig,
  UNetConfig,
  move_execution,
)
from lumiere_jax.models.t5 import DTYPES
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import (
  CONDITIONAL,
  PARENTS,
  DiffusionConfig,
  SamplingConfig,
  StageConfig,
  VideoConfig,
)

SCHEDULE_FREE = "schedule_free"
OPTIMIZERS = ("adam", "adafactor", "muon", "sgd", SCHEDULE_FREE)
DECAYS = ("constant", "cosine", "rsqrt")
FROZEN_DTYPES = ("source", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
  """The text encoder.

  Attributes:
    tokenizer: sentencepiece model; '' is the small built-in one.
    weights: folder or file of T5 v1.1 encoder weights (safetensors under
      Hugging Face names, or a T5X checkpoint), or a bundle or workdir with an
      encoder; '' is a small encoder with fixed random weights, whose features
      distinguish words but know no English.
    train: train it together with an image stage, starting from these weights;
      later stages then take it from that stage's bundle.
    dtype: of the weights: 'float32' or 'bfloat16'.
    max_length: tokens, the end-of-sequence token included.
    cleaning: of captions before encoding: 'none', 'lower' (lower case) or 'if'
      (DeepFloyd IF's).
    cache: folder of text features; '' is `text_cache` in the workdir.
  """

  tokenizer: str = ""
  weights: str = ""
  train: bool = False
  dtype: str = "float32"
  max_length: int = 77
  cleaning: str = "none"
  cache: str = ""

  def __post_init__(self):
    check_choice("config.text.dtype", self.dtype, DTYPES)
    check_choice("config.text.cleaning", self.cleaning, CLEANINGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Optimization, evaluation and saving.

  Attributes:
    steps: total steps, earlier runs in the workdir included.
    batch_size: clips per step over all devices and micro-batches.
    accumulate: sequential micro-batches per step: less memory, the same step.
    trainable: regex searched in parameter paths; the rest is frozen.
      `init_from=scratch` trains everything.
    frozen_dtype: of frozen kernels on the device: 'source' or 'bfloat16'. Other
      frozen leaves, and all on disk, keep the dtype of the source.
    optimizer: 'adam', 'adafactor' (Imagen's for its base model), 'muon' (for
      hidden kernels, Adam for the rest), 'sgd' or 'schedule_free' (Adam that
      averages its weights and needs no decay; the learning rate is often a few
      times larger).
    learning_rate: after warm-up.
    decay: of the learning rate after warm-up: 'constant', 'cosine' (to
      `final_learning_rate` at the last step) or 'rsqrt' (inverse square root
      of the step).
    final_learning_rate: final value of 'cosine'.
    warmup_steps: of linear warm-up.
    cooldown_steps: of linear decay to 0 at the end; short runs need it.
    weight_decay: decoupled, of matrices and kernels only.
    b1, b2, eps: of Adam; `b1` of 'schedule_free' is the share of the average in
      the weights that it trains, above 0.
    muon_rms: root mean square of Muon's updates before the learning rate; that
      of Adam's is about 0.2 (Liu et al. 2025), and 1 at first.
    clip_norm: global gradient norm to clip to.
    max_skips: the run stops after this many skipped steps (with non-finite
      gradients) in a row.
    ema_decay: of the averaged weights, which bundles hold; 'schedule_free' has
      its own average.
    ema_warmup: the decay is at most (1 + step) / (ema_warmup + step).
    ema_stds: lengths of further averages, as their standard deviation relative
      to the training so far, such as (0.05, 0.1); any other length can then be
      chosen after training. () is none.
    ema_every: steps between snapshots of these; 0 makes about 32 in a run.
    log_every: steps between lines of metrics.jsonl.
    eval_every: steps between held-out losses; 0: at the start and end only.
    eval_clips: fixed held-out clips; 0: no held-out loss.
    eval_levels: noise levels per held-out clip.
    save_every: steps between checkpoints; the last step is always saved.
    save_minutes: also save after this many minutes; 0 is off.
    keep: newest checkpoints to keep.
    keep_best: checkpoints to keep for their held-out loss; the best one is also
      the bundle `best`. 0 is off.
    profile_from: first step to profile.
    profile_steps: steps to profile into `profile`; 0 is off.
    wandb: project on Weights & Biases to also log to; '' is none.
    trackio: project of Trackio, on this machine, to also log to; '' is none.
  """

  steps: int
  batch_size: int
  trainable: str
  accumulate: int = 1
  frozen_dtype: str = "source"
  optimizer: str = "adam"
  learning_rate: float = 1e-4
  decay: str = "constant"
  final_learning_rate: float = 0.0
  warmup_steps: int = 10_000
  cooldown_steps: int = 0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  muon_rms: float = 0.2
  clip_norm: float = 1.0
  max_skips: int = 20
  ema_decay: float = 0.9999
  ema_warmup: float = 10.0
  ema_stds: tuple[float, ...] = ()
  ema_every: int = 0
  log_every: int = 100
  eval_every: int = 5_000
  eval_clips: int = 16
  eval_levels: int = 8
  save_every: int = 5_000
  save_minutes: float = 0.0
  keep: int = 3
  keep_best: int = 0
  profile_from: int = 10
  profile_steps: int = 0
  wandb: str = ""
  trackio: str = ""

  def __post_init__(self):
    above_0 = (
      *("steps", "batch_size", "accumulate", "log_every", "save_every"),
      *("keep", "eval_levels", "learning_rate", "clip_norm"),
      *("max_skips", "ema_warmup"),
    )
    check_least(self, "config.train", above_0, above=0)
    from_0 = (
      *("final_learning_rate", "warmup_steps", "cooldown_steps", "keep_best"),
      *("weight_decay", "eval_every", "eval_clips", "save_minutes"),
      *("profile_from", "profile_steps", "ema_every"),
    )
    check_least(self, "config.train", from_0, least=0)
    check_least(self, "config.train", ("ema_decay",), least=0, below=1)
    for std in self.ema_stds:
      # 12**-0.5, a plain mean, would be the longest of these averages.
      Range(above=0, most=0.288).check_range(
        f"config.train.ema_stds={self.ema_stds}", std
      )
    if self.keep_best and not self.eval_clips:
      raise UserError(
        f"config.train.keep_best={self.keep_best}",
        "needs the held-out loss, which config.train.eval_clips=0 turns off",
        "set config.train.eval_clips above 0",
      )
    if self.batch_size % self.accumulate:
      raise UserError(
        f"config.train.batch_size={self.batch_size}",
        f"does not divide into accumulate={self.accumulate} micro-batches",
        f"use a multiple of {self.accumulate}",
      )
    check_choice("config.train.optimizer", self.optimizer, OPTIMIZERS)
    check_choice("config.train.decay", self.decay, DECAYS)
    if self.optimizer == SCHEDULE_FREE:
      self._check_schedule_free()
    check_choice("config.train.frozen_dtype", self.frozen_dtype, FROZEN_DTYPES)

  def _check_schedule_free(self) -> None:
    """Raises a UserError for settings that contradict the optimizer."""
    where = "config.train."
    Range(above=0, below=1).check_range(f"{where}b1={self.b1}", self.b1)
    unused = {"decay": "constant", "cooldown_steps": 0, "ema_stds": ()}
    for name, value in unused.items():
      if (ours := getattr(self, name)) != value:
        raise UserError(
          f"{where}{name}={ours!r}",
          f"is not for {where}optimizer={SCHEDULE_FREE}, whose rate stays "
          "constant after warm-up, and which averages the weights itself",
          f"set {where}{name}={value!r}, or another optimizer",
        )

  @property
  def snapshot_every(self) -> int:
    """Steps between snapshots of the averages of `ema_stds`; 0: none."""
    every = self.ema_every or max(self.steps // 32, 1)
    return every if self.ema_stds else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewConfig:
  """Clips sampled during training, from held-out captions and pixels.

  Attributes:
    every: steps between previews, also at the end; 0 is off.
    clips: how many.
    steps: sampling steps.
    guidance_scale: for the text.
    prompts: to use instead of held-out captions; only for stages without pixel
      conditioning.
  """

  every: int = 0
  clips: int = 2
  steps: int = 20
  guidance_scale: float = 4.0
  prompts: tuple[str, ...] = ()

  def __post_init__(self):
    check_least(self, "config.preview", ("clips", "steps"), above=0)
    check_least(self, "config.preview", ("every", "guidance_scale"), least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank adapters (LoRA), trained instead of the weights.

  Attributes:
    rank: of the adapters; 0 is off.
    alpha: adapters are scaled by alpha / rank; 0 means `rank`, a scale of 1.
    target: layers with adapters: 'temporal', 'spatial' or a regex searched in
      parameter paths.
  """

  rank: int = 0
  alpha: float = 0.0
  target: str = "spatial"

  def __post_init__(self):
    check_least(self, "config.lora", ("rank", "alpha"), least=0)

  @property
  def scale(self) -> float:
    """The factor of A B."""
    return self.alpha / self.rank if self.rank and self.alpha else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """One training stage.

  Attributes:
    stage: 't2i', 'base', 'conditional', 'ssr_image' or 'ssr'.
    model: its network; `network` completes it from the data.
    execution: how the network is computed.
    seed: of initialisation, data order and noise.
    init_from: a bundle or workdir to start from, or 'scratch'; '' is scratch
      for image stages, and an error for the others.
    resume: resume the run in the workdir; if false, move it to `before-N` and
      start a new one.
    upscale: super-resolution factor of the ssr stages.
    defaults: default sampling settings in the bundle; None:
      `StageConfig.defaults`.
    licence: of the weights, recorded in the bundle.
  """

  stage: str
  model: UNetConfig
  text: TextConfig
  diffusion: DiffusionConfig
  data: DataConfig
  train: TrainConfig
  preview: PreviewConfig = PreviewConfig()
  lora: LoraConfig = LoraConfig()
  execution: ExecutionConfig = ExecutionConfig()
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  seed: int = 0
  init_from: str = ""
  resume: bool = True
  upscale: int = 1
  defaults: SamplingConfig | None = None
  licence: str = ""

  def __post_init__(self):
    check_choice("config.stage", self.stage, PARENTS)
    self.execution.check_levels(len(self.model.channels))
    for spec in self.data.specs:
      self._check_clips(spec.num_frames, *spec.resolution)
    self._check_channels()
    if self.text.train:
      self._check_text_trains()

  def _check_clips(self, frames: int, height: int, width: int) -> None:
    crop, largest = self.data.crop, min(height, width)
    self.model.check_video(frames, height, width)
    if crop:
      self.model.check_video(frames, crop, crop)
    if crop > largest:
      raise UserError(
        f"config.data.crop={crop}",
        f"is larger than the frames, {height}x{width}",
        f"use at most {largest}",
      )
    for side in (height, width, crop):
      if side % self.upscale:
        raise UserError(
          "config.data.resolution or crop:",
          f"{side} is not a multiple of config.upscale={self.upscale}",
          "use a multiple of it",
        )

  def _check_channels(self) -> None:
    inputs, expected = self.model.in_channels, 3 if self.upscale == 1 else 6
    if inputs != expected:
      raise UserError(
        f"config.model.in_channels={inputs}",
        f"does not fit config.upscale={self.upscale}, whose input has "
        f"{expected} channels",
        f"set it to {expected}",
      )
    channels, masks = self.model.cond_channels, self.data.masks
    if self.stage == CONDITIONAL and not channels:
      raise UserError(
        "config.model.cond_channels=0",
        f"does not fit stage {CONDITIONAL!r}, which is conditioned on masked "
        "video and mask",
        "set it to 4",
      )
    if bool(channels) != bool(masks):
      raise UserError(
        f"config.model.cond_channels={channels}",
        f"does not fit config.data.masks={masks!r}",
        "set 4 channels and mask patterns, or neither",
      )
    if self.preview.prompts and (channels or self.upscale > 1):
      raise UserError(
        "config.preview.prompts",
        "does not fit a stage that is conditioned on pixels",
        "leave it out, to preview held-out clips",
      )

  def _check_text_trains(self) -> None:
    """Later stages and adapters share the encoder of the first stage."""
    fits = {  # with 'empty', the features of the null text would change
      "stage": (self.stage, self.parent is None),
      "lora.rank": (self.lora.rank, not self.lora.rank),
      "diffusion.null_text": (
        self.diffusion.null_text,
        self.diffusion.null_text != "empty",
      ),
      "text.dtype": (self.text.dtype, self.text.dtype == "float32"),
      "train.ema_stds": (self.train.ema_stds, not self.train.ema_stds),
    }
    for name, (value, fit) in fits.items():
      if not fit:
        raise UserError(
          "config.text.train=True",
          f"cannot be combined with config.{name}={value!r}",
          "train the encoder in an image stage, in float32, without "
          "ema_stds and with null_text='zeros'",
        )

  @property
  def parent(self) -> str | None:
    """The stage that this stage starts from, if any."""
    return PARENTS[self.stage]

  @property
  def network(self) -> UNetConfig:
    """The model, configured for the training clips."""
    return self.model.for_clips(max(s.num_frames for s in self.data.specs))

  @property
  def joint(self) -> bool:
    """Whether a video model also trains on images."""
    lengths = {spec.num_frames for spec in self.data.specs}
    images = bool(self.data.images) or 1 in lengths
    return self.model.temporal is not None and images

  @property
  def sampling(self) -> StageConfig:
    """The config of the stage that the bundle records."""
    return StageConfig(
      model=self.network,
      diffusion=self.diffusion,
      video=VideoConfig(
        num_frames=self.data.num_frames,
        fps=self.data.fps,
        resolution=self.data.resolution,
        upscale=self.upscale,
      ),
      sampling=self.defaults,
      execution=self.execution,
    )

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> "Experiment":
    """Validates every key and value; raises a UserError for bad ones."""
    return build(cls, move_execution(config), "config")
