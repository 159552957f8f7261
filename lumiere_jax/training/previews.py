"""Preview clips, sampled during training."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.diffusion.noise_levels import parse_levels
from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.inference.stage_sampler import Program, sample_stage, traced
from lumiere_jax.media.images import side_by_side, write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.models import lora
from lumiere_jax.parallel.multihost import is_primary, to_host
from lumiere_jax.stages.conditioning import to_uint8
from lumiere_jax.storage.files import slug
from lumiere_jax.training.metric_writers import PreviewClip
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.typing import Cond, FlatParams, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewInputs:
  """Inputs of preview sampling.

  Attributes:
    captions: one for each clip.
    batch: the encoded captions.
    cond: conditioning besides the text.
    beside: (b, t, h, w, 3) videos shown left of a sample (its conditioning)
      and right of it (the real clips).
    size: (frames, height, width) of the samples.
  """

  captions: list[str]
  batch: Batch
  cond: Cond
  beside: tuple[list[Video], list[Video]]
  size: tuple[int, int, int]


def held_out_inputs(
  task: Task, batch: Batch, captions: list[str]
) -> PreviewInputs:
  """Captions and pixel conditioning of held-out clips."""
  x0, cond = jax.jit(task.held_out_inputs)(batch)
  given = [] if cond.frames is None else [cond.frames[..., :3]]
  if task.experiment.upscale > 1 and task.experiment.model.cond_channels:
    given.append(cond.frames[..., 3:6])
  return PreviewInputs(
    captions=captions,
    batch=batch,
    cond=cond,
    beside=(given, [x0] if given else []),
    size=x0.shape[1:4],
  )


def prompt_inputs(
  task: Task, batch: Batch, prompts: list[str]
) -> PreviewInputs:
  """The configured prompts, for stages conditioned on text only."""
  data = task.experiment.data
  return PreviewInputs(
    captions=prompts,
    batch=batch,
    cond=Cond(text=None, text_mask=jnp.asarray(batch["text_mask"])),
    beside=([], []),
    size=(data.num_frames, *data.resolution),
  )


class Previews:
  """Samples preview clips from the averaged weights.

  Captions, noise and given pixels are the same every time, so that clips are
  comparable.
  """

  def __init__(self, task: Task, inputs: PreviewInputs, folder: Path):
    self._task, self._inputs, self._folder = task, inputs, folder

  def __call__(
    self, state: TrainState, frozen: FlatParams
  ) -> list[PreviewClip]:
    """Writes STEP-NUMBER-CAPTION.mp4, or .png for images."""
    inputs, fps = self._inputs, self._task.experiment.data.fps
    left, right = inputs.beside
    shown = to_host([*left, self._sample(state, frozen), *right])
    if not is_primary():
      return []
    videos = side_by_side([np.asarray(to_uint8(video)) for video in shown])
    clips = []
    for k, (caption, video) in enumerate(
      zip(inputs.captions, videos, strict=True)
    ):
      name = f"{int(state.step):08d}-{k}-{slug(caption)}".rstrip("-")
      path = self._folder / (name + (".png" if len(video) == 1 else ".mp4"))
      if len(video) == 1:
        write_image(path, video[0])
      else:
        write_video(path, video, fps)
      clips.append(
        PreviewClip(name=f"preview/{k}", path=path, video=video, fps=fps)
      )
    return clips

  def _sample(self, state: TrainState, frozen: FlatParams) -> Video:
    experiment, inputs = self._task.experiment, self._inputs
    frames, *size = inputs.size
    config = experiment.sampling
    video = dataclasses.replace(config.video, resolution=tuple(size))
    count = len(inputs.captions)
    repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], count, axis=0)
    null = Cond(
      text=repeat(self._task.null_text), text_mask=repeat(self._task.null_mask)
    )
    weights = {**state.ema, **frozen}
    encoded = self._task.encode(weights, inputs.batch)
    config = dataclasses.replace(config, video=video)
    sampling = dataclasses.replace(
      config.defaults, guidance_scale=experiment.preview.guidance_scale
    )
    if parse_levels(sampling.grid) is None:  # a list of levels fixes the steps
      sampling = dataclasses.replace(sampling, steps=experiment.preview.steps)
    program = Program(
      config=config, rule=make_sampler(sampling.sampler), num_frames=frames
    )
    return sample_stage(
      program,
      lora.scaled(weights, experiment.lora.scale),
      dataclasses.replace(inputs.cond, text=jnp.asarray(encoded["text"])),
      null,
      sample_keys(list(range(count))),
      log_snrs=config.levels(sampling, frames),
      guidance=traced(sampling),
      chunk=sampling.steps,
    )
