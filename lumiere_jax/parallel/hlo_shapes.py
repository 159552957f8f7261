"""Arrays of compiled programs: what they weigh as they are laid out."""

import dataclasses
import math
import re

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T((?:\([\d,*]+\))+)")
_BITS = re.compile(r"^[a-z]+(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """One array as it lies in memory.

  Attributes:
    dtype: as HLO names it: bf16, f32, s32, pred.
    dims: its size, outermost first.
    layout: what stood in braces, e.g. "3,2,1,0:T(8,128)(2,1)S(1)".
  """

  dtype: str
  dims: tuple[int, ...]
  layout: str = ""

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.dims))}]"

  @property
  def size(self) -> int:
    """Elements, without padding."""
    return math.prod(self.dims)

  @property
  def data_bytes(self) -> int:
    """Bytes of its elements, without padding."""
    return -(-self.size * self._bits // 8)

  @property
  def bytes(self) -> int:
    """Bytes as it is laid out: whole tiles."""
    return -(-math.prod(self._laid_out()) * self._bits // 8)

  @property
  def in_hbm(self) -> bool:
    """Whether it lies in the main memory, not on the chip or the host."""
    return "S(" not in self.layout

  @property
  def _bits(self) -> int:
    if self.dtype in ("pred", "token", "opaque"):
      return 8 * (self.dtype == "pred")
    found = _BITS.match(self.dtype)
    return int(found[1]) if found else 8

  def _laid_out(self) -> tuple[int, ...]:
    """Sizes with each tile whole, outermost of memory first."""
    found = _TILE.search(self.layout)
    if not found or "*" in found[1]:
      return self.dims
    order, _, _ = self.layout.partition(":")
    minor_first = [int(axis) for axis in order.split(",") if axis]
    dims = [self.dims[axis] for axis in reversed(minor_first)]
    for tile in re.findall(r"\(([\d,]+)\)", found[1]):
      sizes = [int(size) for size in tile.split(",")]
      dims = [1] * (len(sizes) - len(dims)) + dims
      outer = dims[: len(dims) - len(sizes)]
      inner = dims[len(dims) - len(sizes) :]
      # The next tile divides this one further.
      pairs = zip(inner, sizes, strict=True)
      dims = [*outer, *(-(-dim // size) for dim, size in pairs), *sizes]
    return tuple(dims)


def shapes_in(text: str) -> tuple[Shape, ...]:
  """The arrays of a type; those of a tuple in order."""
  return tuple(
    Shape(
      dtype=dtype,
      dims=tuple(int(d.lstrip("<= ")) for d in dims.split(",") if d.strip()),
      layout=layout or "",
    )
    for dtype, dims, layout in _SHAPE.findall(text)
  )
