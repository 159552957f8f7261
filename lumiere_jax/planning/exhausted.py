"""What the TPU compiler says when a program needs more memory than there is."""

import dataclasses
import re

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([\d.]+)([KMGT]?)B?"
_FORMS = (
  rf"HLO temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)",
  rf"Used {_AMOUNT} of {_AMOUNT} hbm",
)
_ALLOCATION = re.compile(
  rf"\d+\. Size: {_AMOUNT}\n(?:\s+Operator: (.*)\n)?\s+Shape: (\S+)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
  """An array that the compiler named.

  Attributes:
    bytes: as laid out.
    shape: with its layout.
    op_name: where in the traced program it comes from.
  """

  bytes: int
  shape: str
  op_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhausted:
  """A program that does not fit.

  Attributes:
    needed, limit: bytes of a chip's memory.
    largest: arrays that it named: none, if it gave up at once.
  """

  needed: int
  limit: int
  largest: tuple[Allocation, ...]


def read_exhausted(message: str) -> Exhausted | None:
  """The figures in an error; None: it is about something else."""
  for form in _FORMS:
    if found := re.search(form, message):
      needed, needed_unit, limit, limit_unit = found.groups()
      return Exhausted(
        needed=_bytes(needed, needed_unit),
        limit=_bytes(limit, limit_unit),
        largest=tuple(map(_allocation, _ALLOCATION.finditer(message))),
      )
  return None


def _allocation(found: re.Match) -> Allocation:
  amount, unit, operator, shape = found.groups()
  name = re.search(r'op_name="([^"]*)"', operator or "")
  return Allocation(
    bytes=_bytes(amount, unit), shape=shape, op_name=name[1] if name else ""
  )


def _bytes(amount: str, unit: str) -> int:
  return int(float(amount) * _UNITS[unit])
