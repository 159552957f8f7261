"""Names of what can be asked for, and messages in these names."""

from pathlib import Path
import re

from lumiere_jax.errors import UserError, VideoError, format_message

LABELS = {
  "prompt": "Prompt",
  "image": "Picture",
  "last_image": "Last picture",
  "video": "Video",
  "strokes": "Painted mask",
  "mask": "Mask",
  "box": "Box",
  "expand": "Edges",
  "left": "Left",
  "top": "Top",
  "right": "Right",
  "bottom": "Bottom",
  "feather": "Feather",
  "strength": "Strength",
  "times": "Times",
  "context": "Context",
  "width": "Width",
  "composited": "Put given pixels back",
  "style": "Style",
  "alpha": "Alpha",
  "negative_prompt": "Negative prompt",
  "seed": "Seed",
  "steps": "Steps",
  "ssr_steps": "Steps of super-resolution",
  "sampler": "Sampler",
  "guidance_scale": "Guidance",
  "ssr_guidance_scale": "Guidance of super-resolution",
  "guidance_rescale": "Guidance rescale",
  "guidance_from": "Guidance from",
  "guidance_to": "Guidance to",
  "guidance_interval": "Guidance from, to",
  "oscillate_after": "Oscillate after",
  "oscillate_low": "Oscillate low",
  "num_frames": "Frames",
  "window": "Window",
  "overlap": "Overlap",
  "tile_overlap": "Tile overlap",
  "noise_level": "Noise level",
  "percentile": "Percentile",
  "max_value": "Largest value",
  "size": "Size",
  "model": "the model",
}
"""Option -> how the page calls it."""


STAGES = {"base": "Base", "ssr": "Super-resolution"}


def words(error: UserError | str) -> str:
  """What was wrong, as the page calls things; no path of the server in it.

  Args:
    error: of this package, or a notice.
  """
  if isinstance(error, VideoError):
    return f"{LABELS.get(Path(error.path).stem, 'File')}: {error.reason}"
  label = lambda name: LABELS.get(name, name)
  text = (
    format_message(error, label)
    if isinstance(error, str)
    else error.format(label)
  )
  text = re.sub(r"\btask=(\w+)", lambda m: f'"{m[1].replace("_", " ")}"', text)
  return text[:1].upper() + text[1:]
