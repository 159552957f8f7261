"""The text encoder in configs and in bundles."""

import numpy as np
import pytest

from lumiere_jax.models.params import flatten
from lumiere_jax.models.text_encoder import (
  TextEncoder,
  open_text_encoder,
  text_encoder_of,
  write_text_part,
)
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.bundle import TEXT, Bundle

CAPTIONS = [" A RED circle", ""]


@pytest.mark.parametrize("cleaning", ["none", "lower", "if"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bundles_give_the_encoder_back(tmp_path, dtype, cleaning):
  encoder = open_text_encoder("", "", 12, dtype, cleaning)
  assert encoder.config.dtype == dtype
  part = write_text_part(tmp_path, encoder)
  assert part.meta.get("cleaning", "none") == cleaning
  loaded = text_encoder_of(
    Bundle(folder=tmp_path, parts={TEXT: part}, about={})
  )
  assert loaded.cleaning == cleaning
  assert loaded.identity == encoder.identity
  for ours, theirs in zip(
    loaded.encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_bundles_without_cleaning_are_as_they_ever_were(tmp_path):
  part = write_text_part(tmp_path, TextEncoder.random(max_length=12))
  assert set(part.meta) == {"identity", "max_length", "config"}


def test_tensors_are_fetched_one_at_a_time(tmp_path, monkeypatch):
  encoder = TextEncoder.random(max_length=12)
  saved = {}
  monkeypatch.setattr(
    safetensors, "save", lambda path, flat: saved.update(flat)
  )
  write_text_part(tmp_path, encoder)
  for path, leaf in flatten(encoder.params).items():
    assert saved[path] is leaf
