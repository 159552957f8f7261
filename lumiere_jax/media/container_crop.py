"""Reads the cropping that mp4, mov, mkv and webm files state.

FFmpeg knows it too, but PyAV does not expose it.
"""

from collections.abc import Callable, Iterator
import operator
import struct
from typing import BinaryIO

from lumiere_jax.media.input_file import InMemoryFile

Crop = tuple[int, int, int, int]
"""Pixels cut from the left, top, right and bottom."""

NO_CROP: Crop = (0, 0, 0, 0)

_Node = tuple[bytes, int, int]  # its kind, and where its content starts, ends
_Nodes = Callable[[BinaryIO, int, int], Iterator[_Node]]

# Matroska's element IDs.
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_TRACKS, _TRACK, _VIDEO = b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
_PIXEL_CROPS = b"\x54\xcc", b"\x54\xbb", b"\x54\xdd", b"\x54\xaa"


def container_crops(path, format_name: str) -> list[Crop]:
  """The crop of each video track, in their order in the file."""
  formats = {"mov": _mov_crops, "matroska": _matroska_crops}
  read = formats.get(format_name.split(",")[0])
  if read is None:
    return []
  in_memory = isinstance(path, InMemoryFile)
  with path.open() if in_memory else open(path, "rb") as file:
    return list(read(file, file.seek(0, 2)))


def _mov_crops(file: BinaryIO, end: int) -> Iterator[Crop]:
  for media in _find(_boxes, file, (0, end), b"moov", b"trak", b"mdia"):
    handlers = [_read(file, *h) for h in _find(_boxes, file, media, b"hdlr")]
    if not handlers or handlers[0][8:12] != b"vide":
      continue
    crop = NO_CROP
    for start, stop in _find(_boxes, file, media, b"minf", b"stbl", b"stsd"):
      _, entry, stop = next(_boxes(file, start + 8, stop), (b"", stop, stop))
      size = _read(file, entry + 24, stop)[:4]
      for aperture in _find(_boxes, file, (entry + 78, stop), b"clap"):
        crop = _clean_aperture(_read(file, *aperture), size)
    yield crop


def _clean_aperture(content: bytes, size: bytes) -> Crop:
  """The crop that a `clap` box (ISO/IEC 14496-12) makes of (width, height)."""
  numbers = struct.unpack(">IIIIiIiI", content[:32].ljust(32, b"\0"))
  if not all(numbers[1::2]):
    return NO_CROP
  width, height, right, down = map(
    operator.truediv, numbers[::2], numbers[1::2]
  )
  stored = struct.unpack(">HH", size.ljust(4, b"\0"))
  left = round((stored[0] - width) / 2 + right)
  top = round((stored[1] - height) / 2 + down)
  after = stored[0] - round(width) - left, stored[1] - round(height) - top
  return (left, top, *after) if min(left, top, *after) >= 0 else NO_CROP


def _matroska_crops(file: BinaryIO, end: int) -> Iterator[Crop]:
  tracks = _find(_elements, file, (0, end), _SEGMENT, _TRACKS, _TRACK)
  for track in tracks:
    for video in _find(_elements, file, track, _VIDEO):
      found = dict.fromkeys(_PIXEL_CROPS, 0)
      for kind, *span in _elements(file, *video):
        if kind in found:
          found[kind] = int.from_bytes(_read(file, *span))
      left, top, right, bottom = found.values()
      yield left, top, right, bottom


def _find(
  nodes: _Nodes, file: BinaryIO, span: tuple[int, int], *path: bytes
) -> Iterator[tuple[int, int]]:
  """Where the contents of all nodes of these kinds, each in the last, are."""
  for kind, start, end in nodes(file, *span):
    if kind == path[0]:
      inner, rest = (start, end), path[1:]
      yield from _find(nodes, file, inner, *rest) if rest else [inner]


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Node]:
  """The boxes of mp4 and mov files: size, kind, content."""
  while start + 8 <= end:
    size, kind, large = struct.unpack(
      ">I4sQ", _read(file, start, start + 16).ljust(16, b"\0")
    )
    content = start + 8
    if size == 1:
      size, content = large, start + 16
    start = min(end, start + size) if size else end
    if start < content:
      return
    yield kind, content, start


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[_Node]:
  """The elements of Matroska files, up to the first cluster."""
  while start < end:
    head = _read(file, start, start + 12).ljust(12, b"\0")
    # Leading zero bits give the lengths of the kind and of the size.
    at = 9 - head[0].bit_length()
    length = 9 - head[at].bit_length()
    kind = head[:at]
    if max(at, length) > 8 or kind == _CLUSTER:
      return
    unknown = 2 ** (7 * length) - 1
    size = int.from_bytes(head[at : at + length]) & unknown
    content = start + at + length
    start = end if size == unknown else min(end, content + size)
    yield kind, content, start


def _read(file: BinaryIO, start: int, end: int) -> bytes:
  """At most 64 bytes: all that is asked of any node."""
  file.seek(start)
  return file.read(max(0, min(end - start, 64)))
