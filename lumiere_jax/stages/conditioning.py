"""A stage's conditioning besides the text: low resolution and given pixels."""

import dataclasses
import functools

import einops
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from lumiere_jax.diffusion.noise import INITIAL, Keys, frame_noise
from lumiere_jax.diffusion.prediction import add_noise
from lumiere_jax.diffusion.schedules import Schedule
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.typing import Clip, Cond, PerSample, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedVideo:
  """Pixels that are given to a conditional model (Lumiere, section 4.2).

  Attributes:
    video: (t, h, w, 3) at the resolution of the finished video; what is not
      given is not looked at, unless an edge is feathered into it.
    mask: (t, h, w) True where pixels are given.
  """

  video: Clip
  mask: Bool[np.ndarray, "t h w"]

  def at(
    self, resolution: tuple[int, int]
  ) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w 1"]]:
    """Video in [-1, 1] and mask of a stage that works with fewer pixels.

    Each pixel there is the mean of several here, given if all of them are.
    """
    i, j = (
      here // there
      for here, there in zip(self.mask.shape[1:], resolution, strict=True)
    )
    video = einops.reduce(
      self.video.astype(np.float32) / 127.5 - 1.0,
      "t (h i) (w j) c -> t h w c",
      "mean",
      i=i,
      j=j,
    )
    mask = einops.reduce(self.mask, "t (h i) (w j) -> t h w 1", "all", i=i, j=j)
    return video, mask.astype(np.float32)


def shrink(video: Video, factor: int) -> Video:
  """Area down-sampling: each pixel the mean of factor x factor pixels."""
  return einops.reduce(
    video, "b t (h i) (w j) c -> b t h w c", "mean", i=factor, j=factor
  )


def bilinear_matrix(
  size: int, new_size: int, alignment: str
) -> Float[np.ndarray, "new old"]:
  """Weights of linear interpolation along one axis.

  Those of torch's `interpolate(mode="bilinear")`.

  Args:
    size: number of pixels there are.
    new_size: number of pixels wanted.
    alignment: 'half_pixel' (`align_corners=False`): pixels are squares and the
      outer edges of both grids meet; beyond the middle of the outermost pixels
      their value is kept. 'corners' (`align_corners=True`): the middles of the
      outermost pixels meet, so all other pixels move; IF does this to the input
      of its super-resolution models.
  """
  if alignment == "corners":
    position = np.linspace(0.0, size - 1.0, new_size)
  else:
    position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    position = np.clip(position, 0.0, size - 1.0)
  distance = np.abs(position[:, None] - np.arange(size))
  return np.maximum(0.0, 1.0 - distance).astype(np.float32)


@struct.dataclass
class Crops:
  """A square of each clip, the same in all its frames.

  Attributes:
    corners: (b, 2) row and column of its first pixel.
    size: its side in pixels.
  """

  corners: Int[Array, "b 2"]
  size: int = struct.field(pytree_node=False)

  def cut(self, video: Array) -> Array:
    """Cuts the squares out of (b, t, h, w, c)."""
    _, t, _, _, c = video.shape
    shape = (t, self.size, self.size, c)
    one = lambda clip, corner: jax.lax.dynamic_slice(
      clip, (0, *corner, 0), shape
    )
    return jax.vmap(one)(video, self.corners)

  def rows_of(
    self, matrix: Float[np.ndarray, "n old"], axis: int
  ) -> Float[Array, "b size old"]:
    """The rows of a matrix that make the pixels of each square.

    Args:
      matrix: of `bilinear_matrix`, with a row for each pixel of whole frames.
      axis: 0: it makes rows of pixels; 1: columns.
    """
    one = lambda first: jax.lax.dynamic_slice_in_dim(matrix, first, self.size)
    return jax.vmap(one)(self.corners[:, axis])


def random_crops(
  keys: Keys, resolution: tuple[int, int], size: int, grid: int
) -> Crops | None:
  """Draws a random square of each clip.

  Args:
    keys: (b,) one for each clip.
    resolution: (height, width) of the clips in pixels.
    size: side of the squares; 0 is the whole frames, which gives None.
    grid: corners are multiples of this many pixels.
  """
  if not size:
    return None

  def corner(key: jax.Array) -> Int[Array, "2"]:
    offsets = [
      grid * jax.random.randint(k, (), 0, (n - size) // grid + 1)
      for k, n in zip(jax.random.split(key), resolution, strict=True)
    ]
    return jnp.stack(offsets)

  return Crops(corners=jax.vmap(corner)(keys), size=size)


def enlarge(
  low: Video,
  resolution: tuple[int, int],
  alignment: str,
  crops: Crops | None = None,
) -> Video:
  """Bilinear up-sampling of every frame.

  Crops are made alone, of the pixels of whole frames: they equal crops of the
  enlarged frames, at their borders too.

  Args:
    low: (b, t, h, w, c), whole frames.
    resolution: (height, width) that they are enlarged to.
    alignment: see `bilinear_matrix`.
    crops: squares of what they are enlarged to; None: all of it.

  Returns:
    (b, t, *resolution, c), or of crops (b, t, size, size, c).
  """
  rows, columns = (
    bilinear_matrix(n, new, alignment)
    for n, new in zip(low.shape[2:4], resolution, strict=True)
  )
  # Else accelerators round to bfloat16.
  einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  if crops is None:
    return einsum("bthwc,yh,xw->btyxc", low, rows, columns)
  rows, columns = crops.rows_of(rows, 0), crops.rows_of(columns, 1)
  return einsum("bthwc,byh,bxw->btyxc", low, rows, columns)


def low_resolution_frames(
  low: Video,
  resolution: tuple[int, int],
  alignment: str,
  schedule: Schedule,
  noise_level: PerSample,
  noise: Video,
  crops: Crops | None = None,
) -> Video:
  """Low-resolution video, enlarged and noised (Imagen, section 2.5).

  Args:
    low: (b, t, h, w, 3) in [-1, 1], whole frames.
    resolution: (height, width) of the high-resolution video.
    alignment: `UNetConfig.low_resolution`.
    schedule: gives noise levels their log-SNR.
    noise_level: (b,) schedule times in [0, 1]; 0 is no noise.
    noise: standard normal, of the shape that is returned.
    crops: see `enlarge`.

  Returns:
    (b, t, *resolution, 3), or of crops (b, t, size, size, 3).
  """
  video = enlarge(low, resolution, alignment, crops)
  return add_noise(video, noise, schedule.log_snr(noise_level))


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


def to_float(video: Array) -> Video:
  """uint8 in 0..255 -> float32 in [-1, 1]."""
  return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Video) -> Array:
  """[-1, 1], clipped -> uint8 in 0..255, rounded."""
  return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def add_low_resolution(
  config: StageConfig, cond: Cond, low: Video, keys: Keys, noise_level: float
) -> Cond:
  """Tells super-resolution the video of the stage before it, noised."""
  video = config.video
  level = jnp.full(low.shape[:1], noise_level)
  frames = _noised_low_resolution(
    jnp.clip(low, -1.0, 1.0),
    level,
    jax.vmap(jax.random.fold_in, (0, None))(keys, INITIAL),
    video.resolution,
    config.model.low_resolution,
    config.embedding_schedule,
  )
  return cond.replace(frames=frames, noise_level=level)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _noised_low_resolution(
  low: Video,
  level: PerSample,
  keys: Keys,
  size: tuple[int, int],
  alignment: str,
  schedule: Schedule,
) -> Video:
  noise = frame_noise(keys, INITIAL, low.shape[1], (*size, 3))
  return low_resolution_frames(low, size, alignment, schedule, level, noise)


def add_given(
  config: StageConfig, cond: Cond, frames: int, given: MaskedVideo | None
) -> Cond:
  """Tells a conditional model which pixels are given; None: text to video."""
  size = (len(cond.text), frames, *config.video.resolution)
  if given is None:
    video, mask = jnp.zeros((*size, 3)), jnp.zeros((*size, 1))
  else:
    parts = given.at(config.video.resolution)
    video, mask = (
      jnp.broadcast_to(part, (len(cond.text), *part.shape)) for part in parts
    )
  said = given_frames(video, mask)
  told = [said] if cond.frames is None else [cond.frames, said]
  return cond.replace(frames=jnp.concatenate(told, axis=-1))
