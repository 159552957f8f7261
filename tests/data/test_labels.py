"""Captions of classes."""

from pathlib import Path

import pytest

from lumiere_jax.data.captions import label_captions, words
from lumiere_jax.errors import UserError

UCF101 = (
  Path(__file__).parents[2] / "../shared/assets/prompts/ucf101_class_prompt.psv"
)


def test_words():
  said = {
    "ApplyEyeMakeup": "apply eye makeup",
    "playing_guitar": "playing guitar",
    "BMXBike": "bmx bike",
    "RidingABike": "riding a bike",
    "TaiChi": "tai chi",
    "shooting goal (soccer)": "shooting goal (soccer)",
    "push-up": "push-up",
    "YoYo_2": "yo yo 2",
    "_": "_",
  }
  assert {label: words(label) for label in said} == said
  assert label_captions(iter(["TaiChi"])) == {"TaiChi": ("tai chi",)}


def test_prompts_of_a_file(tmp_path):
  path = tmp_path / "prompts.psv"
  path.write_text(
    "\ufeffTaiChi|a person does tai chi\r\n\nYoYo|a yo-yo | spins\n"
    " TaiChi | tai chi in a park\nUnused|x",
    encoding="utf-8",
  )
  assert label_captions(["YoYo", "TaiChi"], path) == {
    "YoYo": ("a yo-yo | spins",),
    "TaiChi": ("a person does tai chi", "tai chi in a park"),
  }


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"TaiChi tai chi\n", r"line 1: 'TaiChi tai chi' is not label\|prompt"),
    (b"a|b\nTaiChi|\n", "line 2"),
    (b"|b", "line 1"),
    (b"taiChi|b\n", r"class 'TaiChi' \(did you mean \"taiChi\"\?\)"),
    (b"x|\xe9", "line 1: not UTF-8"),
  ],
)
def test_prompts_that_cannot_be_used(tmp_path, content, message):
  path = tmp_path / "prompts.psv"
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf"prompts\.psv.*{message}"):
    label_captions(["TaiChi"], path)


def test_a_missing_file(tmp_path):
  with pytest.raises(UserError, match="gone: cannot be read"):
    label_captions(["x"], tmp_path / "gone")


@pytest.mark.skipif(not UCF101.exists(), reason="needs the shared prompts")
def test_prompts_of_ucf101():
  labels = [line.split("|")[0] for line in UCF101.read_text().splitlines()]
  captions = label_captions(labels, UCF101)
  assert len(captions) == 101
  assert captions["ApplyEyeMakeup"] == ("applying eye makeup",)
