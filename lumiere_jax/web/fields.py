"""What there is to fill in, as parts of the page."""

from collections.abc import Callable

import gradio as gr
from gradio.components import Component

from lumiere_jax.diffusion.rules import SAMPLERS
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings
from lumiere_jax.pipelines.styles import MOST
from lumiere_jax.web.forms import AS_TRAINED, SEEDS
from lumiere_jax.web.options import Options
from lumiere_jax.web.uploads import VIDEOS
from lumiere_jax.web.widgets import Clip, File, Picture, Strokes
from lumiere_jax.web.words import LABELS

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
