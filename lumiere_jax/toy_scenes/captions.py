"""Captions of toy scenes, written and parsed, and the held-out combinations."""

import functools
import itertools
import re

from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.scenes import (
  BACKGROUNDS,
  COLOURS,
  FOLDS,
  MOTIONS,
  SHAPES,
  SIZES,
  Description,
  Scene,
)

Combination = tuple[str, str, str]
"""(colour, shape, motion)."""


_ACROSS = {0: ("left", "right"), 1: ("up", "down")}
"""Axis (0: x, 1: y) -> motions that cross the frame along it."""


def is_held_out(combination: Combination) -> bool:
  """Whether no training scene shows this (colour, shape, motion).

  The three indices sum to a multiple of the number of colours (seven, a
  prime): a Latin square. One triple in seven is held out, yet every two of
  its attributes are seen together in training.
  """
  tables = COLOURS, SHAPES, MOTIONS
  pairs = zip(tables, combination, strict=True)
  return sum(list(t).index(v) for t, v in pairs) % len(COLOURS) == 0


@functools.cache
def combinations(
  split: str,
  colours: tuple[str, ...] = tuple(COLOURS),
  shapes: tuple[str, ...] = tuple(SHAPES),
  motions: tuple[str, ...] = tuple(MOTIONS),
) -> tuple[Combination, ...]:
  """All triples of a split; round shapes never spin, for it cannot be seen."""
  return tuple(
    triple
    for triple in itertools.product(colours, shapes, motions)
    if is_held_out(triple) == (split == "held_out")
    and (triple[1] in FOLDS or triple[2] != "spinning")
  )


def _laned(triples: tuple[Combination, ...], axis: int) -> list[Combination]:
  """Those that stay in their half of a frame that is cut across `axis`."""
  return [triple for triple in triples if triple[2] not in _ACROSS[axis]]


def describe(scene: Scene, motion_words: bool = True) -> str:
  """Says what is in `scene`, e.g. for two sprites "a small red ring circling
  slowly and a large blue star blinking on a black background".
  """
  said = [_phrase(s.description, motion_words) for s in scene.sprites]
  return f"{' and '.join(said)} on a {scene.background} background"


def _phrase(words: Description, motion_words: bool) -> str:
  moves = [MOTIONS[words.motion].phrase, words.speed]
  thing = [words.size, words.colour, words.shape]
  said = " ".join(filter(None, thing + (moves if motion_words else [])))
  return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"


def _pattern() -> re.Pattern:
  either = lambda name, words: f"(?P<{name}>{'|'.join(words)})"
  speeds = {s for m in MOTIONS.values() for s in m.rates if s}
  return re.compile(
    f"an? (?:{either('size', SIZES)} )?"
    f"{either('colour', COLOURS)} {either('shape', SHAPES)}"
    f"(?: {either('motion', (m.phrase for m in MOTIONS.values()))})?"
    f"(?: {either('speed', sorted(speeds))})?"
  )


def parse_caption(text: str) -> tuple[tuple[Description, ...], str]:
  """The inverse of `describe`.

  Returns:
    What it says of each sprite, and the name of the background.

  Raises:
    UserError: it is not a caption of this grammar.
  """
  things, _, behind = text.strip().rstrip(".").partition(" on a ")
  background = behind.removesuffix(" background")
  found = [_pattern().fullmatch(part) for part in things.split(" and ")]
  if background not in BACKGROUNDS or not all(found):
    raise UserError(
      "",
      f"caption {text!r} is not one of the procedural source",
      'write e.g. "a small red ring blinking on a black background"',
    )
  names = {m.phrase: name for name, m in MOTIONS.items()}
  words = (m.groupdict() for m in found)
  return tuple(
    Description(**w | {"motion": names.get(w["motion"])}) for w in words
  ), background
