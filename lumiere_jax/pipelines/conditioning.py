"""Builders of what a stage is conditioned on."""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.noise import Keys
from lumiere_jax.diffusion.process import add_noise
from lumiere_jax.diffusion.schedule import Schedule
from lumiere_jax.typing import PerSample, Video


def shrink(video: Video, factor: int) -> Video:
  """Area down-sampling: each pixel the mean of factor x factor pixels."""
  return einops.reduce(
    video, "b t (h i) (w j) c -> b t h w c", "mean", i=factor, j=factor
  )


def bilinear_matrix(size: int, new_size: int) -> Float[Array, "new old"]:
  """Interpolation along one axis with the corner pixels kept in place.

  The weights of torch's `interpolate(..., align_corners=True)`, which IF uses
  on the low-resolution input of its super-resolution models.
  """
  position = jnp.linspace(0.0, size - 1.0, new_size)
  distance = jnp.abs(position[:, None] - jnp.arange(size)[None, :])
  return jnp.maximum(0.0, 1.0 - distance)


def enlarge(video: Video, size: tuple[int, int]) -> Video:
  """Bilinear up-sampling of every frame to `size`, corners aligned."""
  rows = bilinear_matrix(video.shape[2], size[0])
  columns = bilinear_matrix(video.shape[3], size[1])
  return jnp.einsum("bthwc,yh,xw->btyxc", video, rows, columns)


def low_resolution_frames(
  low: Video,
  size: tuple[int, int],
  schedule: Schedule,
  noise_level: PerSample,
  noise: Video,
) -> Video:
  """Low-resolution video, enlarged and noised (Imagen, section 2.5).

  Args:
    low: (b, t, h, w, 3) in [-1, 1].
    size: (height, width) of the high-resolution video.
    schedule: gives noise levels their log-SNR.
    noise_level: (b,) schedule times in [0, 1]; 0 is no noise.
    noise: (b, t, *size, 3) standard normal.
  """
  return add_noise(enlarge(low, size), noise, schedule.log_snr(noise_level))


def given_frames(video: Video, mask: Video) -> Video:
  """Masked video and mask, as `Cond.frames` wants them: (b, t, h, w, 4).

  The conditioning of Lumiere, section 4.2. What is not given is 0, mid-grey.

  Args:
    video: (b, t, h, w, 3) in [-1, 1].
    mask: (b, t, h, w, 1), 1 where pixels are given, 0 elsewhere.
  """
  return jnp.concatenate([video * mask, mask], axis=-1)


def noise_like(video: Video, keys: Keys) -> Video:
  """Standard normal noise, each sample's from its own key."""
  draw = lambda key: jax.random.normal(key, video.shape[1:])
  return jax.vmap(draw)(keys)


def random_crops(keys: Keys, video: Video, size: int, grid: int) -> Video:
  """A random square crop of each clip, the same for all its frames.

  Args:
    keys: (b,) one for each clip.
    video: (b, t, h, w, c).
    size: side of the crops; 0 gives the whole frames.
    grid: offsets are multiples of this many pixels.
  """
  if not size:
    return video
  _, t, h, w, c = video.shape

  def crop(key: jax.Array, clip: Array) -> Array:
    down, across = jax.random.split(key)
    offsets = [
      grid * jax.random.randint(k, (), 0, (n - size) // grid + 1)
      for k, n in ((down, h), (across, w))
    ]
    return jax.lax.dynamic_slice(clip, (0, *offsets, 0), (t, size, size, c))

  return jax.vmap(crop)(keys, video)


def to_float(video: Array) -> Video:
  """uint8 in 0..255 -> float32 in [-1, 1]."""
  return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Video) -> Array:
  """[-1, 1], clipped -> uint8 in 0..255, rounded."""
  return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
