"""Preview clips, sampled during training."""

import dataclasses

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
from lumiere_jax.training.metric_logger import PreviewClip
from lumiere_jax.training.run import Run
from lumiere_jax.training.task import Batch
from lumiere_jax.typing import Cond, Video


class Previews:
  """Samples preview clips from the averaged weights.

  Captions, noise and given pixels are the same every time, so that clips are
  comparable. Beside a sample stand its conditioning (left) and the real clip
  (right).
  """

  def __init__(self, run: Run):
    self._run, task, data = run, run.task, run.experiment.data
    self._left: list[Video] = []
    self._right: list[Video] = []
    self._batch: Batch
    if prompts := run.experiment.preview.prompts:
      self._captions = list(prompts)
      self._batch = run.encode_text(self._captions)
      self._null = self._null_cond()
      mask = jnp.asarray(self._batch["text_mask"])
      self._cond = Cond(text=self._null.text, text_mask=mask)
      self._frames, self._size = data.num_frames, data.resolution
      return
    self._batch, self._captions = run.preview_batch()
    self._null = self._null_cond()
    inputs = {"text": self._null.text, **self._batch}
    x0, cond = jax.jit(task.held_out_inputs)(inputs)
    self._cond = cond
    _, self._frames, height, width, _ = x0.shape
    self._size = height, width
    if cond.frames is not None:
      # Low resolution (3), masked video (3) and mask (1), or some of them.
      starts = range(0, cond.frames.shape[-1] - 2, 3)
      self._left = [cond.frames[..., k : k + 3] for k in starts]
      self._right = [x0]

  def _null_cond(self) -> Cond:
    repeat = lambda x: jnp.repeat(x[None], len(self._captions), axis=0)
    task = self._run.task
    return Cond(text=repeat(task.null_text), text_mask=repeat(task.null_mask))

  def __call__(self) -> list[PreviewClip]:
    """Writes STEP-NUMBER-CAPTION.mp4, or .png for images."""
    run, fps = self._run, self._run.experiment.data.fps
    shown = to_host([*self._left, self._sample(), *self._right])
    if not is_primary():
      return []
    videos = side_by_side([np.asarray(to_uint8(video)) for video in shown])
    clips = []
    for k, (caption, video) in enumerate(
      zip(self._captions, videos, strict=True)
    ):
      name = f"{run.step:08d}-{k}-{slug(caption)}".rstrip("-")
      path = run.workdir / "previews" / name
      if len(video) == 1:
        path = path.with_name(f"{name}.png")
        write_image(path, video[0])
      else:
        path = path.with_name(f"{name}.mp4")
        write_video(path, video, fps)
      clips.append(PreviewClip(f"preview/{k}", path, video, fps))
    return clips

  def _sample(self) -> Video:
    run, experiment = self._run, self._run.experiment
    config, preview = experiment.sampling, experiment.preview
    video = dataclasses.replace(config.video, resolution=self._size)
    config = dataclasses.replace(config, video=video)
    sampling = dataclasses.replace(
      config.defaults, guidance_scale=preview.guidance_scale
    )
    if parse_levels(sampling.grid) is None:  # a list of levels fixes the steps
      sampling = dataclasses.replace(sampling, steps=preview.steps)
    program = Program(
      config=config,
      rule=make_sampler(sampling.sampler),
      num_frames=self._frames,
    )
    weights = {**run.state.ema, **run.frozen}
    text = jnp.asarray(run.task.encode(weights, self._batch)["text"])
    return sample_stage(
      program,
      lora.scaled(weights, experiment.lora.scale),
      dataclasses.replace(self._cond, text=text),
      self._null,
      sample_keys(list(range(len(self._captions)))),
      log_snrs=config.levels(sampling, self._frames),
      guidance=traced(sampling),
      chunk=sampling.steps,
    )
