"""Sampling one stage: from noise to a clip, in jitted chunks of steps."""

from collections.abc import Callable
import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from lumiere_jax.diffusion.guidance import (
  Scalar,
  guide,
  interval,
  oscillate,
  threshold,
)
from lumiere_jax.diffusion.multidiffusion import multi_diffusion, window_starts
from lumiere_jax.diffusion.noise import INITIAL, Keys, frame_noise
from lumiere_jax.diffusion.rules import Rule, State
from lumiere_jax.diffusion.samplers import sample, sample_chunk, time_grid
from lumiere_jax.pipelines.stage import StageConfig, network_denoiser
from lumiere_jax.typing import Cond, FlatParams, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
  """How a stage sees a video that is longer than it can take at once.

  Attributes:
    size: frames of a window.
    overlap: least number of frames that neighbours share (2 in the paper).
    chunk: windows denoised at once; memory grows with it.
    weights: 'uniform' (the paper) or 'ramp'.
    spread: windows spread evenly, instead of the last one shifted.
  """

  size: int
  overlap: int = 2
  chunk: int = 1
  weights: str = "uniform"
  spread: bool = False


@struct.dataclass
class Knobs:
  """What may change from one video to the next without compiling anew.

  Attributes:
    guidance_scale: w of classifier-free guidance; 1 is the conditional model.
    guidance_rescale: how far guided frames keep the contrast of unguided ones,
      in [0, 1].
    guidance_interval: schedule times (low, high) between which is guided; 0
      and 1 are always.
    oscillate_after: steps before guidance alternates; -1 is never.
    oscillate_low: the scale it then alternates with.
    percentile: of dynamic thresholding, in [0, 1].
    max_value: largest threshold; 1 is static clipping.
  """

  guidance_scale: Scalar = 7.0
  guidance_rescale: Scalar = 0.0
  guidance_interval: tuple[Scalar, Scalar] = (0.0, 1.0)
  oscillate_after: Scalar = -1.0
  oscillate_low: Scalar = 1.0
  percentile: Scalar = 0.95
  max_value: Scalar = 1.5


_draw = jax.jit(frame_noise, static_argnums=(2, 3))


@functools.partial(
  jax.jit, static_argnames=("config", "rule", "windows", "num_frames")
)
def _run_chunk(
  params: FlatParams,
  state: State,
  log_snrs: Float[Array, "n"],
  first_step: Array,
  keys: Keys,
  cond: Cond,
  null_cond: Cond,
  knobs: Knobs,
  *,
  config: StageConfig,
  rule: Rule,
  windows: Windows | None,
  num_frames: int,
) -> State:
  oscillating = oscillate(
    knobs.guidance_scale,
    knobs.oscillate_low,
    knobs.oscillate_after,
    log_snrs,
    first_step,
  )
  schedule = config.diffusion.make_schedule()
  scale = interval(oscillating, *knobs.guidance_interval, schedule)
  network = network_denoiser(config, params)
  denoiser = guide(network, scale, null_cond, knobs.guidance_rescale)
  if windows:
    starts = plan_windows(config, windows, num_frames)
    denoiser = multi_diffusion(
      denoiser, starts, windows.size, windows.chunk, windows.weights
    )
  denoiser = threshold(denoiser, knobs.percentile, knobs.max_value)
  return sample_chunk(denoiser, rule, state, log_snrs, first_step, keys, cond)


def plan_windows(
  config: StageConfig, windows: Windows, num_frames: int
) -> tuple[int, ...]:
  """First frames of the windows of a video.

  Raises:
    UserError: the windows do not fit the video or the model.
  """
  return window_starts(
    num_frames,
    windows.size,
    windows.overlap,
    config.model.temporal_factor,
    windows.spread,
  )


def sample_at_once(
  config: StageConfig,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  num_frames: int,
  *,
  rule: Rule,
  log_snrs: Float[np.ndarray, "n"],
  knobs: Knobs,
  windows: Windows | None = None,
) -> Video:
  """`sample_stage` as one function of arrays, to be traced and exported.

  Args:
    log_snrs: (steps + 1,) all noise levels, see `samplers.time_grid`.

  The others, and what it returns, are those of `sample_stage`.
  """
  z = frame_noise(keys, INITIAL, num_frames, (*config.video.resolution, 3))
  return _run_chunk(
    params,
    rule.init(z),
    jnp.asarray(log_snrs),
    jnp.int32(0),
    keys,
    cond,
    null_cond,
    _as_arrays(knobs),
    config=config,
    rule=rule,
    windows=windows,
    num_frames=num_frames,
  ).z


def _as_arrays(knobs: Knobs) -> Knobs:
  """Values that are traced, so that changing them compiles nothing anew."""
  return jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float32), knobs)


def sample_stage(
  config: StageConfig,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  num_frames: int,
  *,
  rule: Rule,
  steps: int,
  knobs: Knobs,
  windows: Windows | None = None,
  chunk: int = 10,
  callback: Callable[[int, Video], bool | None] | None = None,
) -> Video:
  """Samples clips from one stage.

  Args:
    config: of the stage.
    params: its weights.
    cond: conditioning of every clip.
    null_cond: text of "no caption", or of a negative prompt.
    keys: (b,) one key per clip; see `noise.sample_keys`.
    num_frames: length of the clips.
    rule: step rule.
    steps: sampling steps.
    knobs: guidance and thresholding.
    windows: None: all frames at once.
    chunk: most steps run on the device without the host in between.
    callback: see `samplers.sample`.

  Returns:
    (b, num_frames, h, w, 3) in about [-1, 1].

  Raises:
    UserError: the length does not fit the model or the windows.
  """
  height, width = config.video.resolution
  if windows:
    plan_windows(config, windows, num_frames)
  else:
    config.model.check_video(num_frames, height, width)
  z = _draw(keys, INITIAL, num_frames, (height, width, 3))
  run = functools.partial(
    _run_chunk, config=config, rule=rule, windows=windows, num_frames=num_frames
  )
  knobs = _as_arrays(knobs)
  return sample(
    lambda state, levels, first: run(
      params, state, levels, first, keys, cond, null_cond, knobs
    ),
    rule.init(z),
    time_grid(config.diffusion.make_schedule(), steps),
    chunk,
    callback,
  )
