"""Names of options on the page, and messages in these names."""

from pathlib import Path
import re

from lumiere_jax.errors import UserError, VideoError, format_message
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.tasks import TASKS
from lumiere_jax.options import label_of, options_of

_ON_PAGE = (
  *("prompt", "negative_prompt", "seed", "style", "alpha"),
  *("left", "top", "right", "bottom", "guidance_from", "guidance_to"),
)
"""Fields that are neither inputs of tasks nor settings."""


LABELS = {
  **{
    name: label_of(name, info)
    for name, info in options_of(*TASKS.values(), Settings).items()
  },
  **{name: label_of(name) for name in _ON_PAGE},
  "strokes": "Painted mask",
  "composited": "Put given pixels back",
  "model": "the model",
}
"""Option or field -> its name on the page."""


STAGES = {"base": "Base", "ssr": "Super-resolution"}


def words(error: UserError | str) -> str:
  """An error or a notice in the page's names, without paths of the server."""
  if isinstance(error, VideoError):
    return f"{LABELS.get(Path(error.path).stem, 'File')}: {error.reason}"

  def label(name: str) -> str:
    return LABELS.get(name, name)

  if isinstance(error, UserError):
    text = error.format(label)
  else:
    text = format_message(error, label)
  text = re.sub(r"\btask=(\w+)", lambda m: f'"{m[1].replace("_", " ")}"', text)
  return text[:1].upper() + text[1:]
