"""Clips sampled while training, to look at."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.diffusion.noise_levels import parse_levels
from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.inference.stage_sampler import GuidanceParams, sample_stage
from lumiere_jax.media.images import side_by_side, write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.models import lora
from lumiere_jax.parallel.multihost import is_primary, to_host
from lumiere_jax.stages.conditioning import to_uint8
from lumiere_jax.storage.files import slug
from lumiere_jax.training.metric_writers import Clip
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.typing import Cond, FlatParams, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """What previews are made of.

  Attributes:
    captions: one for each clip.
    batch: the captions, encoded.
    cond: conditioning besides the text.
    beside: (b, t, h, w, 3) videos to show to the left of a sample (its
      conditioning) and to the right (the real clips).
    size: (frames, height, width) of the samples.
  """

  captions: list[str]
  batch: Batch
  cond: Cond
  beside: tuple[list[Video], list[Video]]
  size: tuple[int, int, int]


def held_out_scene(task: Task, batch: Batch, captions: list[str]) -> Scene:
  """Held-out clips: their captions, and given or low-resolution pixels."""
  x0, cond = jax.jit(task.held_out_inputs)(batch)
  given = [] if cond.frames is None else [cond.frames[..., :3]]
  if task.experiment.upscale > 1 and task.experiment.model.cond_channels:
    given.append(cond.frames[..., 3:6])
  return Scene(
    captions=captions,
    batch=batch,
    cond=cond,
    beside=(given, [x0] if given else []),
    size=x0.shape[1:4],
  )


def prompted_scene(task: Task, batch: Batch, prompts: list[str]) -> Scene:
  """The user's prompts, for stages conditioned on text alone.

  Args:
    task: of the stage.
    batch: the prompts, encoded.
    prompts: as they were said.
  """
  data = task.experiment.data
  return Scene(
    captions=prompts,
    batch=batch,
    cond=Cond(text=None, text_mask=jnp.asarray(batch["text_mask"])),
    beside=([], []),
    size=(data.num_frames, *data.resolution),
  )


class Previews:
  """Samples the averaged weights and writes what they make.

  The same captions, noise and given pixels every time, so that what changes is
  what was learned. Nothing here touches the state of training.
  """

  def __init__(self, task: Task, scene: Scene, folder: Path):
    self._task, self._scene, self._folder = task, scene, folder

  def __call__(self, state: TrainState, frozen: FlatParams) -> list[Clip]:
    """Writes STEP-NUMBER-CAPTION.mp4, or .png of pictures."""
    scene, fps = self._scene, self._task.experiment.data.fps
    left, right = scene.beside
    shown = to_host([*left, self._sample(state, frozen), *right])
    if not is_primary():
      return []
    videos = side_by_side([np.asarray(to_uint8(video)) for video in shown])
    clips = []
    for k, (caption, video) in enumerate(
      zip(scene.captions, videos, strict=True)
    ):
      name = f"{int(state.step):08d}-{k}-{slug(caption)}".rstrip("-")
      path = self._folder / (name + (".png" if len(video) == 1 else ".mp4"))
      if len(video) == 1:
        write_image(path, video[0])
      else:
        write_video(path, video, fps)
      clips.append(Clip(name=f"preview/{k}", path=path, video=video, fps=fps))
    return clips

  def _sample(self, state: TrainState, frozen: FlatParams) -> Video:
    experiment, scene = self._task.experiment, self._scene
    frames, *size = scene.size
    config = experiment.sampling
    video = dataclasses.replace(config.video, resolution=tuple(size))
    count = len(scene.captions)
    repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], count, axis=0)
    null = Cond(
      text=repeat(self._task.null_text), text_mask=repeat(self._task.null_mask)
    )
    weights = {**state.ema, **frozen}
    encoded = self._task.encode(weights, scene.batch)
    config = dataclasses.replace(config, video=video)
    own = dataclasses.replace(
      config.defaults, guidance_scale=experiment.preview.guidance_scale
    )
    if parse_levels(own.grid) is None:  # a list has its own number of steps
      own = dataclasses.replace(own, steps=experiment.preview.steps)
    return sample_stage(
      config,
      lora.scaled(weights, experiment.lora.scale),
      scene.cond.replace(text=jnp.asarray(encoded["text"])),
      null,
      sample_keys(list(range(count))),
      frames,
      rule=make_sampler(own.sampler),
      log_snrs=config.levels(own, frames),
      guidance_params=GuidanceParams(
        guidance_scale=own.guidance_scale,
        percentile=own.percentile,
        max_value=own.max_value,
      ),
      chunk=own.steps,
    )
