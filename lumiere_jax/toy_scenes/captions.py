"""Writes and parses captions of toy scenes; defines the held-out split."""

import functools
import itertools
import re

from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.scenes import (
  BACKGROUNDS,
  COLOURS,
  CROSSING,
  FOLDS,
  MOTIONS,
  SHAPES,
  SIZES,
  Description,
  Scene,
)

Combination = tuple[str, str, str]
"""(colour, shape, motion)."""


def is_held_out(combination: Combination) -> bool:
  """Whether no training scene shows this (colour, shape, motion).

  These are the triples whose indices sum to a multiple of the number of colours
  (seven, a prime), a Latin square: one triple in seven is held out, yet
  training shows every pair of its attributes.
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
  """All triples of a split; round shapes never spin, as it is invisible."""
  return tuple(
    triple
    for triple in itertools.product(colours, shapes, motions)
    if is_held_out(triple) == (split == "held_out")
    and (triple[1] in FOLDS or triple[2] != "spinning")
  )


def staying_in_half(
  triples: tuple[Combination, ...], axis: int
) -> list[Combination]:
  """The triples that stay in one half of the frame along `axis`."""
  return [triple for triple in triples if triple[2] not in CROSSING[axis]]


def describe(scene: Scene, motion_words: bool = True) -> str:
  """The caption of a scene, e.g. "a small red ring circling slowly and a large
  blue star blinking on a black background".
  """
  phrases = [_phrase(s.description, motion_words) for s in scene.sprites]
  return f"{' and '.join(phrases)} on a {scene.background} background"


def _phrase(words: Description, motion_words: bool) -> str:
  parts = [words.size, words.colour, words.shape]
  if motion_words and words.motion:
    parts += [MOTIONS[words.motion].phrase, words.speed]
  phrase = " ".join(filter(None, parts))
  return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@functools.cache
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
  """The inverse of `describe`: each sprite, and the name of the background."""
  things, _, behind = text.strip().rstrip(".").partition(" on a ")
  background = behind.removesuffix(" background")
  found = [_pattern().fullmatch(part) for part in things.split(" and ")]
  words = [match.groupdict() for match in found if match]
  if background not in BACKGROUNDS or len(words) < len(found):
    raise UserError(
      f"caption {text!r}",
      "is not one of the procedural source",
      'write e.g. "a small red ring blinking on a black background"',
    )
  names = {m.phrase: name for name, m in MOTIONS.items()}
  return tuple(
    Description(**w | {"motion": names.get(w["motion"])}) for w in words
  ), background
