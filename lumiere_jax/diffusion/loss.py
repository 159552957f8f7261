"""The training loss and caption dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from lumiere_jax.diffusion import choices
from lumiere_jax.diffusion.process import (
  KINDS,
  Denoiser,
  Prediction,
  add_noise,
  to_v,
)
from lumiere_jax.diffusion.schedule import Schedule
from lumiere_jax.typing import Cond, PerSample, Video, typechecked


@typechecked
def sample_time(
  key: Key[Array, ""], batch: int, stratified: bool = False
) -> PerSample:
  """Times t ~ U(0, 1), one per sample.

  Args:
    key: random key.
    batch: number of samples.
    stratified: one time in each of `batch` equal strata (Variational
      Diffusion Models, App. I.1): each is still uniform, their mean over the
      batch varies less.
  """
  if not stratified:
    return jax.random.uniform(key, (batch,))
  return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0


@typechecked
def loss_per_sample(
  denoiser: Denoiser,
  x0: Video,
  eps: Video,
  log_snr: PerSample,
  cond: Cond,
  kind: str,
) -> PerSample:
  """Mean squared error of each sample at a given noise and noise level.

  Args:
    denoiser: the network under training or test.
    x0: clean videos in [-1, 1].
    eps: standard normal noise.
    log_snr: how much of it to add.
    cond: conditioning.
    kind: the space of the error, one of `process.KINDS`; "eps" is the loss
      of Imagen, "v" that of Imagen Video.

  Raises:
    UserError: an unknown kind.
  """
  choices.check_choice("loss", kind, KINDS)
  x0, eps = x0.astype(jnp.float32), eps.astype(jnp.float32)
  truth = Prediction(x0, eps, to_v(x0, eps, log_snr))
  prediction = denoiser(add_noise(x0, eps, log_snr), log_snr, cond)
  error = getattr(prediction, kind) - getattr(truth, kind)
  return jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))


@typechecked
def diffusion_loss(
  denoiser: Denoiser,
  x0: Video,
  cond: Cond,
  key: Key[Array, ""],
  *,
  schedule: Schedule,
  kind: str = "eps",
  stratified: bool = False,
) -> tuple[Float[Array, ""], dict[str, PerSample]]:
  """The diffusion loss at random times and noise.

  Args:
    denoiser: the network under training.
    x0: clean videos in [-1, 1].
    cond: conditioning.
    key: random key of this step.
    schedule: noise schedule; t ~ U(0, 1) is mapped through it.
    kind: the space of the error, one of `process.KINDS`.
    stratified: see `sample_time`.

  Returns:
    The mean loss, and {"loss_per_sample", "log_snr"}, each (b,), from which
    losses by noise level are binned.

  Raises:
    UserError: an unknown kind.
  """
  time_key, noise_key = jax.random.split(key)
  t = sample_time(time_key, x0.shape[0], stratified)
  log_snr = schedule.log_snr(t)
  eps = jax.random.normal(noise_key, x0.shape)
  losses = loss_per_sample(denoiser, x0, eps, log_snr, cond, kind)
  return losses.mean(), {"loss_per_sample": losses, "log_snr": log_snr}


@typechecked
def drop_captions(
  key: Key[Array, ""],
  cond: Cond,
  null_text: Float[Array, "l e"],
  null_mask: Bool[Array, "l"] | None,
  rate: float,
) -> Cond:
  """Replaces each sample's text by "no text" with probability `rate`.

  It makes the unconditional model of classifier-free guidance (Imagen: rate
  0.1). Frames and noise level are kept.

  Args:
    key: random key.
    cond: conditioning of the batch.
    null_text: what stands for "no text": zeros (Imagen) or the encoding of
      the empty caption (IF).
    null_mask: its mask; None: every token is real.
    rate: in [0, 1].

  Raises:
    UserError: a rate outside [0, 1].
  """
  choices.check_unit("caption dropout rate", rate)
  drop = jax.random.bernoulli(key, rate, (cond.text.shape[0],))
  null_text = null_text.astype(cond.text.dtype)
  text = jnp.where(drop[:, None, None], null_text, cond.text)
  return cond.replace(text=text, text_mask=_drop_mask(drop, cond, null_mask))


def _drop_mask(
  drop: Bool[Array, "b"], cond: Cond, null_mask: Bool[Array, "l"] | None
) -> Bool[Array, "b l"] | None:
  if cond.text_mask is None and null_mask is None:
    return None
  everything = jnp.ones(cond.text.shape[:2], bool)
  mask = everything if cond.text_mask is None else cond.text_mask
  null = everything if null_mask is None else null_mask
  return jnp.where(drop[:, None], null, mask)
