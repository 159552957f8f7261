import numpy as np
import pytest

from lumiere_jax.data.text_features import (
  TextCache,
  TextShards,
  write_text_shards,
)
from lumiere_jax.errors import UserError
from lumiere_jax.storage.remote import Folder

CAPTIONS = ["a red circle", "rain over the city", "", "vidéo b"]


class Encoder:
  """Gives random features of each caption, and notes it."""

  def __init__(self, name="a"):
    self.identity, self.encoded = name * 64, []

  def encode(self, captions):
    self.encoded += captions
    return self.features(captions)

  def features(self, captions):
    seeds = [list((self.identity[0] + c).encode()) for c in captions]
    text = [np.random.default_rng(s).normal(size=(5, 3)) for s in seeds]
    mask = np.arange(5) < np.array([[1 + len(c) % 5] for c in captions])
    return np.stack(text).astype(np.float32), mask


@pytest.fixture
def encoder():
  return Encoder()


def test_the_cache_takes_what_the_shelf_has(encoder, tmp_path):
  expected = encoder.features(CAPTIONS)
  (tmp_path / "made").mkdir()
  assert write_text_shards(tmp_path / "made", encoder, CAPTIONS * 2) == 4
  assert encoder.encoded == CAPTIONS
  shelf = TextShards(Folder(tmp_path / "made"))
  cache = TextCache(lambda: encoder, tmp_path / "cache", shards=[shelf])
  assert cache.fill(CAPTIONS) == 0
  for ours, theirs in zip(cache(CAPTIONS), expected, strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  assert not (tmp_path / "cache").exists()
  assert encoder.encoded == CAPTIONS
  cache([CAPTIONS[0], "a dog"])  # this one is in neither
  assert encoder.encoded == [*CAPTIONS, "a dog"]
  assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_only_what_is_missing_is_encoded(encoder, tmp_path):
  write_text_shards(tmp_path, encoder, CAPTIONS[:2])
  assert write_text_shards(tmp_path, encoder, CAPTIONS) == 2
  assert encoder.encoded == CAPTIONS
  assert write_text_shards(tmp_path, encoder, CAPTIONS) == 0
  assert len(list(tmp_path.rglob("text-*"))) == 2
  shelf = TextShards(Folder(tmp_path))
  for caption in CAPTIONS:
    assert shelf.find(encoder.identity, caption) is not None


def test_features_of_another_encoder_are_not_taken(encoder, tmp_path):
  write_text_shards(tmp_path, encoder, CAPTIONS)
  other = Encoder("b")
  assert TextShards(Folder(tmp_path)).find(other.identity, CAPTIONS[0]) is None
  assert write_text_shards(tmp_path, other, CAPTIONS[:1]) == 1


def test_a_damaged_shelf_is_named(encoder, tmp_path):
  write_text_shards(tmp_path, encoder, CAPTIONS)
  shard = next(tmp_path.rglob("text-00000*"))
  shard.write_bytes(shard.read_bytes()[:1000])
  with pytest.raises(UserError, match=r"text-00000.*damaged"):
    TextShards(Folder(tmp_path)).find(encoder.identity, CAPTIONS[0])
