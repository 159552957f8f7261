"""Array types, and `Cond`, the conditioning of a network.

It imports no other room, so that every room can use it.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from beartype import beartype
from flax import struct
import jax
from jaxtyping import Array, Bool, Float, UInt8, jaxtyped
import numpy as np

Video = Float[Array, "b t h w c"]
Clip = UInt8[np.ndarray, "t h w 3"]
PerSample = Float[Array, "b"]

Params = dict[str, Any]
"""A nested tree of parameters, as Flax linen makes it."""

FlatParams = dict[str, Any]
"""The same leaves in one flat dict, keyed by 'path/of/modules/leaf'."""

typechecked = jaxtyped(typechecker=beartype)
"""Decorator: checks shapes and types of arguments when a function is called."""


@struct.dataclass
class Cond:
  """Everything that a network is conditioned on.

  Attributes:
    text: (b, l, e) float, the text encoder's output.
    text_mask: (b, l) bool, True where a token is real; None: all are (as IF).
    frames: (b, t, h, w, c) float, conditioning pixels in [-1, 1]: the
      up-sampled low-resolution video (c=3) of a super-resolution model, then
      the masked video (3) and the mask (1; 1 = given) of a conditional one.
    noise_level: (b,) float in [0, 1], the schedule time of the noise added to
      the low-resolution video (Imagen's aug_level; super-resolution only).
  """

  text: Float[Array, "b l e"]
  text_mask: Bool[Array, "b l"] | None = None
  frames: Video | None = None
  noise_level: PerSample | None = None

  def map_frames(self, fn: Callable[[Array], Array]) -> "Cond":
    """Applies `fn` to the leaves that have a time axis (axis 1)."""
    return dataclasses.replace(self, frames=jax.tree.map(fn, self.frames))


Mask = Bool[np.ndarray, "t h w"]
"""True (or 1) = given, False (or 0) = to be generated; everywhere."""
