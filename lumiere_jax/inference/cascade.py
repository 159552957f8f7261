"""The cascade at inference: text -> base -> super-resolution in windows."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float
import numpy as np
from tqdm import tqdm

from lumiere_jax.diffusion.noise import Keys, sample_keys
from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.diffusion.sampling_loop import part_way
from lumiere_jax.errors import UserError, notice, option
from lumiere_jax.inference.settings import DEFAULT_SETTINGS, Settings
from lumiere_jax.inference.stage_sampler import (
  Program,
  compile_ahead,
  sample_stage,
  traced,
)
from lumiere_jax.inference.windowing import Windows
from lumiere_jax.models.params import is_temporal
from lumiere_jax.models.text_encoder import TextEncoder, null_text
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.stages.conditioning import (
  MaskedVideo,
  add_low_resolution,
  add_masked_video,
)
from lumiere_jax.stages.config import SLOTS, SamplingConfig, StageConfig
from lumiere_jax.typing import Clip, Cond, FlatParams, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingInputs:
  """Conditioning besides the text.

  Attributes:
    given: pixels for a pixel-conditioned base.
    start: (t, h, w, 3) video that the base starts from in place of noise, at
      the size of the finished video (SDEdit).
    strength: in (0, 1], the schedule time of the noise that is added to it.
    low: (b, t, h, w, 3) in about [-1, 1], in place of the base's output.
    segment: index of a part of a long video; each part has its own noise.
  """

  given: MaskedVideo | None = None
  start: Clip | None = None
  strength: float = 1.0
  low: Video | None = None
  segment: int = 0


NO_INPUTS = SamplingInputs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
  """Progress of sampling.

  Attributes:
    stage: 'base' or 'ssr'.
    done: steps done.
    total: steps of the stage.
    canvas: (b, t, h, w, 3), the noisy video so far.
  """

  stage: str
  done: int
  total: int
  canvas: Video


Prompt = str | Sequence[str]

OnProgress = Callable[[Progress], None]
"""Called after every few steps; an exception that it raises stops sampling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A loaded stage."""

  config: StageConfig
  params: FlatParams

  def as_image(self) -> "Stage":
    """The image stage in it: without what inflation added."""
    params = {k: v for k, v in self.params.items() if not is_temporal(k)}
    return Stage(config=self.config.as_image(), params=params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
  """How one stage is sampled.

  Attributes:
    program: its static part.
    sampling: settings of the stage.
    log_snrs: (steps + 1,) noise levels.
  """

  program: Program
  sampling: SamplingConfig
  log_snrs: Float[np.ndarray, "n"]

  def condition(
    self,
    cond: Cond,
    low: Video | None,
    keys: Keys,
    given: MaskedVideo | None = None,
  ) -> Cond:
    """Adds the stage before's output and the given pixels to the text."""
    config = self.program.config
    if low is not None:
      level = self.sampling.noise_level
      cond = add_low_resolution(config, cond, low, keys, level)
    if config.model.cond_channels:
      cond = add_masked_video(config, cond, self.program.num_frames, given)
    return cond


class Cascade:
  """A text encoder and up to two stages, base and super-resolution."""

  def __init__(
    self,
    text: TextEncoder,
    stages: Mapping[str, Stage],
    mesh: Mesh | None = None,
  ):
    """Combines a text encoder and stages.

    Args:
      text: encoder of the prompts.
      stages: 'base' and, if there is one, 'ssr'.
      mesh: devices to sample on; see `sample_stage`.
    """
    self.text, self.mesh = text, mesh
    self.stages = dict(stages)
    for name, stage in self.stages.items():
      needs, width = stage.config.model.text_dim, text.config.d_model
      if needs != width:
        raise UserError(
          option("model"),
          f"holds a {name} stage for text features of width {needs}, but the "
          f"text encoder's have {width}",
          "give the T5 v1.1 encoder that it was trained with",
        )

  @property
  def fps(self) -> float:
    """Frame rate of the videos."""
    return self.stages["base"].config.video.fps

  @property
  def upscale(self) -> int:
    """Factor by which super-resolution enlarges."""
    return (
      self.stages["ssr"].config.video.upscale if "ssr" in self.stages else 1
    )

  def sizes(self, settings: Settings) -> dict[str, tuple[int, int]]:
    """(height, width) of each stage's output."""
    if settings.size is None:
      return {k: v.config.video.resolution for k, v in self.stages.items()}
    height, width = settings.size
    if height % self.upscale or width % self.upscale:
      fitting = ",".join(str(n - n % self.upscale) for n in settings.size)
      raise UserError(
        option("size", f"{height},{width}"),
        f"is not a multiple of {self.upscale}, the factor of super-resolution",
        f"use {option('size', fitting)}",
      )
    sizes = {"ssr": settings.size}
    sizes["base"] = height // self.upscale, width // self.upscale
    return {name: sizes[name] for name in self.stages}

  def sample(
    self,
    prompt: Prompt,
    *,
    seed: int | Sequence[int] = 0,
    negative_prompt: str = "",
    settings: Settings | None = None,
    inputs: SamplingInputs = NO_INPUTS,
    on_progress: OnProgress | None = None,
  ) -> Video:
    """Samples one clip for each prompt and seed through all stages.

    The same prompt and seed give the same clip in any batch, to rounding.

    Args:
      prompt: what to show; '' is "no caption".
      seed: of the first prompt, the next ones have the next seeds; or one for
        each prompt.
      negative_prompt: what to steer away from, instead of "no caption".
      settings: sampling settings.
      inputs: conditioning besides the text.
      on_progress: called every few steps, besides the progress bar.

    Returns:
      (b, t, h, w, 3) in about [-1, 1].
    """
    settings = settings or DEFAULT_SETTINGS
    prompts, seeds = pair_up(prompt, seed)
    plans = self.plan(settings, inputs)
    self.check_negative_prompt(negative_prompt, settings, plans)
    if negative_prompt.strip() and "base" in plans:
      self._tell_unguided_base(settings)
    conds = self._text(prompts, negative_prompt)
    first = inputs.segment * len(SLOTS)
    keys = {
      name: sample_keys(seeds, stream=first + i)
      for i, name in enumerate(self.stages)
    }
    if self.mesh is None and [*plans] == ["base", "ssr"]:
      self._compile_ahead(plans, conds["ssr"], keys["ssr"], settings)
    start = self._start(inputs, settings, len(seeds))
    low = inputs.low
    for name, plan in plans.items():
      cond, null = conds[name]
      with _progress(name, plan, on_progress) as callback:
        low = sample_stage(
          plan.program,
          self.stages[name].params,
          plan.condition(cond, low, keys[name], inputs.given),
          null,
          keys[name],
          log_snrs=plan.log_snrs,
          guidance=traced(plan.sampling, settings),
          start=start if name == "base" else None,
          chunk=settings.chunk,
          callback=callback,
          mesh=self.mesh,
        )
    assert low is not None
    return low

  def _compile_ahead(
    self,
    plans: Mapping[str, StagePlan],
    text: tuple[Cond, Cond],
    keys: Keys,
    settings: Settings,
  ) -> None:
    """Compiles super-resolution in parallel with the base, as it samples."""
    base, ssr = plans["base"].program, plans["ssr"]
    made = (len(keys), base.num_frames, *base.config.video.resolution, 3)
    cond = jax.eval_shape(
      ssr.condition, text[0], jax.ShapeDtypeStruct(made, jnp.float32), keys
    )
    compile_ahead(
      ssr.program,
      self.stages["ssr"].params,
      cond,
      text[1],
      keys,
      guidance=traced(ssr.sampling, settings),
      steps=len(ssr.log_snrs) - 1,
      chunk=settings.chunk,
    )

  def plan(
    self, settings: Settings, inputs: SamplingInputs = NO_INPUTS
  ) -> dict[str, StagePlan]:
    """How each stage is sampled; without the base where `inputs.low` is given.

    Raises a UserError where steps, lengths, sizes or windows do not fit.
    """
    frames = settings.num_frames or self.stages["base"].config.video.num_frames
    windows, sizes = self._windows(settings, frames), self.sizes(settings)
    plans = {}
    for name, stage in self.stages.items():
      if name == "base" and inputs.low is not None:
        continue
      config = dataclasses.replace(
        stage.config,
        video=dataclasses.replace(stage.config.video, resolution=sizes[name]),
        execution=dataclasses.replace(
          stage.config.execution, frame_chunk=settings.frame_chunk
        ),
      )
      sampling = settings.of(name, config.defaults)
      own = windows if name == [*self.stages][-1] else None
      levels = config.levels(sampling, own.size if own else frames)
      if name == "base":
        levels = part_way(
          levels,
          inputs.strength,
          config.diffusion.make_schedule(),
          rounded=sampling.grid == "schedule",
        )
      rows, columns = (
        Windows(
          size=side,
          overlap=round(side * settings.tile_overlap),
          chunk=settings.window_batch,
          weights="ramp",
        )
        if wanted > side
        else None
        for wanted, side in zip(
          sizes[name], stage.config.video.resolution, strict=True
        )
      )
      program = Program(
        config=config,
        rule=make_sampler(sampling.sampler),
        num_frames=frames,
        windows=own,
        rows=rows,
        columns=columns,
        devices=self.mesh.shape["data"] if self.mesh else 1,
      )
      plans[name] = StagePlan(
        program=program, sampling=sampling, log_snrs=levels
      )
    return plans

  def guides(self, name: str, settings: Settings) -> bool:
    """Whether a stage uses guidance, and thus the negative prompt."""
    sampling = settings.of(name, self.stages[name].config.defaults)
    oscillates = 0 <= settings.oscillate_after < sampling.steps
    low = settings.oscillate_low if oscillates else 1.0
    return sampling.guidance_scale != 1 or low != 1

  def check_negative_prompt(
    self,
    negative_prompt: str,
    settings: Settings = DEFAULT_SETTINGS,
    names: Collection[str] | None = None,
  ) -> None:
    """Raises a UserError if a negative prompt changes nothing.

    `names` are the stages that are sampled; None: all.
    """
    names = [*(self.stages if names is None else names)]
    if not negative_prompt.strip() or not names:
      return
    if not any(self.guides(name, settings) for name in names):
      scale = "guidance_scale" if "base" in names else "ssr_guidance_scale"
      raise UserError(
        option("negative_prompt"),
        f"changes nothing at {option(scale, 1)}",
        f"raise {option(scale)}, or leave the negative prompt out",
      )

  def _tell_unguided_base(self, settings: Settings) -> None:
    if not self.guides("base", settings):
      notice(
        f"{option('negative_prompt')} changes super-resolution alone: the "
        f"base has {option('guidance_scale', 1)}"
      )

  def _windows(self, settings: Settings, frames: int) -> Windows | None:
    """Windows of the last stage; None: all frames at once."""
    size = settings.window or frames
    if "ssr" in self.stages and not settings.window:
      size = min(self.stages["ssr"].config.video.num_frames, frames)
    if size == frames:
      return None
    chunk = settings.window_batch
    return Windows(size=size, overlap=settings.overlap, chunk=chunk)

  def _text(
    self, prompts: Sequence[str], negative_prompt: str
  ) -> dict[str, tuple[Cond, Cond]]:
    """For each stage, the conditioning on the prompts and on "no text"."""
    repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], len(prompts), axis=0)
    conds = {}
    for name, stage in self.stages.items():
      nothing = null_text(self.text, stage.config.diffusion.null_text)
      encoded = [
        [part[0] for part in self.text.encode([prompt])]
        if prompt.strip()
        else nothing
        for prompt in (negative_prompt, *prompts)
      ]
      (null, null_mask), *prompted = encoded
      text, mask = (
        jnp.asarray(np.stack(part)) for part in zip(*prompted, strict=True)
      )
      conds[name] = (
        Cond(text=text, text_mask=mask),
        Cond(text=repeat(null), text_mask=repeat(null_mask)),
      )
    return conds

  def _start(
    self, inputs: SamplingInputs, settings: Settings, count: int
  ) -> Video | None:
    """The videos to start from, at the size of the base."""
    if inputs.start is None:
      return None
    everything = np.ones(inputs.start.shape[:3], bool)
    given = MaskedVideo(video=inputs.start, mask=everything)
    small, _ = given.at(self.sizes(settings)["base"])
    return jnp.broadcast_to(small, (count, *small.shape))


def pair_up(
  prompt: Prompt, seed: int | Sequence[int]
) -> tuple[list[str], list[int]]:
  """Prompts and seeds, one each; a single one is used for all of the others."""
  prompts = [prompt] if isinstance(prompt, str) else list(prompt)
  if isinstance(seed, int | np.integer):
    return prompts, [int(seed) + k for k in range(len(prompts))]
  seeds = list(seed)
  if len(prompts) == 1:
    prompts *= len(seeds)
  if len(prompts) != len(seeds):
    raise UserError(
      "", f"{len(prompts)} prompts and {len(seeds)} seeds", "give one for each"
    )
  return prompts, seeds


@contextlib.contextmanager
def _progress(
  name: str, plan: StagePlan, on_progress: OnProgress | None
) -> Iterator[Callable[[int, Video], None]]:
  """A progress bar; yields the callback that advances it."""
  total = len(plan.log_snrs) - 1
  with tqdm(
    total=total,
    desc=name,
    unit="step",
    dynamic_ncols=True,
    leave=None,  # keeps the bar, unless it is nested in another
    disable=not is_primary(),
  ) as bar:

    def callback(done: int, z: Video) -> None:
      z.block_until_ready()  # steps are done, not just queued
      bar.update(done - bar.n)
      if on_progress:
        on_progress(Progress(stage=name, done=done, total=total, canvas=z))

    yield callback
