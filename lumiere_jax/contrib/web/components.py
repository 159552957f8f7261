"""Gradio's inputs, held to what this page was sent, and made by name."""

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
from lumiere_jax.contrib.web.labels import LABELS
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.uploads import VIDEOS, painted_mask
from lumiere_jax.diffusion.samplers import SAMPLERS
from lumiere_jax.errors import UserError
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import MOST

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
      return painted_mask(layers)
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


_HINTS = {
  "last_image": "may be empty",
  "composited": "leaves pixels that were given as they were",
  "times": "how often it is gone on with",
  "context": "frames that are gone on from",
  "box": "x0,y0,x1,y1 in pixels, in place of paint",
  "feather": "pixels over which the edge fades",
  "strength": "how much is made over",
  "alpha": "how much of the style; 0 is none, above 1 is beyond it",
  "negative_prompt": "what to steer away from",
  "oscillate_after": "steps; -1 is never",
  "num_frames": "0: as trained",
  "window": "frames seen at once; 0: as trained",
}


def make(name: str, pipeline: Pipeline, options: Options) -> Component:
  """The part of the page that a field is filled in by.

  Args:
    name: of the field.
    pipeline: that it is for.
    options: of the page.
  """
  label, hint = LABELS[name], _HINTS.get(name)
  makers: dict[str, Callable[[], Component]] = {
    "prompt": lambda: gr.Textbox(label=label, lines=2),
    "negative_prompt": lambda: gr.Textbox(label=label, info=hint),
    "image": lambda: _picture(label),
    "last_image": lambda: _picture(f"{label} ({hint})"),
    "video": lambda: Clip(label=label, sources=["upload"], height=260),
    "strokes": lambda: _strokes(label),
    "mask": lambda: File(
      label=f"{label} file: white is made anew",
      file_types=["image", *sorted(VIDEOS)],
      height=140,
    ),
    "box": lambda: gr.Textbox(label=label, info=hint),
    "composited": lambda: gr.Checkbox(True, label=label, info=hint),
    "sampler": lambda: gr.Dropdown(
      [AS_TRAINED, *SAMPLERS], value=AS_TRAINED, label=label
    ),
    "style": lambda: gr.Dropdown(
      [*options.styles], value=next(iter(options.styles), None), label=label
    ),
    "alpha": lambda: gr.Slider(0, MOST, 1.0, step=0.05, label=label, info=hint),
    "strength": lambda: gr.Slider(
      0.05, 1, 0.7, step=0.05, label=label, info=hint
    ),
    "seed": lambda: gr.Number(
      0, label=label, precision=0, minimum=0, maximum=SEEDS - 1
    ),
  }
  if name in makers:
    return makers[name]()
  number = _first(name, pipeline)
  if number is None:  # which Gradio's own part would show and send as 0
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
  pink = ("rgb(255, 60, 172)", 0.6)  # to be seen on any picture
  return Strokes(
    label=label,
    sources=(),
    transforms=(),
    layers=False,
    brush=gr.Brush(colors=[pink], default_color=pink, color_mode="fixed"),
    buttons=[],
    placeholder="Paint here, once there is a picture.",
  )


def _first(name: str, pipeline: Pipeline) -> float | None:
  """What a number is at first; None: empty, as trained."""
  frames = pipeline.frames({})
  first = {
    "times": 1,
    "context": max(1, min(16, frames // 2)),
    "width": 2 * pipeline.resolution()[1],
    "feather": 0,
    "guidance_from": 0.0,
    "guidance_to": 1.0,
    **dict.fromkeys(("left", "top", "right", "bottom"), 0),
  }
  return first.get(name, getattr(Settings, name, None))
