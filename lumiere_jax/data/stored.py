"""A source of videos that are no files: in shards, in data sets."""

from collections.abc import Sequence

from lumiere_jax.data.files import FilesSource
from lumiere_jax.data.report import Report
from lumiere_jax.data.source import ClipSpec
from lumiere_jax.data.video import Video
from lumiere_jax.io.folder import Folder


class StoredSource(FilesSource):
  """Clips of videos that know themselves where their pixels are.

  Their `cut` is given their name for a path.
  """

  def __init__(
    self, specs: Sequence[ClipSpec], videos: Sequence[Video], report: Report
  ):
    """Takes videos of some kind of their own."""
    super().__init__(Folder(""), specs, videos, report)

  def local_path(self, index: int) -> str:
    """The name of video `index`, which is in no file."""
    return self.videos[index].file

  def split(
    self, fraction: float = 0.1
  ) -> tuple["StoredSource", "StoredSource"]:
    """As for files: by a hash of their names, all parts of one together."""
    train, held_out = (
      StoredSource(self.specs, part.videos, self._report)
      for part in super().split(fraction)
    )
    return train, held_out
