"""Captions of classes: from the words of their labels, or from a file."""

from collections.abc import Iterable
from pathlib import Path
import re

from lumiere_jax.io.text import read_text
from lumiere_jax.typing import UserError, suggest

Captions = dict[str, tuple[str, ...]]
# Between a small letter and a capital, and before a capitalised word that
# follows an abbreviation, as in RidingABike.
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def label_captions(labels: Iterable[str], prompts_file="") -> Captions:
  """What the members of each class show.

  Args:
    labels: names of classes.
    prompts_file: 'label|prompt' a line; several lines of one label are several
      ways to say it. '' takes the words of the labels.

  Returns:
    label -> its captions, for each of `labels`.

  Raises:
    UserError: the file cannot be read, or says nothing of a label.
  """
  labels = list(labels)
  if not prompts_file:
    return {label: (words(label),) for label in labels}
  prompts = _read_prompts(Path(prompts_file))
  for label in labels:
    if label not in prompts:
      raise UserError(
        f"{prompts_file}: says nothing of the class {label!r}"
        f"{suggest(label, prompts)}; add a line {label}|PROMPT"
      )
  return {label: prompts[label] for label in labels}


def words(label: str) -> str:
  """'ApplyEyeMakeup' -> 'apply eye makeup'; 'tai_chi' -> 'tai chi'."""
  parted = _WORD_STARTS.sub(" ", label.replace("_", " "))
  return " ".join(parted.lower().split()) or label


def _read_prompts(path: Path) -> Captions:
  prompts: Captions = {}
  for number, line in enumerate(read_text(path).split("\n"), 1):
    if not line.strip():
      continue
    label, _, prompt = (part.strip() for part in line.partition("|"))
    if not label or not prompt:
      raise UserError(
        f"{path}, line {number}: {line.strip()[:80]!r} is not label|prompt"
      )
    prompts[label] = (*prompts.get(label, ()), prompt)
  return prompts
