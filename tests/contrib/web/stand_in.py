"""A cascade that draws in place of sampling: what the page's tests run on.

Everything around the networks is real: sizes, masks, what is put back. As
many steps are counted as were asked for, and each takes `pause` seconds.

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

FRAMES, SIDE, UPSCALE = 16, 64, 2


STEPS = 4


class Drawing(Pipeline):
  """Draws the scene that the prompt describes; or grey, growing brighter.

  Attributes:
    pause: seconds a step takes.
    taken: steps that were ever taken.
    running: stages that are being sampled.
    most: of these at a time, ever.
    styles: (style, alpha) that was asked for, each time.
  """

  def __init__(self, pause: float = 0.0, told: bool = True):
    stage = lambda experiment: Stage(
      config=_config(experiment.sampling), params={}
    )
    super().__init__(
      TextEncoder.random(max_length=48),
      {"base": stage(base.TINY), "ssr": stage(ssr.TINY)},
      conditional=(lambda: stage(conditional.TINY)) if told else None,
    )
    self.pause, self.taken, self.running, self.most = pause, 0, 0, 0
    self.styles, self.prompt = [], ""

  def styled(self, style: str, alpha: float) -> "Drawing":
    """Itself; what was asked for is kept."""
    self.styles.append((style, alpha))
    return self

  @contextlib.contextmanager
  def drawing(self):
    """Within it, no network runs in this process."""
    original = Cascade.sample

    def sample(cascade_, prompts, **how):
      self.prompt = prompts[0]
      return original(cascade_, prompts, **how)

    with (
      mock.patch.object(Cascade, "sample", sample),
      mock.patch.object(cascade, "sample_stage", self._sample_stage),
      mock.patch.object(cascade, "compile_ahead"),
    ):
      yield self

  def _sample_stage(self, config, params, cond, null, keys, frames, **rest):
    del params, null, keys
    canvas = jnp.zeros((1, 1, 1, 1, 3))
    self.running += 1
    self.most = max(self.most, self.running)
    try:
      for step in range(len(rest["log_snrs"]) - 1):
        time.sleep(self.pause)
        self.taken += 1
        rest["callback"](step + 1, canvas)
    finally:
      self.running -= 1
    drawn = to_float(jnp.asarray(_draw(self.prompt, frames, config)))
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
  """Serves the page on it, to look at."""
  del argv
  from lumiere_jax.contrib.web.options import Options
  from lumiere_jax.contrib.web.server import serve

  with Drawing(pause=PAUSE.value).drawing() as pipeline:
    serve(lambda: pipeline, Options(), port=PORT.value)


if __name__ == "__main__":
  PORT = flags.DEFINE_integer("port", 7861, "To serve on.")
  PAUSE = flags.DEFINE_float("pause", 0.1, "Seconds that a step takes.")
  app.run(main)
