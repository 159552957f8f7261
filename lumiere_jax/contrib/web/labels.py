"""Names of options on the page, and messages in these names."""

from collections.abc import Collection, Mapping
from pathlib import Path
import re
from types import MappingProxyType

from lumiere_jax.errors import UserError, format_message
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


UPLOADED = ("image", "last_image", "video", "mask")
"""Fields that files are uploaded for."""

STAGES = {"base": "Base", "ssr": "Super-resolution"}


_PATH = re.compile(r"(=?)(?<![\w/:.])(/[^\s/:;,'\"()]+)+/?")
"""An absolute path."""


def words(
  error: UserError | str,
  uploads: Mapping[str, str] = MappingProxyType({}),
  secret: Collection[str] = (),
) -> str:
  """An error or a notice as it may be shown in a browser.

  It has the page's names of options, and no paths of the server: an uploaded
  file is called by its field and the user's name for it.

  Args:
    error: to be shown.
    uploads: field -> name of the file that the user uploaded there. On the
      server it is named after the field.
    secret: paths that may be relative, which are cut to their last part.
  """

  def label(name: str) -> str:
    return LABELS.get(name, name)

  if isinstance(error, UserError):
    text = error.format(label)
  else:
    text = format_message(error, label)

  def shown(match: re.Match) -> str:
    equals, path = match[1], Path(match[0].removeprefix("="))
    if path.stem not in UPLOADED:
      return equals + path.name
    name = uploads.get(path.stem, "")
    parts = ["" if equals else LABELS[path.stem], name and f'"{name}"']
    return (" " if equals and name else "") + " ".join(filter(None, parts))

  for path in sorted(secret, key=len, reverse=True):
    if "/" in path:
      text = text.replace(path, Path(path).name)
  text = _PATH.sub(shown, text)
  text = re.sub(r"\btask=(\w+)", lambda m: f'"{m[1].replace("_", " ")}"', text)
  return text[:1].upper() + text[1:]
