"""Classifier-free guidance and dynamic thresholding, as denoisers.

Each takes a denoiser and returns one. Scales and thresholds may be traced
values, so that changing them compiles nothing anew.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.process import (
  Denoiser,
  Prediction,
  expand,
  predict,
)
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

Scalar = float | int | Float[Array, ""]


@typechecked
def guide(
  denoiser: Denoiser, scale: Scalar | PerSample, null_cond: Cond
) -> Denoiser:
  """Classifier-free guidance: w eps(z, cond) + (1 - w) eps(z, null).

  Imagen, eq. 2. The three forms of a prediction are affine in each other, so
  each is mixed by itself, which loses no precision at any noise level. Both
  halves run as one batch of 2b. The log-variance is the conditional one.

  Args:
    denoiser: what to guide.
    scale: w, for all or per sample; 1 is the conditional model, 0 the
      unconditional one.
    null_cond: its text and mask (batch 1 or b) stand for "no text", or are a
      negative prompt. Frames and noise level are always those of the call,
      so that guidance works inside windows; give none here.
  """

  def guided(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    batch = z.shape[0]
    twice = lambda x: jnp.concatenate([x, x])
    both = jax.tree.map(
      lambda *x: jnp.concatenate(x), *_with_and_without(cond, null_cond)
    )
    out = denoiser(twice(z), twice(log_snr), both)
    with_text = jax.tree.map(lambda x: x[:batch], out)
    without = jax.tree.map(lambda x: x[batch:], out)
    w = expand(_tile(jnp.atleast_1d(scale), batch))
    mixed = jax.tree.map(lambda c, u: w * c + (1 - w) * u, with_text, without)
    return mixed.replace(log_var=with_text.log_var)

  return guided


@typechecked
def threshold(
  denoiser: Denoiser, percentile: Scalar, max_value: Scalar
) -> Denoiser:
  """Dynamic thresholding of x0, frame by frame (Imagen, section 2.3).

  s = the percentile of |x0| over the pixels and channels of a frame, held in
  [1, max_value]; x0 is clipped to [-s, s] and divided by s. Frame by frame,
  so that a frame looks the same whatever frames stand beside it.

  Args:
    denoiser: what to threshold; put windows inside, so this sees whole frames
      after averaging.
    percentile: a fraction in [0, 1]; Imagen shows 0.995, IF uses 0.95.
    max_value: the largest s, at least 1; 1 is static clipping to [-1, 1],
      infinity is Imagen's uncapped rule.
  """

  def thresholded(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    out = denoiser(z, log_snr, cond)
    s = jnp.quantile(jnp.abs(out.x0), percentile, axis=(2, 3, 4), keepdims=True)
    s = jnp.clip(s, 1.0, max_value)
    x0 = jnp.clip(out.x0, -s, s) / s
    return predict("x0", x0, z, log_snr, out.log_var)

  return thresholded


def _tile(x: Float[Array, "n *rest"], batch: int) -> Float[Array, "b *rest"]:
  """Repeats per-sample values for windows that were folded into the batch."""
  return jnp.tile(x, (batch // x.shape[0],) + (1,) * (x.ndim - 1))


def _with_and_without(cond: Cond, null_cond: Cond) -> tuple[Cond, Cond]:
  """`cond` with its own text and with the null one, as equal pytrees."""
  null = jax.tree.map(
    lambda x: _tile(x, cond.text.shape[0]),
    Cond(text=null_cond.text, text_mask=null_cond.text_mask),
  )
  without = cond.replace(
    text=null.text.astype(cond.text.dtype), text_mask=null.text_mask
  )
  if cond.text_mask is None and null.text_mask is None:
    return cond, without
  return _fill_mask(cond), _fill_mask(without)


def _fill_mask(cond: Cond) -> Cond:
  if cond.text_mask is not None:
    return cond
  return cond.replace(text_mask=jnp.ones(cond.text.shape[:2], bool))
