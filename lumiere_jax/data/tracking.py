"""Finds coloured objects before a plain background and follows them in time.

Made for `reader`, which says what the tracks mean.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from lumiere_jax.data.scenes import COLOURS

Array = np.ndarray
_SIDE = 64  # Larger videos are averaged down to about this shorter side.
_CONTRAST = 28.0  # Least RGB distance of an object's pixel from the background.
_ALWAYS = 0.2  # An object shows in this fraction of the frames, or more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
  """One object over time.

  Attributes:
    colour: the key of `COLOURS` that it looks most like.
    frame, px, py: (n,) int, where its pixels are.
    weight: (n,) how much it covers of each, in [0, 1].
    x, y: (t,) its middle in pixels, NaN where it is not there.
    area: (t,) in pixels.
    seen: (t,) whether it is there.
    whole: (t,) whether it is there and clear of the frame's edges.
    size: (height, width) of the frame in pixels.
  """

  colour: str
  frame: Array
  px: Array
  py: Array
  weight: Array
  x: Array
  y: Array
  area: Array
  seen: Array
  whole: Array
  size: tuple[int, int]


def shrink(video: Array) -> Array:
  """Averages blocks of pixels of a (t, h, w, 3) video; float32."""
  _, height, width, _ = video.shape
  block = max(1, min(height, width) // _SIDE)
  h, w = height // block, width // block
  kept = video[:, : h * block, : w * block]
  blocks = kept.reshape(-1, h, block, w, block, 3)
  return blocks.mean((2, 4), dtype=np.float32)


def background_colour(video: Array) -> Array:
  """The median colour (3,) along the frame's edges."""
  rows, columns = video[:, [0, -1]], video[:, :, [0, -1]]
  edges = [rows.reshape(-1, 3), columns.reshape(-1, 3)]
  return np.median(np.concatenate(edges), 0)


def find_tracks(video: Array, background: Array) -> list[Track]:
  """Names each connected patch by colour and joins those of one name.

  Args:
    video: (t, h, w, 3) float, in [0, 255].
    background: (3,) its background colour.

  Returns:
    One track for each colour that shows long and large enough to be an object.
  """
  difference = video - background
  contrast = np.linalg.norm(difference, axis=3)
  # Most pixels are background, so the median tells how noisy that is.
  foreground = contrast > max(_CONTRAST, 3 * np.median(contrast))
  within_frames = np.zeros((3, 3, 3), bool)
  within_frames[1] = True
  labels, count = ndimage.label(foreground, within_frames)
  frame, py, px = np.nonzero(foreground)
  patch = labels[foreground] - 1
  cover, miss = _fit_colours(difference[foreground], background)
  total = lambda values: np.bincount(patch, values, count)
  names = np.argmin([total(m) for m in miss], axis=0)
  tracks = []
  for k, colour in enumerate(COLOURS):
    area = np.where(names == k, total(cover[k]), 0)
    mine = _main_patches(area, patch, frame)[patch]
    if mine.any():
      where = (v[mine] for v in (frame, px, py, cover[k]))
      tracks.append(_track(colour, *where, video.shape))
  return _notable(tracks)


def _fit_colours(pixels: Array, background: Array) -> tuple[Array, Array]:
  """Explains each pixel as a partial cover of the background by each colour.

  A pixel that is partly covered lies on the line from the background to the
  colour, so that the soft edges of a shape name the same colour as its inside.

  Args:
    pixels: (n, 3) less the background.

  Returns:
    Cover in [0, 1] and squared miss, each (colours, n).
  """
  rays = np.array(list(COLOURS.values())) - background
  along, lengths = rays @ pixels.T, (rays**2).sum(1, keepdims=True)
  cover = np.clip(along / lengths, 0, 1)
  squares = (pixels**2).sum(1)
  return cover, squares - 2 * cover * along + cover**2 * lengths


def _main_patches(area: Array, patch: Array, frame: Array) -> Array:
  """Patches that are no mere crumbs beside the largest of their frame."""
  when = np.zeros(len(area), int)
  when[patch] = frame
  largest = np.zeros(frame.max(initial=0) + 1)
  np.maximum.at(largest, when, area)
  return (area >= 1) & (area >= 0.25 * largest[when])


def _track(
  colour: str,
  frame: Array,
  px: Array,
  py: Array,
  weight: Array,
  shape: tuple[int, ...],
) -> Track:
  """Measures the object of these pixels (n,) in a video of this shape."""
  length, height, width, _ = shape
  # Full cover is what the best pixels show: drawn colours may be paler.
  weight = np.minimum(weight / max(np.percentile(weight, 90), 0.5), 1)
  total = lambda values: np.bincount(frame, values, length)
  area = total(weight)
  seen = area > 0.08 * np.percentile(area[area > 0], 90)
  at_edge = (px == 0) | (px == width - 1) | (py == 0) | (py == height - 1)
  mean = lambda v: np.divide(
    total(weight * (v + 0.5)), area, np.full(length, np.nan), where=area > 0
  )
  return Track(
    colour=colour,
    frame=frame,
    px=px,
    py=py,
    weight=weight,
    x=mean(px),
    y=mean(py),
    area=area,
    seen=seen,
    whole=seen & (total(weight * at_edge) < 0.5),
    size=(height, width),
  )


def _notable(tracks: list[Track]) -> list[Track]:
  """Leaves out what shows too rarely, or too small, to be an object."""
  sizes = [np.percentile(t.area[t.seen], 90) for t in tracks]
  return [
    track
    for track, size in zip(tracks, sizes, strict=True)
    if track.seen.mean() >= _ALWAYS and size >= 0.08 * max(sizes)
  ]
