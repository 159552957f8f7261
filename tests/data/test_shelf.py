import numpy as np
import pytest

from lumiere_jax.data.shelf import TextShelf, fill_shelf
from lumiere_jax.data.text import TextCache, TextEncoder
from lumiere_jax.io.folder import Folder
from lumiere_jax.typing import UserError

CAPTIONS = ["a red circle", "rain over the city", "", "vidéo b"]


@pytest.fixture(scope="module")
def encoder():
  return TextEncoder.random(max_length=12)


@pytest.fixture
def encoded(encoder, monkeypatch):
  """The captions that have been encoded."""
  seen, encode = [], encoder.encode
  monkeypatch.setattr(
    encoder, "encode", lambda some: seen.extend(some) or encode(some)
  )
  return seen


def test_the_cache_takes_what_the_shelf_has(encoder, encoded, tmp_path):
  expected = encoder.encode(CAPTIONS)
  encoded.clear()
  (tmp_path / "made").mkdir()
  assert fill_shelf(tmp_path / "made", encoder, CAPTIONS * 2) == 4
  assert encoded == CAPTIONS
  shelf = TextShelf(Folder(tmp_path / "made"))
  cache = TextCache(encoder, tmp_path / "cache", shelves=[shelf])
  assert cache.fill(CAPTIONS) == 0
  for ours, theirs in zip(cache(CAPTIONS), expected, strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  assert not (tmp_path / "cache").exists()
  assert encoded == CAPTIONS
  cache([CAPTIONS[0], "a dog"])  # this one is in neither
  assert encoded == [*CAPTIONS, "a dog"]
  assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_only_what_is_missing_is_encoded(encoder, encoded, tmp_path):
  fill_shelf(tmp_path, encoder, CAPTIONS[:2])
  assert fill_shelf(tmp_path, encoder, CAPTIONS) == 2
  assert encoded == CAPTIONS
  assert fill_shelf(tmp_path, encoder, CAPTIONS) == 0
  assert len(list(tmp_path.rglob("text-*"))) == 2
  shelf = TextShelf(Folder(tmp_path))
  for caption in CAPTIONS:
    assert shelf.find(encoder.identity, caption) is not None


def test_features_of_another_encoder_are_not_taken(encoder, tmp_path):
  fill_shelf(tmp_path, encoder, CAPTIONS)
  other = TextEncoder.random(max_length=12, seed=1)
  assert TextShelf(Folder(tmp_path)).find(other.identity, CAPTIONS[0]) is None
  assert fill_shelf(tmp_path, other, CAPTIONS[:1]) == 1


def test_a_damaged_shelf_is_named(encoder, tmp_path):
  fill_shelf(tmp_path, encoder, CAPTIONS)
  shard = next(tmp_path.rglob("text-00000*"))
  shard.write_bytes(shard.read_bytes()[:1000])
  with pytest.raises(UserError, match=r"text-00000.*damaged"):
    TextShelf(Folder(tmp_path)).find(encoder.identity, CAPTIONS[0])
