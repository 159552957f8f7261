"""The cascade at inference: text -> base -> super-resolution in windows."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from tqdm import tqdm

from lumiere_jax.data.text import TextEncoder
from lumiere_jax.diffusion.noise import Keys, sample_keys
from lumiere_jax.diffusion.rules import make_sampler
from lumiere_jax.diffusion.samplers import time_grid
from lumiere_jax.io import bundle as bundles
from lumiere_jax.models import lora
from lumiere_jax.parallel.mesh import MeshConfig, make_mesh
from lumiere_jax.pipelines.adapters import read_adapter, wear
from lumiere_jax.pipelines.conditioning import to_uint8
from lumiere_jax.pipelines.handing_on import (
  add_low_resolution,
  add_nothing_given,
)
from lumiere_jax.pipelines.sampling import (
  Knobs,
  Windows,
  plan_windows,
  sample_stage,
)
from lumiere_jax.pipelines.settings import Settings
from lumiere_jax.pipelines.stage import SamplingConfig, StageConfig, lay_out
from lumiere_jax.pipelines.text import null_text, text_encoder_of
from lumiere_jax.typing import Cond, FlatParams, UserError, Video

SLOTS = {"base": ("base", "conditional", "t2i"), "ssr": ("ssr", "ssr_image")}
"""The two places of a cascade and the stages that can take each, the first
one there is. Image stages make every frame a picture of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A loaded stage."""

  config: StageConfig
  params: FlatParams

  def as_image(self) -> "Stage":
    """The image stage in it: without what inflation added."""
    spatial = lambda path: not path.startswith("temporal_")
    return Stage(
      config=self.config.as_image(),
      params={k: v for k, v in self.params.items() if spatial(k)},
    )


class Pipeline:
  """A text encoder and up to two stages, base and super-resolution."""

  def __init__(
    self,
    text: TextEncoder,
    stages: Mapping[str, Stage],
    mesh: Mesh | None = None,
  ):
    """Puts text encoder and stages together.

    Args:
      text: what reads the prompts.
      stages: 'base' and, if there is one, 'ssr'.
      mesh: devices to sample on; see `sample_stage`.

    Raises:
      UserError: a stage wants text features of another width.
    """
    self.text, self.mesh = text, mesh
    self.stages = dict(stages)
    for name, stage in self.stages.items():
      wanted, given = stage.config.model.text_dim, text.config.d_model
      if wanted != given:
        raise UserError(
          f"--model: the {name} stage takes text features {wanted} wide, the "
          f"text encoder's are {given}; give the T5 v1.1 it was trained with"
        )

  @classmethod
  def from_pretrained(
    cls,
    *paths: str | os.PathLike,
    adapters: Sequence[str | os.PathLike] = (),
    adapter_scale: float = 1.0,
    mesh: MeshConfig | None = None,
  ) -> "Pipeline":
    """Loads the stages of one or several bundles (or workdirs).

    Args:
      paths: of the bundles, or names of repositories on the Hugging Face
        hub; each adds the stages, or the text encoder, that others lack.
      adapters: low-rank adapters to merge into the stages they belong to.
      adapter_scale: how much of them; 1 is as trained.
      mesh: how to share the work among the devices of all processes; None:
        one device does it.

    Raises:
      UserError: a bundle or an adapter is missing or damaged, or they do not
        fit together.
    """
    opened = [bundles.open_bundle(path) for path in paths]
    bundles.check_same_text(opened)
    configs: dict[str, StageConfig] = {}
    weights: dict[str, FlatParams] = {}
    for bundle in opened:
      for name, part in bundle.parts.items():
        if name in (bundles.TEXT, *configs):
          continue
        where = f"{bundle.folder}: parts.{name}.meta"
        configs[name] = StageConfig.from_meta(part.meta, where)
        weights[name] = lora.merge(bundle.load(name))
    models = {name: config.model for name, config in configs.items()}
    read = [*map(read_adapter, adapters)]
    weights = wear(read, weights, models, adapter_scale)
    devices = None if mesh is None else make_mesh(mesh)
    stages = {
      name: Stage(
        config=config,
        params=jax.device_put(weights[name])
        if devices is None
        else lay_out(config.model, weights[name], devices),
      )
      for name, config in configs.items()
    }
    return cls(find_text_encoder(opened), pair_stages(stages), devices)

  @property
  def fps(self) -> float:
    """Frames a second of the videos."""
    return self.stages["base"].config.video.fps

  def text_to_video(
    self,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative_prompt: str = "",
    settings: Settings | None = None,
  ) -> np.ndarray:
    """Makes one video for each prompt: `sample`, as pixels.

    Returns:
      uint8 (b, t, h, w, 3).

    Raises:
      UserError: a prompt is empty, or lengths or windows do not fit.
    """
    video = self.sample(
      prompts, seeds=seeds, negative_prompt=negative_prompt, settings=settings
    )
    return np.asarray(to_uint8(video))

  def text_to_image(
    self,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative_prompt: str = "",
    settings: Settings | None = None,
  ) -> np.ndarray:
    """Makes one picture for each prompt, by the spatial layers alone.

    With an imported DeepFloyd IF this is IF: its steps, its learned variance,
    its thresholds and the empty caption come with the bundle.

    Returns:
      uint8 (b, h, w, 3).

    Raises:
      UserError: a prompt is empty, or settings do not fit.
    """
    images = {name: stage.as_image() for name, stage in self.stages.items()}
    settings = dataclasses.replace(
      settings or Settings(), num_frames=1, window=0
    )
    return Pipeline(self.text, images, self.mesh).text_to_video(
      prompts, seeds=seeds, negative_prompt=negative_prompt, settings=settings
    )[:, 0]

  def sample(
    self,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative_prompt: str = "",
    settings: Settings | None = None,
  ) -> Video:
    """Samples one clip for each prompt through all stages.

    The same prompt and seed give the same clip in any batch, to rounding.

    Args:
      prompts: what to show.
      seeds: one for each prompt.
      negative_prompt: what to steer away from, instead of "no caption".
      settings: how to sample.

    Returns:
      (b, t, h, w, 3) in about [-1, 1].

    Raises:
      UserError: a prompt is empty, or lengths or windows do not fit.
    """
    settings = settings or Settings()
    if len(prompts) != len(seeds):
      raise UserError(
        f"{len(prompts)} prompts and {len(seeds)} seeds; give one for each"
      )
    for prompt in prompts:
      if not prompt.strip():
        raise UserError("--prompt is empty; say what the video should show")
    frames, windows = self.plan(settings)
    conds = self._text(prompts, negative_prompt)
    stages = list(self.stages)

    def run(name: str, cond: Cond, null: Cond, keys: Keys) -> Video:
      return self._sample(
        name, cond, null, keys, frames, windows.get(name), settings
      )

    keys = [sample_keys(list(seeds), stream=i) for i in range(len(stages))]
    return self.chain(conds, keys, frames, settings, run)

  def plan(self, settings: Settings) -> tuple[int, dict[str, Windows]]:
    """Frames of the videos, and windows of the stages that see them so.

    Raises:
      UserError: steps, lengths or windows do not fit.
    """
    frames = settings.num_frames or self.stages["base"].config.video.num_frames
    windows = self._windows(settings, frames)
    for name in self.stages:  # which says if a schedule has too few steps
      self.log_snrs(name, settings)
    return frames, windows

  def log_snrs(self, name: str, settings: Settings) -> np.ndarray:
    """(steps + 1,) noise levels that a stage is sampled at."""
    config = self.stages[name].config
    steps = settings.of(name, config.defaults).steps
    return np.asarray(time_grid(config.diffusion.make_schedule(), steps))

  def chain(
    self,
    conds: Mapping[str, tuple[Cond, Cond]],
    keys: Sequence[Keys],
    frames: int,
    settings: Settings,
    run: Callable[[str, Cond, Cond, Keys], Video],
  ) -> Video:
    """One stage after the other, each told what the one before it made.

    Args:
      conds: for each stage, text of the prompts and of "no caption".
      keys: for each stage, (b,) random keys.
      frames: of the videos.
      settings: how to sample.
      run: samples a stage, `run(name, cond, null_cond, keys)`.

    Returns:
      (b, frames, h, w, 3), the last stage's.
    """
    low: Video | None = None
    for (name, stage), stage_keys in zip(
      self.stages.items(), keys, strict=True
    ):
      cond, null = conds[name]
      if low is not None:
        level = settings.of(name, stage.config.defaults).noise_level
        cond = add_low_resolution(stage.config, cond, low, stage_keys, level)
      if stage.config.model.cond_channels:
        cond = add_nothing_given(stage.config, cond, frames)
      low = run(name, cond, null, stage_keys)
    return low

  def _windows(self, settings: Settings, frames: int) -> dict[str, Windows]:
    """Windows of the last stage, checked before anything runs."""
    name = list(self.stages)[-1]
    config = self.stages[name].config
    if name != "base" or not settings.window:
      base = self.stages["base"].config
      base.model.check_video(frames, *base.video.resolution)
    trained = config.video.num_frames if name == "ssr" else frames
    size = settings.window or min(trained, frames)
    if size == frames and not settings.window:
      return {}
    windows = Windows(
      size=size, overlap=settings.overlap, chunk=settings.windows_at_once
    )
    plan_windows(config, windows, frames)
    return {} if size == frames else {name: windows}

  def _text(
    self, prompts: Sequence[str], negative_prompt: str
  ) -> dict[str, tuple[Cond, Cond]]:
    """For each stage, the conditioning on the prompts and on "no text"."""
    text, mask = self.text.encode(list(prompts))
    prompted = Cond(text=jnp.asarray(text), text_mask=jnp.asarray(mask))
    conds = {}
    for name, stage in self.stages.items():
      if negative_prompt.strip():
        null, null_mask = (x[0] for x in self.text.encode([negative_prompt]))
      else:
        null, null_mask = null_text(self.text, stage.config.diffusion.null_text)
      repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], len(prompts), axis=0)
      conds[name] = (
        prompted,
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
    windows: Windows | None,
    settings: Settings,
  ) -> Video:
    stage = self.stages[name]
    own = settings.of(name, stage.config.defaults)
    with tqdm(
      total=own.steps, desc=name, unit="step", dynamic_ncols=True
    ) as bar:

      def progress(done: int, z: Video) -> None:
        z.block_until_ready()  # steps are done, not just queued
        bar.update(done - bar.n)

      return sample_stage(
        stage.config,
        stage.params,
        cond,
        null,
        keys,
        frames,
        rule=make_sampler(own.sampler),
        steps=own.steps,
        knobs=knobs_of(settings, own),
        windows=windows,
        chunk=settings.chunk,
        callback=progress,
        mesh=self.mesh,
      )


def knobs_of(settings: Settings, own: SamplingConfig) -> Knobs:
  """What may change without compiling anew, of one stage.

  Args:
    settings: of all stages.
    own: `settings.of` the stage.
  """
  return Knobs(
    guidance_scale=own.guidance_scale,
    guidance_rescale=settings.guidance_rescale,
    guidance_interval=settings.guidance_interval,
    oscillate_after=settings.oscillate_after,
    oscillate_low=settings.oscillate_low,
    percentile=own.percentile,
    max_value=own.max_value,
  )


def find_text_encoder(opened: Sequence[bundles.Bundle]) -> TextEncoder:
  """The text encoder of the first bundle that has one.

  Raises:
    UserError: none has.
  """
  for bundle in opened:
    if bundles.TEXT in bundle.parts:
      return text_encoder_of(bundle)
  raise UserError(
    f"--model={', '.join(str(b.folder) for b in opened)} holds no text "
    "encoder; name a bundle that does too, such as one made by python -m "
    "lumiere_jax.convert --from=t5 --src=T5_DIR --out=DIR"
  )


def pair_stages(stages: Mapping[str, Stage]) -> dict[str, Stage]:
  """The base and, if there is one, the super-resolution stage that fits it.

  Raises:
    UserError: there is no base, or the two do not fit.
  """
  pair = {}
  for slot, names in SLOTS.items():
    present = [name for name in names if name in stages]
    if present:
      pair[slot] = stages[present[0]]
  if "base" not in pair:
    raise UserError(
      f"--model holds {', '.join(stages) or 'no stage'}; a base (or t2i) stage "
      "is needed to make videos: name its bundle too"
    )
  if "ssr" in pair:
    base, ssr = (pair[slot].config.video for slot in SLOTS)
    expected = tuple(side * ssr.upscale for side in base.resolution)
    if expected != ssr.resolution:
      raise UserError(
        f"the base makes {base.resolution} pixels and super-resolution takes "
        f"{ssr.resolution} / {ssr.upscale}; use stages trained for each other"
      )
  return pair
