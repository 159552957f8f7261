"""Builds a stage's non-text conditioning: low resolution and masked video."""

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
  """The masked video of a conditional model (Lumiere, section 4.2).

  Attributes:
    video: (t, h, w, 3) at the resolution of the final video; pixels that are
      not given are ignored, except for feathered edges.
    mask: (t, h, w) True for given pixels.
  """

  video: Clip
  mask: Bool[np.ndarray, "t h w"]

  def at(
    self, resolution: tuple[int, int]
  ) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w 1"]]:
    """Video in [-1, 1] and mask at the lower resolution of a stage.

    Pixels are averaged; the mean is given if all of its pixels are.
    """
    i, j = (
      size // new_size
      for size, new_size in zip(self.mask.shape[1:], resolution, strict=True)
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
  """Area down-sampling: means of factor x factor pixels."""
  return einops.reduce(
    video, "b t (h i) (w j) c -> b t h w c", "mean", i=factor, j=factor
  )


def bilinear_matrix(
  size: int, new_size: int, alignment: str
) -> Float[np.ndarray, "new old"]:
  """Linear interpolation along one axis, as in torch's `interpolate`.

  Alignment 'half_pixel' (`align_corners=False`): the outer edges of both grids
  are aligned, and outermost values are repeated beyond pixel centres. 'corners'
  (`align_corners=True`): the centres of the outermost pixels are aligned; IF
  does this in super-resolution.
  """
  if alignment == "corners":
    position = np.linspace(0.0, size - 1.0, new_size)
  else:
    centres = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    position = np.clip(centres, 0.0, size - 1.0)
  distance = np.abs(position[:, None] - np.arange(size))
  return np.maximum(0.0, 1.0 - distance).astype(np.float32)


@struct.dataclass
class Crops:
  """A square crop of each clip, the same in all frames.

  Attributes:
    corners: (b, 2) row and column of the first pixel.
    size: side in pixels.
  """

  corners: Int[Array, "b 2"]
  size: int = struct.field(pytree_node=False)

  def cut(self, video: Array) -> Array:
    """Crops a video (b, t, h, w, c)."""
    _, t, _, _, c = video.shape
    shape = (t, self.size, self.size, c)
    one = lambda clip, corner: jax.lax.dynamic_slice(
      clip, (0, *corner, 0), shape
    )
    return jax.vmap(one)(video, self.corners)

  def rows_of(
    self, matrix: Float[np.ndarray, "n old"], axis: int
  ) -> Float[Array, "b size old"]:
    """The rows of a `bilinear_matrix` for the pixels of each crop.

    The matrix has a row for each image row (axis 0) or column (axis 1).
    """
    one = lambda first: jax.lax.dynamic_slice_in_dim(matrix, first, self.size)
    return jax.vmap(one)(self.corners[:, axis])


def random_crops(
  keys: Keys, resolution: tuple[int, int], size: int, grid: int
) -> Crops | None:
  """Draws a random crop of each clip; size 0, whole frames, gives None.

  Corners are multiples of `grid` pixels. `resolution` is (height, width).
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
  """Bilinear up-sampling of whole frames: (b, t, *resolution, c).

  With crops (b, t, size, size, c) of the result, which equal those of whole
  up-sampled frames, also at their borders. See `bilinear_matrix`.
  """
  rows, columns = (
    bilinear_matrix(n, new, alignment)
    for n, new in zip(low.shape[2:4], resolution, strict=True)
  )
  # Accelerators would otherwise round to bfloat16.
  einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  if crops is None:
    return einsum("bthwc,yh,xw->btyxc", low, rows, columns)
  return einsum(
    "bthwc,byh,bxw->btyxc",
    low,
    crops.rows_of(rows, 0),
    crops.rows_of(columns, 1),
  )


def low_resolution_frames(
  low: Video,
  resolution: tuple[int, int],
  alignment: str,
  schedule: Schedule,
  noise_level: PerSample,
  noise: Video,
  crops: Crops | None = None,
) -> Video:
  """Low-resolution video, up-sampled and noised (Imagen, section 2.5).

  Args:
    low: (b, t, h, w, 3) in [-1, 1], whole frames.
    resolution: (height, width) of the high-resolution video.
    alignment: `UNetConfig.low_resolution`.
    schedule: gives the log-SNR of noise levels.
    noise_level: (b,) schedule times in [0, 1]; 0 is no noise.
    noise: standard normal, of the shape of the result.
    crops: of the result; see `enlarge`.
  """
  video = enlarge(low, resolution, alignment, crops)
  return add_noise(video, noise, schedule.log_snr(noise_level))


def masked_frames(video: Video, mask: Video) -> Video:
  """Masked video and mask for `Cond.frames`: (b, t, h, w, 4).

  The conditioning of Lumiere, section 4.2. The mask (b, t, h, w, 1) is 1 for
  given pixels; others are 0 in mask and video.
  """
  return jnp.concatenate([video * mask, mask], axis=-1)


def noise_like(video: Video, keys: Keys) -> Video:
  """Standard normal noise, with one key per sample."""
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
  """Adds the video of the previous stage, up-sampled and noised."""
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
  return dataclasses.replace(cond, frames=frames, noise_level=level)


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


def add_masked_video(
  config: StageConfig, cond: Cond, frames: int, given: MaskedVideo | None
) -> Cond:
  """Adds the masked video and its mask; None: nothing is given."""
  clips, resolution = len(cond.text), config.video.resolution
  if given is None:
    added = jnp.zeros((clips, frames, *resolution, 4))
  else:
    parts = (jnp.asarray(part)[None] for part in given.at(resolution))
    added = jnp.repeat(masked_frames(*parts), clips, axis=0)
  if cond.frames is not None:
    added = jnp.concatenate([cond.frames, added], axis=-1)
  return dataclasses.replace(cond, frames=added)
