"""The tabs of the page and their rows of fields, made from the tasks."""

import dataclasses
import itertools

from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.tasks import TASKS
from lumiere_jax.options import label_of, options_of

Row = tuple[str, ...]
EDGES = ("left", "top", "right", "bottom")
EXAMPLES = ("prompt", "image", "last_image", "video", "box", *EDGES)
"""Fields that an example of a tab fills in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tab:
  """One of `TABS`.

  Attributes:
    title: of the tab.
    about: what it does, in a sentence.
    fields: rows of the fields to fill in.
  """

  title: str
  about: str
  fields: tuple[Row, ...]

  @property
  def names(self) -> list[str]:
    """All its fields."""
    return [name for row in self.fields for name in row]

  @property
  def examples(self) -> tuple[str, ...]:
    """The fields that an example fills in."""
    return tuple(name for name in self.names if name in EXAMPLES)


# Where the page has other fields than a task, or than `Settings`.
_ON_PAGE: dict[Row, tuple[Row, ...]] = {
  ("mask", "box"): (("strokes",), ("box", "mask")),
  ("expand",): (EDGES,),
  ("uncomposited",): (("composited",),),
  ("feather", "uncomposited"): (("feather", "composited"),),
  ("guidance_interval",): (("guidance_from", "guidance_to"),),
}


def _rows(cls: type, *, ungrouped: bool) -> list[Row]:
  """Options of a dataclass in their order, those of one group in a row.

  Options without a group have rows of their own if `ungrouped`, else none.
  """
  rows: list[Row] = []
  options = options_of(cls)
  for group, names in itertools.groupby(options, lambda k: options[k].group):
    if group:
      rows.append(tuple(names))
    elif ungrouped:
      rows += [(name,) for name in names]
  return [part for row in rows for part in _ON_PAGE.get(row, (row,))]


_TITLES = {"super_resolve": "Super-resolve", "text_to_image": "Text to picture"}


def _tab(name: str) -> Tab:
  rows = [("prompt",), *_rows(TASKS[name], ungrouped=True)]
  if name == "stylize":
    rows.append(("style", "alpha"))
  title = _TITLES.get(name, label_of(name))
  about = (TASKS[name].__doc__ or "").partition("\n")[0]
  return Tab(title=title, about=about, fields=tuple(rows))


TABS: dict[str, Tab] = {name: _tab(name) for name in TASKS}


ADVANCED = tuple(_rows(Settings, ungrouped=False))
"""Rows of settings; empty is as trained."""
