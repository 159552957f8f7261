"""Gradio components: one for each field, restricted to uploaded files."""

import abc
from collections.abc import Callable
import io
from pathlib import Path

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.components import Component
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData
from gradio.utils import is_in_or_equal
from jaxtyping import Bool
import numpy as np

from lumiere_jax.contrib.web.forms import AS_TRAINED, SEEDS
from lumiere_jax.contrib.web.labels import LABELS, words
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.tabs import EDGES
from lumiere_jax.contrib.web.uploads import VIDEOS, painted_mask
from lumiere_jax.errors import UserError
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import MOST
from lumiere_jax.inference.tasks import DEFAULTS, TASKS
from lumiere_jax.options import options_of

_MOST_STORED = 64  # Painted masks that were sent and not yet read.
_MOST_LAYERS = 8
_MOST_BYTES = 8_000_000  # Of a layer.


class _Quiet(ComponentMeta):
  """Makes classes without the .pyi file that Gradio's metaclass writes."""

  def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict):
    return abc.ABCMeta.__new__(cls, name, bases, attrs)


class _Uploaded:
  """Accepts only files in the upload folder."""

  def get_block_name(self) -> str:
    """The name of the frontend component: that of Gradio's own class."""
    return type(self).__bases__[-1].__name__.lower()

  get_block_class = get_block_name

  async def async_move_resource_to_block_cache(self, url_or_file_path):
    """Called by Gradio for each file that a request names."""
    return self.move_resource_to_block_cache(url_or_file_path)

  def move_resource_to_block_cache(self, url_or_file_path):
    """The file itself, if it is in the upload folder; else a `gr.Error`."""
    if url_or_file_path is None:
      return None
    path = Path(str(url_or_file_path)).resolve()
    if not is_in_or_equal(path, self.GRADIO_CACHE) or not path.is_file():
      raise gr.Error("This is not an uploaded file", print_exception=False)
    self.temp_files.add(str(path))
    return str(path)


class _AsUploaded(_Uploaded):
  """Passes on the path of the upload without opening it."""

  def preprocess(self, payload) -> str | None:
    """The path; other data in the request is ignored."""
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
  """Paint on a picture, as a mask (h, w) of the canvas's size."""

  def preprocess(
    self, payload: EditorData | None
  ) -> Bool[np.ndarray, "h w"] | None:
    """Reads the painted layers only; the picture is an input of its own."""
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
      return painted_mask(layers)
    except UserError as error:
      raise gr.Error(words(error), print_exception=False) from error

  @server
  def accept_blobs(self, data: AcceptBlobs):
    """Stores a layer that was sent, for `preprocess` to read."""
    number = str(data.data["index"] or 0)
    many = number.isdigit() and int(number) >= _MOST_LAYERS
    if many or any(len(content) > _MOST_BYTES for _, content in data.files):
      raise gr.Error("The painted mask is too large", print_exception=False)
    while len(self.blob_storage) >= _MOST_STORED:
      self.blob_storage.pop(next(iter(self.blob_storage)))
    return super().accept_blobs(data)


_HINTS = {
  "composited": "leaves given pixels as they were",
  "alpha": "how much of the style; 0 is none, above 1 exaggerates it",
  "negative_prompt": "what to steer away from",
}
"""Hints of fields that are no options of tasks or settings."""


def make(name: str, pipeline: Pipeline, options: Options) -> Component:
  """The Gradio component of a field."""
  info = options_of(*TASKS.values(), Settings).get(name)
  label, hint = LABELS[name], (info and info.hint) or _HINTS.get(name)
  makers: dict[str, Callable[[], Component]] = {
    "prompt": lambda: gr.Textbox(label=label, lines=2),
    "negative_prompt": lambda: gr.Textbox(label=label, info=hint),
    "image": lambda: _picture(label),
    "last_image": lambda: _picture(f"{label} ({hint})"),
    "video": lambda: Clip(label=label, sources=["upload"], height=260),
    "strokes": lambda: _strokes(label),
    "mask": lambda: File(
      label=f"{label} file: white is generated",
      file_types=["image", *sorted(VIDEOS)],
      height=140,
    ),
    "box": lambda: gr.Textbox(label=label, info=hint),
    "composited": lambda: gr.Checkbox(True, label=label, info=hint),
    "style": lambda: gr.Dropdown(
      [*options.styles], value=next(iter(options.styles), None), label=label
    ),
    "alpha": lambda: gr.Slider(0, MOST, 1.0, step=0.05, label=label, info=hint),
    "strength": lambda: gr.Slider(
      0.05, 1.0, DEFAULTS["strength"], step=0.05, label=label, info=hint
    ),
    "seed": lambda: gr.Number(
      0, label=label, precision=0, minimum=0, maximum=SEEDS - 1
    ),
  }
  if name in makers:
    return makers[name]()
  if info and info.choices:
    return gr.Dropdown(
      [AS_TRAINED, *info.choices], value=AS_TRAINED, label=label
    )
  number = _initial(name, pipeline)
  if number is None:  # gr.Number would show and send it as 0
    return gr.Textbox(
      label=label, info=hint, placeholder=AS_TRAINED, min_width=90
    )
  return gr.Number(number, label=label, info=hint, min_width=90)


def _picture(label: str) -> Picture:
  return Picture(
    label=label,
    sources=["upload", "clipboard"],
    type="filepath",
    height=260,
    buttons=[],
  )


def _strokes(label: str) -> Strokes:
  pink = ("rgb(255, 60, 172)", 0.6)  # visible on any picture
  return Strokes(
    label=label,
    sources=(),
    transforms=(),
    layers=False,
    brush=gr.Brush(colors=[pink], default_color=pink, color_mode="fixed"),
    buttons=[],
    placeholder="Paint here, on the first frame, once there is one.",
  )


def _initial(name: str, pipeline: Pipeline) -> float | None:
  """The value that a number starts with; None: empty, as trained."""
  special = {
    "context": max(1, min(DEFAULTS["context"], pipeline.frames({}) // 2)),
    "width": 2 * pipeline.resolution()[1],
    "guidance_from": Settings.guidance_interval[0],
    "guidance_to": Settings.guidance_interval[1],
    **dict.fromkeys(EDGES, 0),
  }
  if name in special:
    return special[name]
  return DEFAULTS.get(name, getattr(Settings, name, None))
