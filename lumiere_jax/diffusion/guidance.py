"""Classifier-free guidance and dynamic thresholding.

Each takes a denoiser and returns one. Scales and thresholds may be traced, so
that changing them does not recompile.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumiere_jax.diffusion.prediction import (
  Denoiser,
  Prediction,
  expand,
  paired_masks,
  predict,
)
from lumiere_jax.diffusion.schedules import Schedule, alpha_sigma
from lumiere_jax.errors import UserError
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

Scalar = float | int | Float[Array, ""]

Scale = Scalar | PerSample | Callable[[PerSample], PerSample]
"""A guidance scale: for all, per sample, or a function of the log-SNR."""

MAX_VALUES = 2**31 - 1
"""The largest clip that can be thresholded: values are counted in int32."""


@typechecked
def guide(
  denoiser: Denoiser, scale: Scale, null_cond: Cond, rescale: Scalar = 0.0
) -> Denoiser:
  """Classifier-free guidance: w eps(z, cond) + (1 - w) eps(z, null).

  Imagen, eq. 2. x0, eps and v are affine in each other, so each is mixed
  separately, which loses no precision at any noise level. Both halves run as
  one batch of 2b. The log-variance is the conditional one.

  Args:
    denoiser: the network.
    scale: w, for all, per sample, or by noise level (see `oscillate` and
      `interval`); 1 is the conditional model, 0 the unconditional one.
    null_cond: text and mask (batch 1 or b) of "no text" or of a negative
      prompt. Frames and noise level are ignored: those of the call are used,
      so that guidance works inside windows.
    rescale: in [0, 1], how far each frame of the guided x0 is rescaled to the
      standard deviation of the conditional one (Lin et al. 2024, section
      3.4). It works per frame, so that a frame does not depend on others.
  """

  def guided(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    batch = z.shape[0]
    twice = lambda x: jnp.concatenate([x, x])
    both = jax.tree.map(
      lambda *x: jnp.concatenate(x), *_with_null(cond, null_cond)
    )
    out = denoiser(twice(z), twice(log_snr), both)
    with_text = jax.tree.map(lambda x: x[:batch], out)
    without = jax.tree.map(lambda x: x[batch:], out)
    w = expand(_scale_at(scale, log_snr))
    mixed = jax.tree.map(lambda c, u: w * c + (1 - w) * u, with_text, without)
    mixed = _rescale(mixed, with_text.x0, log_snr, rescale)
    return dataclasses.replace(mixed, log_var=with_text.log_var)

  return guided


@typechecked
def oscillate(
  high: Scale,
  low: Scalar,
  after: Scalar | Int[Array, ""],
  log_snrs: Float[Array, "n"],
  first_step: int | Int[Array, ""] = 0,
) -> Callable[[PerSample], PerSample]:
  """Oscillating guidance (Imagen Video, section 3).

  `high` for the first `after` steps, then `low` and `high` alternately. Imagen
  Video alternates between e.g. 15 and 1, with scales that are 0 instead of 1
  for the conditional model. The step is found by its noise level: a sampler
  that also evaluates at the end of a step (Heun) uses the next step's scale
  there.

  Args:
    high, low: the scales.
    after: steps before the first low one; below 0: there is none.
    log_snrs: (n,) noise levels of consecutive steps.
    first_step: number of the first of them.
  """

  def scale(log_snr: PerSample) -> PerSample:
    distance = jnp.abs(log_snrs - log_snr[:, None])
    # Equal infinities would give nan.
    distance = jnp.where(log_snrs == log_snr[:, None], 0.0, distance)
    step = first_step + jnp.argmin(distance, axis=1)
    is_low = (after >= 0) & (step >= after) & ((step - after) % 2 == 0)
    return jnp.where(is_low, low, _scale_at(high, log_snr))

  return scale


@typechecked
def interval(
  scale: Scale, low: Scalar, high: Scalar, schedule: Schedule
) -> Callable[[PerSample], PerSample]:
  """Guidance in an interval of noise levels (Kynkäänniemi et al. 2024).

  The scale is 1, the conditional model, outside the times `low` (the cleanest)
  to `high` of the schedule; 0 and 1 guide always.
  """

  def inside(log_snr: PerSample) -> PerSample:
    t = schedule.time(log_snr)
    # The time of a log-SNR is exact up to rounding.
    near = (t >= low - 1e-5) & (t <= high + 1e-5)
    return jnp.where(near, _scale_at(scale, log_snr), 1.0)

  return inside


def _scale_at(scale: Scale, log_snr: PerSample) -> PerSample:
  if callable(scale):
    return scale(log_snr)
  return _tile(jnp.atleast_1d(scale), log_snr.shape[0])


def _rescale(
  guided: Prediction, x0: Video, log_snr: PerSample, amount: Scalar
) -> Prediction:
  """Scales x0 toward the contrast of `x0`; eps and v follow for the same z."""
  std = lambda x: jnp.std(x, axis=(2, 3, 4), keepdims=True)
  ours = std(guided.x0)
  ratio = jnp.where(ours > 0, std(x0) / ours, 1.0)
  added = amount * (ratio - 1) * guided.x0
  alpha, sigma = alpha_sigma(expand(log_snr))
  return dataclasses.replace(
    guided,
    x0=guided.x0 + added,
    eps=guided.eps - alpha / sigma * added,
    v=guided.v - added / sigma,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """The frames that one device holds of sharded clips.

  Attributes:
    axis: mesh axis that the frames are sharded over, inside `shard_map`.
    owned: number of frames, from the first, that count here; the others are
      padding, or counted on another device.
    num_frames: of a whole clip.
  """

  axis: str
  owned: Int[Array, ""]
  num_frames: int


@typechecked
def threshold(
  denoiser: Denoiser,
  percentile: Scalar,
  max_value: Scalar,
  part: Part | None = None,
) -> Denoiser:
  """Dynamic thresholding of x0 (Imagen, section 2.3), per clip.

  s = the percentile of |x0| over the frames, pixels and channels of a clip,
  clipped to [1, max_value]; x0 is clipped to [-s, s] and divided by s. With one
  s per frame, a static background would change whenever something bright
  enters the picture. For one frame it is Imagen's rule.

  Args:
    denoiser: to be thresholded; includes the windows, so that this sees whole
      clips after averaging.
    percentile: a fraction in [0, 1], to six digits; Imagen shows 0.995, IF uses
      0.95.
    max_value: the largest s, at least 1; 1 is static clipping to [-1, 1],
      infinity is Imagen's uncapped rule.
    part: the frames on this device if clips are sharded; None: whole clips.
  """

  def thresholded(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    out = denoiser(z, log_snr, cond)
    s = clip_quantile(jnp.abs(out.x0), percentile, part)
    s = jnp.clip(s, 1.0, max_value)
    x0 = jnp.clip(out.x0, -s, s) / s
    return predict("x0", x0, z, log_snr, out.log_var)

  return thresholded


def check_countable(values: int) -> None:
  """Checks that a clip is not too large for thresholding.

  Its values are frames x height x width x channels.
  """
  if values > MAX_VALUES:
    raise UserError(
      f"a clip of {values} values",
      f"(frames x pixels x 3) exceeds the {MAX_VALUES} that thresholding can "
      "count",
      "make it shorter or smaller",
    )


def clip_quantile(
  x: Video, percentile: Scalar, part: Part | None = None
) -> Float[Array, "b 1 1 1 1"]:
  """The linearly interpolated quantile of each clip, without a sort.

  A sort would gather sharded clips. This is a bisection over bit patterns:
  floats >= 0 are ordered as their bits, so that 31 counts of values up to a
  bound find the value of a rank exactly. Counts are integers, so that their sum
  does not depend on the sharding.

  `x` is float32 and not negative, `percentile` a fraction in [0, 1] that is
  rounded to millionths; for `part` see `threshold`.
  """
  axes = (1, 2, 3, 4)
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
  num_frames, total, least = x.shape[1], lambda n: n, lambda n: n
  if part:
    num_frames = part.num_frames
    total = functools.partial(jax.lax.psum, axis_name=part.axis)
    least = functools.partial(jax.lax.pmin, axis_name=part.axis)
    owned = (jnp.arange(x.shape[1]) < part.owned).reshape(-1, 1, 1, 1)
    bits = jnp.where(owned, bits, MAX_VALUES)  # Above infinity: never counted.
  values = num_frames * math.prod(x.shape[2:])
  check_countable(values)
  position, share = _position(percentile, values - 1)
  rank = position + 1
  up_to = lambda value: total(
    jnp.sum(bits <= value, axes, dtype=jnp.int32, keepdims=True)
  )

  def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = ends
    middle = low + (high - low) // 2
    enough = up_to(middle) >= rank
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  zero = jnp.zeros((x.shape[0], 1, 1, 1, 1), jnp.int32)
  infinity = jnp.full_like(zero, 0x7F800000)
  found = jax.lax.fori_loop(0, 31, bisect, (zero, infinity))[1]
  above = jnp.where(bits > found, bits, infinity).min(axes, keepdims=True)
  after = jnp.where(up_to(found) > rank, found, least(above))
  low, high = (
    jax.lax.bitcast_convert_type(value, jnp.float32) for value in (found, after)
  )
  return jnp.where(share > 0, low * (1 - share) + high * share, low)


def _position(
  percentile: Scalar, last: int
) -> tuple[Int[Array, ""], Float[Array, ""]]:
  """The integer part, exact, and the fraction of `percentile * last`.

  float32 is exact for integers up to 2^24 only. So this multiplies integers,
  millionths and `last`, the latter split into millions, thousands and ones: no
  intermediate result reaches 2^31, nor may `last`.
  """
  millionths = jnp.round(percentile * 1e6).astype(jnp.int32)
  millions, rest = divmod(last, 10**6)
  thousands, ones = divmod(rest, 10**3)
  in_thousandths = millionths * thousands
  in_millionths = in_thousandths % 10**3 * 10**3 + millionths * ones
  whole = millionths * millions + in_thousandths // 10**3
  return whole + in_millionths // 10**6, in_millionths % 10**6 / 1e6


def _tile(x: Float[Array, "n *rest"], batch: int) -> Float[Array, "b *rest"]:
  """Repeats per-sample values for windows that are folded into the batch."""
  return jnp.tile(x, (batch // x.shape[0],) + (1,) * (x.ndim - 1))


def _with_null(cond: Cond, null_cond: Cond) -> tuple[Cond, Cond]:
  """`cond`, and `cond` with the null text, as pytrees of equal structure."""
  text, mask = jax.tree.map(
    lambda x: _tile(x, cond.text.shape[0]),
    (null_cond.text, null_cond.text_mask),
  )
  masks = paired_masks(cond.text_mask, mask, cond.text) or (None, None)
  texts = cond.text, text.astype(cond.text.dtype)
  with_text, without = (
    dataclasses.replace(cond, text=text, text_mask=mask)
    for text, mask in zip(texts, masks, strict=True)
  )
  return with_text, without
