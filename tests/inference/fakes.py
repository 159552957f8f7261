"""A cascade whose stages make grey that grows brighter; no network runs."""

import jax.numpy as jnp

from configs import base, conditional, ssr
from lumiere_jax.inference import cascade
from lumiere_jax.inference.cascade import Stage
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.models.text_encoder import TextEncoder


def replace_networks(monkeypatch):
  """Replaces the networks; returns a list of what they are asked for."""
  calls = []

  def sample_stage(program, params, cond, null, keys, **rest):
    config, frames = program.config, program.num_frames
    calls.append({"cond": cond} | vars(program) | rest)
    ramp = jnp.linspace(-0.5, 0.5, frames)[None, :, None, None, None]
    size = (len(cond.text), frames, *config.video.resolution, 3)
    return jnp.broadcast_to(ramp, size)

  monkeypatch.setattr(cascade, "sample_stage", sample_stage)
  monkeypatch.setattr(cascade, "compile_ahead", lambda *_, **__: None)
  return calls


def tiny_pipeline():
  """All stages, without weights."""
  stage = lambda experiment: Stage(config=experiment.sampling, params={})
  return Pipeline(
    TextEncoder.random(max_length=48),
    {"base": stage(base.TINY), "ssr": stage(ssr.TINY)},
    conditional=lambda: stage(conditional.TINY),
  )
