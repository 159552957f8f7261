"""The cascade at inference: text -> base -> super-resolution in windows."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from tqdm import tqdm

from lumiere_jax.diffusion.noise import Keys, sample_keys
from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.diffusion.sampling_loop import part_way
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.stage_sampler import (
  GuidanceParams,
  Program,
  compile_ahead,
  sample_stage,
)
from lumiere_jax.inference.windowing import (
  Tiles,
  Windows,
  check_canvas,
  plan_windows,
)
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
        f"is no multiple of {self.upscale}, the factor of super-resolution",
        f"use {option('size', fitting)}",
      )
    sizes = {"ssr": settings.size}
    sizes["base"] = height // self.upscale, width // self.upscale
    return {name: sizes[name] for name in self.stages}

  def sample(
    self,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative_prompt: str = "",
    settings: Settings | None = None,
    inputs: SamplingInputs = NO_INPUTS,
    on_progress: OnProgress | None = None,
  ) -> Video:
    """Samples one clip for each prompt through all stages.

    The same prompt and seed give the same clip in any batch, to rounding.

    Args:
      prompts: what to show; '' is "no caption".
      seeds: one for each prompt.
      negative_prompt: what to steer away from, instead of "no caption".
      settings: sampling settings.
      inputs: conditioning besides the text.
      on_progress: called every few steps, besides the progress bar.

    Returns:
      (b, t, h, w, 3) in about [-1, 1].
    """
    settings = settings or Settings()
    if len(prompts) != len(seeds):
      raise UserError(
        "",
        f"{len(prompts)} prompts and {len(seeds)} seeds",
        "give one for each",
      )
    frames, windows = self.plan(settings, inputs)
    conds = self._text(prompts, negative_prompt)

    def run(name: str, cond: Cond, null: Cond, keys: Keys) -> Video:
      own = (windows.get(name), self._tiles(name, settings))
      return self._sample(
        name, cond, null, keys, frames, own, settings, inputs, on_progress
      )

    keys = [
      sample_keys(list(seeds), stream=i + inputs.segment * len(SLOTS))
      for i in range(len(self.stages))
    ]
    self._compile_ahead(conds, keys, frames, windows, settings, inputs)
    return self.chain(conds, keys, frames, settings, run, inputs)

  def _compile_ahead(
    self,
    conds: Mapping[str, tuple[Cond, Cond]],
    keys: Sequence[Keys],
    frames: int,
    windows: Mapping[str, Windows],
    settings: Settings,
    inputs: SamplingInputs,
  ) -> None:
    """Compiles super-resolution in parallel with the base, as it samples."""
    if self.mesh or "ssr" not in self.stages or inputs.low is not None:
      return

    def shapes(name: str, cond: Cond, null: Cond, keys: Keys) -> Video:
      config = self.config(name, settings)
      if name == "ssr":
        own = settings.of(name, config.defaults)
        program = Program(
          config=config,
          rule=make_sampler(own.sampler),
          windows=windows.get(name),
          num_frames=frames,
          tiles=self._tiles(name, settings),
        )
        text = (cond, null, keys)
        params, chunk = self.stages[name].params, settings.chunk
        compile_ahead(program, params, *text, steps=own.steps, chunk=chunk)
      return jnp.zeros((len(keys), frames, *config.video.resolution, 3))

    jax.eval_shape(
      lambda conds, keys: self.chain(
        conds, keys, frames, settings, shapes, inputs
      ),
      conds,
      keys,
    )

  def plan(
    self, settings: Settings, inputs: SamplingInputs = NO_INPUTS
  ) -> tuple[int, dict[str, Windows]]:
    """Number of frames, and the windows of the stages that need them.

    Raises a UserError where steps, lengths, sizes or windows do not fit.
    """
    frames = settings.num_frames or self.stages["base"].config.video.num_frames
    windows = self._windows(settings, frames)
    for name in self.stages:
      if name == "base" and inputs.low is not None:
        continue
      self.log_snrs(name, settings, windows.get(name))  # checks the steps
      check_canvas(
        self.config(name, settings),
        frames,
        windows.get(name),
        self._tiles(name, settings),
      )
    return frames, windows

  def config(self, name: str, settings: Settings) -> StageConfig:
    """The config of a stage at the size that settings ask for."""
    config = self.stages[name].config
    video = dataclasses.replace(
      config.video, resolution=self.sizes(settings)[name]
    )
    execution = dataclasses.replace(
      config.execution, frame_chunk=settings.frame_chunk
    )
    return dataclasses.replace(config, video=video, execution=execution)

  def log_snrs(
    self,
    name: str,
    settings: Settings,
    windows: Windows | None = None,
    strength: float = 1.0,
  ) -> np.ndarray:
    """(steps + 1,) noise levels that a stage is sampled at.

    Args:
      name: of the stage.
      settings: sampling settings.
      windows: over its frames; None: all at once.
      strength: in (0, 1], of SDEdit; 1 starts from noise.
    """
    config = self.config(name, settings)
    own = settings.of(name, config.defaults)
    frames = settings.num_frames or self.stages["base"].config.video.num_frames
    return part_way(
      config.levels(own, windows.size if windows else frames),
      strength,
      config.diffusion.make_schedule(),
      rounded=own.grid == "schedule",
    )

  def chain(
    self,
    conds: Mapping[str, tuple[Cond, Cond]],
    keys: Sequence[Keys],
    frames: int,
    settings: Settings,
    run: Callable[[str, Cond, Cond, Keys], Video],
    inputs: SamplingInputs = NO_INPUTS,
  ) -> Video:
    """Runs the stages in order, each on the output of the one before.

    Args:
      conds: for each stage, text of the prompts and of "no caption".
      keys: for each stage, (b,) random keys.
      frames: number of frames.
      settings: sampling settings.
      run: samples a stage, `run(name, cond, null_cond, keys)`.
      inputs: conditioning besides the text.

    Returns:
      (b, frames, h, w, 3), the last stage's output.
    """
    low = inputs.low
    for name, stage_keys in zip(self.stages, keys, strict=True):
      if name == "base" and low is not None:
        continue
      config = self.config(name, settings)
      cond, null = conds[name]
      if name != "base":
        level = settings.of(name, config.defaults).noise_level
        cond = add_low_resolution(config, cond, low, stage_keys, level)
      if config.model.cond_channels:
        cond = add_masked_video(config, cond, frames, inputs.given)
      low = run(name, cond, null, stage_keys)
    return low

  def _windows(self, settings: Settings, frames: int) -> dict[str, Windows]:
    """Windows of the last stage; checks that they fit."""
    name = list(self.stages)[-1]
    config = self.stages[name].config
    trained = config.video.num_frames if name == "ssr" else frames
    size = settings.window or min(trained, frames)
    if size == frames and not settings.window:
      return {}
    windows = Windows(
      size=size, overlap=settings.overlap, chunk=settings.window_batch
    )
    plan_windows(config, windows, frames)
    return {} if size == frames else {name: windows}

  def _tiles(self, name: str, settings: Settings) -> Tiles:
    """Spatial windows of frames larger than the stage was trained on."""
    trained = self.stages[name].config.video.resolution
    both = [
      Windows(
        size=side,
        overlap=round(side * settings.tile_overlap),
        chunk=settings.window_batch,
        weights="ramp",
      )
      if wanted > side
      else None
      for wanted, side in zip(self.sizes(settings)[name], trained, strict=True)
    ]
    return Tiles(rows=both[0], columns=both[1])

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

  def _sample(
    self,
    name: str,
    cond: Cond,
    null: Cond,
    keys: Keys,
    frames: int,
    windows: tuple[Windows | None, Tiles],
    settings: Settings,
    inputs: SamplingInputs,
    on_progress: OnProgress | None,
  ) -> Video:
    stage = self.stages[name]
    own = settings.of(name, stage.config.defaults)
    start, strength = None, 1.0
    if name == "base" and inputs.start is not None:
      start = self._start(inputs, settings, len(keys))
      strength = inputs.strength
    log_snrs = self.log_snrs(name, settings, windows[0], strength)
    steps = len(log_snrs) - 1
    with tqdm(
      total=steps,
      desc=name,
      unit="step",
      dynamic_ncols=True,
      leave=None,  # keeps the bar, unless it is nested in another
      disable=not is_primary(),
    ) as bar:

      def progress(done: int, z: Video) -> None:
        z.block_until_ready()  # steps are done, not just queued
        bar.update(done - bar.n)
        if on_progress:
          on_progress(Progress(stage=name, done=done, total=steps, canvas=z))

      return sample_stage(
        self.config(name, settings),
        stage.params,
        cond,
        null,
        keys,
        frames,
        rule=make_sampler(own.sampler),
        log_snrs=log_snrs,
        guidance_params=guidance_params(settings, own),
        windows=windows[0],
        tiles=windows[1],
        start=start,
        chunk=settings.chunk,
        callback=progress,
        mesh=self.mesh,
      )

  def _start(
    self, inputs: SamplingInputs, settings: Settings, count: int
  ) -> Video:
    """The video to start from, at the size of the base."""
    everything = np.ones(inputs.start.shape[:3], bool)
    given = MaskedVideo(video=inputs.start, mask=everything)
    small, _ = given.at(self.sizes(settings)["base"])
    return jnp.broadcast_to(small, (count, *small.shape))


def guidance_params(settings: Settings, own: SamplingConfig) -> GuidanceParams:
  """The settings of one stage that may change without compiling again.

  Args:
    settings: of all stages.
    own: `settings.of` the stage.
  """
  values = vars(settings) | vars(own)
  names = (field.name for field in dataclasses.fields(GuidanceParams))
  return GuidanceParams(**{name: values[name] for name in names})
