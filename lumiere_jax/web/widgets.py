"""Gradio's inputs for files, held to what this page was sent.

Gradio would also fetch an http address given in place of an upload, and it
decodes pictures before anything can measure them. These do neither.
"""

import abc
import io
from pathlib import Path

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData
from gradio.utils import is_in_or_equal
from jaxtyping import Bool
import numpy as np

from lumiere_jax.typing import UserError
from lumiere_jax.web.canvas import painted

_MOST_STORED = 64  # Masks that were sent and not asked for yet.
_MOST_LAYERS = 8
_MOST_BYTES = 8_000_000  # Of a layer.


class _Quiet(ComponentMeta):
  """Makes classes, and no .pyi file beside this module, as Gradio's does."""

  def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict):
    return abc.ABCMeta.__new__(cls, name, bases, attrs)


class _Uploaded:
  """Takes files of the upload folder alone."""

  def get_block_name(self) -> str:
    """Of the part of the page that shows it: that of Gradio's own class."""
    return type(self).__bases__[-1].__name__.lower()

  get_block_class = get_block_name

  async def async_move_resource_to_block_cache(self, url_or_file_path):
    """Gradio calls it for each file that a request names."""
    return self.move_resource_to_block_cache(url_or_file_path)

  def move_resource_to_block_cache(self, url_or_file_path):
    """The file itself, if it is in the upload folder.

    Raises:
      Error: it is not.
    """
    if url_or_file_path is None:
      return None
    path = Path(str(url_or_file_path)).resolve()
    if not is_in_or_equal(path, self.GRADIO_CACHE) or not path.is_file():
      raise gr.Error("This is no uploaded file", print_exception=False)
    self.temp_files.add(str(path))
    return str(path)


class _AsUploaded(_Uploaded):
  """Hands on the path of the upload, unopened."""

  def preprocess(self, payload) -> str | None:
    """The path; what is in the request itself is not looked at."""
    if payload is None:
      return None
    return self.move_resource_to_block_cache(payload.path)


class Picture(_AsUploaded, gr.Image, metaclass=_Quiet):
  """A picture, as its path."""


class Clip(_AsUploaded, gr.Video, metaclass=_Quiet):
  """A video, as its path."""


class File(_AsUploaded, gr.File, metaclass=_Quiet):
  """Any file, as its path."""


class Strokes(_Uploaded, gr.ImageEditor, metaclass=_Quiet):
  """Paint on a picture, as a mask (h, w) of the size of the canvas."""

  def preprocess(
    self, payload: EditorData | None
  ) -> Bool[np.ndarray, "h w"] | None:
    """Looks at the paint alone; the picture is known from elsewhere."""
    if payload is None:
      return None
    if payload.id is None:
      layers = [
        self.move_resource_to_block_cache(x.path) for x in payload.layers
      ]
    else:
      stored = self.blob_storage.pop(payload.id, None)
      layers = [io.BytesIO(x) for x in (stored.layers if stored else []) if x]
    try:
      return painted(layers)
    except UserError as error:
      raise gr.Error(str(error), print_exception=False) from error

  @server
  def accept_blobs(self, data: AcceptBlobs):
    """Stores a layer that was sent, for `preprocess` to fetch."""
    number = str(data.data["index"] or 0)
    many = number.isdigit() and int(number) >= _MOST_LAYERS
    if many or any(len(content) > _MOST_BYTES for _, content in data.files):
      raise gr.Error("The painted mask is too large", print_exception=False)
    while len(self.blob_storage) >= _MOST_STORED:
      self.blob_storage.pop(next(iter(self.blob_storage)))
    return super().accept_blobs(data)
