"""A text encoder that trains together with the first stage, by Muon."""

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models.params import flatten
from lumiere_jax.models.text_encoder import open_text_encoder, text_encoder_of
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import (
  BASE,
  T2I,
  assert_same,
  load,
  records,
  run_stage,
)

TRAINING = replace(
  T2I,
  text={"train": True},
  train={"save_every": 2, "optimizer": "muon"},
  preview={"every": 2, "steps": 2, "prompts": ("a red ring",)},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  evaluated = replace(TRAINING, train={"eval_clips": 2})
  return run_stage(tmp_path_factory, evaluated)


def test_the_encoder_trains_and_is_in_the_bundle(run):
  trained = flatten(text_encoder_of(open_bundle(run)).params)
  untrained = flatten(open_text_encoder("", "", 48).params)
  assert trained.keys() == untrained.keys()
  for path, leaf in trained.items():
    assert not np.array_equal(leaf, untrained[path]), path
  assert not [k for k in load(run, "t2i") if k.startswith("text_encoder")]
  assert "text" in records(run / "metrics.jsonl")[-1]["grad_norms"]
  assert not (run / "text_cache").exists()


def test_previews_use_the_current_encoder(run):
  names = sorted(p.name for p in (run / "previews").iterdir())
  assert names == ["00000002-0-a-red-ring.png", "00000004-0-a-red-ring.png"]


def test_it_resumes_exactly(run, tmp_path):
  train(replace(TRAINING, train={"steps": 2}), tmp_path)
  train(TRAINING, tmp_path)
  for part in ("text", "t2i"):
    assert_same(load(run, part), load(tmp_path, part))
  losses = lambda folder: [r["loss"] for r in records(folder / "metrics.jsonl")]
  assert losses(run) == losses(tmp_path)


def test_later_stages_load_it_from_the_bundle(run, tmp_path):
  weights = {"weights": str(run)}
  base = replace(BASE, init_from=str(run), text=weights, train={"steps": 1})
  train(base, tmp_path)
  identity = lambda path: open_bundle(path).parts["text"].meta["identity"]
  assert identity(tmp_path) == identity(run)
  with pytest.raises(UserError, match="another text encoder"):
    train(replace(base, text={"weights": ""}), tmp_path / "other")


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"stage": "base", "init_from": "scratch"}, "config.stage='base'"),
    ({"diffusion": {"null_text": "empty"}}, "null_text='empty'"),
    ({"text": {"train": True, "dtype": "bfloat16"}}, "dtype='bfloat16'"),
    ({"lora": {"rank": 2}, "init_from": "somewhere"}, "rank=2"),
  ],
)
def test_invalid_combinations(changes, words):
  with pytest.raises(UserError, match=words):
    replace(TRAINING, **changes)


def test_a_bundle_without_an_encoder_is_an_error(tmp_path):
  index = '{"format": "lumiere_jax", "version": 1, "parts": {}}'
  (tmp_path / "bundle.json").write_text(index)
  with pytest.raises(UserError, match="holds no text encoder"):
    open_text_encoder("", str(tmp_path), 48)
