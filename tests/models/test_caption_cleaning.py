"""Cleaning against what diffusers' IF makes of the same captions.

`python -m tests.references.make_t5` made the references; tests/parity asks
diffusers itself.
"""

import json

import pytest

from lumiere_jax.models.caption_cleaning import CLEANINGS, clean, lower
from tests.references import t5
from tests.references.captions import nasty_captions

PAIRS = json.loads((t5.FOLDER / "cleaning.json").read_text("utf-8"))["pairs"]


def test_captions_become_those_of_if():
  assert len(PAIRS) > 500
  for caption, expected in PAIRS:
    assert clean(caption) == expected, caption


def test_references_are_of_these_captions():
  assert [c for c, _ in PAIRS] == nasty_captions(200, t5.SEED)


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("A cat, sitting.", "a cat, sitting."),
    ("<b>Bold</b> claims &amp; more", "bold claims more"),
    ("photo by @me on https://a.com/b #123", "photo by on"),
    ("a-b stays, this-is-not-one-word", "a b stays, this is not one word"),
    ("my_photo.jpg of 世界 — 10x20", "of"),
    ("&lt;i&gt;it is a tag", "it is a tag"),
    ("", ""),
  ],
)
def test_known_captions(caption, expected):
  assert clean(caption) == expected


# What diffusers' own code stumbles over, or warns of.
@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("a <![cat", "a <! cat"),
    ("a\ud83d cat", "a\ufffd cat"),
    ("photos/cat", "photos cat"),
    ("\x00", ""),
  ],
)
def test_any_text_can_be_cleaned(caption, expected):
  assert clean(caption) == expected


def test_names():
  assert list(CLEANINGS) == ["none", "lower", "if"]
  assert CLEANINGS["none"](" A  Cat ") == " A  Cat "
  assert CLEANINGS["lower"](" A  Cat ") == lower(" A  Cat ") == "a  cat"
  assert CLEANINGS["if"](" A  Cat ") == "a cat"
