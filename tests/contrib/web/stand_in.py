"""A fake pipeline for tests of the page: draws scenes instead of sampling.

Everything around the networks is real: sizes, masks, compositing. It counts
the requested number of steps, each of which takes `pause` seconds.

python -m tests.contrib.web.stand_in --port=7861
"""

import contextlib
import dataclasses
import time
from unittest import mock

from absl import app, flags
import jax.numpy as jnp
import numpy as np

from configs import base, conditional, ssr
from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.inference import cascade
from lumiere_jax.inference.cascade import Cascade, Stage
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.stages.conditioning import to_float
from lumiere_jax.stages.config import SamplingConfig, StageConfig
from lumiere_jax.toy_scenes.captions import parse_caption

FRAMES, SIDE, UPSCALE, STEPS = 16, 64, 2, 4
LARGE = SIDE * UPSCALE
PROMPT = "a large red circle moving left on a black background"


class Drawing(Pipeline):
  """Draws the scene that the prompt describes, else grey getting brighter.

  Attributes:
    pause: seconds per step.
    steps: steps taken so far.
    running: stages that are being sampled now.
    max_running: the largest `running` so far.
    styles: arguments of each call of `styled`.
  """

  def __init__(self, pause: float = 0.0):
    stage = lambda experiment: Stage(
      config=_config(experiment.sampling), params={}
    )
    super().__init__(
      TextEncoder.random(max_length=48),
      {"base": stage(base.TINY), "ssr": stage(ssr.TINY)},
      conditional=lambda: stage(conditional.TINY),
    )
    self.pause, self.steps, self.running, self.max_running = pause, 0, 0, 0
    self.styles, self.prompt = [], ""

  def styled(self, style: str, alpha: float) -> "Drawing":
    """Records the call and returns itself."""
    self.styles.append((style, alpha))
    return self

  @contextlib.contextmanager
  def drawing(self):
    """Replaces all sampling of this process."""
    original = Cascade.sample

    def sample(cascade_, prompts, **how):
      self.prompt = prompts if isinstance(prompts, str) else prompts[0]
      return original(cascade_, prompts, **how)

    with (
      mock.patch.object(Cascade, "sample", sample),
      mock.patch.object(cascade, "sample_stage", self._sample_stage),
      mock.patch.object(cascade, "compile_ahead"),
    ):
      yield self

  def _sample_stage(self, program, params, cond, null, keys, **rest):
    del params, null, keys
    canvas = jnp.zeros((1, 1, 1, 1, 3))
    self.running += 1
    self.max_running = max(self.max_running, self.running)
    try:
      for step in range(len(rest["log_snrs"]) - 1):
        time.sleep(self.pause)
        self.steps += 1
        rest["callback"](step + 1, canvas)
    finally:
      self.running -= 1
    drawn = to_float(
      jnp.asarray(_draw(self.prompt, program.num_frames, program.config))
    )
    return jnp.broadcast_to(drawn, (len(cond.text), *drawn.shape))


def _config(config: StageConfig) -> StageConfig:
  side = SIDE * (UPSCALE if config.video.upscale > 1 else 1)
  frames = FRAMES // 2 if config.video.upscale > 1 else FRAMES
  video = dataclasses.replace(
    config.video, resolution=(side, side), num_frames=frames
  )
  sampling = SamplingConfig(steps=STEPS)
  return dataclasses.replace(config, video=video, sampling=sampling)


def _draw(prompt: str, frames: int, config: StageConfig) -> np.ndarray:
  size = config.video.resolution
  try:
    (sprite, *_), ground = parse_caption(prompt)
  except UserError:
    ramp = np.linspace(60, 200, frames).astype(np.uint8)
    return np.broadcast_to(ramp[:, None, None, None], (frames, *size, 3))
  source = lambda split: ProceduralSource(
    num_clips=1,
    num_frames=frames,
    resolution=size,
    two_objects=0.0,
    split=split,
    colours=(sprite.colour,),
    shapes=(sprite.shape,),
    motions=(sprite.motion,),
    backgrounds=(ground,),
  )
  try:
    return source("train").clip(0)
  except UserError:
    return source("held_out").clip(0)


def main(argv: list[str]) -> None:
  """Serves the page on it, for manual checks."""
  del argv
  from lumiere_jax.contrib.web.options import Address, Options
  from lumiere_jax.contrib.web.server import serve

  with Drawing(pause=PAUSE.value).drawing() as pipeline:
    serve(lambda: pipeline, Options(), Address(port=PORT.value))


if __name__ == "__main__":
  PORT = flags.DEFINE_integer("port", 7861, "Port to listen on.")
  PAUSE = flags.DEFINE_float("pause", 0.1, "Seconds per step.")
  app.run(main)
