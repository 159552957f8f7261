"""Files in memory, to give where a path is asked for."""

import dataclasses
import io


@dataclasses.dataclass(frozen=True)
class Blob:
  """A video or picture in memory.

  Attributes:
    name: what errors call it.
    data: the bytes of the file.
  """

  name: str
  data: bytes = dataclasses.field(repr=False)

  def __str__(self) -> str:
    return self.name

  def open(self) -> io.BytesIO:
    """The file, opened."""
    return io.BytesIO(self.data)
