"""Text features in the cache and in shards."""

import threading

import numpy as np
import pytest

from lumiere_jax.data.text_features import (
  TextCache,
  TextShards,
  write_text_shards,
)
from lumiere_jax.errors import UserError
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.storage.remote import Folder
from tests.data.fakes import FakeEncoder

CAPTIONS = [
  "a red circle moves left",
  "a red circle moves right",
  "",
  "a person signs the word bird in sign language",
  "rain over the city",
]


@pytest.fixture(scope="module")
def encoder():
  return TextEncoder.random(max_length=12)


class Counting:
  """Makes an encoder; counts how often, and records what it encodes."""

  def __init__(self, encoder, monkeypatch):
    self.made, self.encoded, self._encoder = 0, [], encoder
    encode = encoder.encode
    spy = lambda captions: self.encoded.extend(captions) or encode(captions)
    monkeypatch.setattr(encoder, "encode", spy)

  def __call__(self):
    self.made += 1
    return self._encoder


@pytest.fixture
def counting(encoder, monkeypatch):
  return Counting(encoder, monkeypatch)


def _entries(folder):
  return sorted(folder.glob("*/*/*.safetensors"))


def _assert_same(first, second):
  for ours, theirs in zip(first, second, strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_the_cache_gives_the_features_of_the_encoder(encoder, tmp_path):
  cache = TextCache(encoder, tmp_path)
  order = [CAPTIONS[i] for i in (3, 0, 2, 0)]
  for _ in range(2):
    _assert_same(cache(order), encoder.encode(order))
  assert len(_entries(tmp_path)) == 3


def test_a_second_run_needs_no_weights(counting, tmp_path):
  first = TextCache(counting, tmp_path)
  assert first.fill(iter(CAPTIONS + CAPTIONS)) == 5
  assert first.fill(CAPTIONS) == 0
  expected = first(CAPTIONS)
  assert counting.encoded == CAPTIONS
  second = TextCache(counting, tmp_path, identity=first.identity)
  assert second.fill(CAPTIONS) == 0
  _assert_same(second(CAPTIONS), expected)
  assert counting.made == 1
  second([*CAPTIONS[:2], "a dog"])
  assert counting.encoded == [*CAPTIONS, "a dog"]
  assert counting.made == 2


def test_released_weights_are_made_again_only_when_needed(counting, tmp_path):
  cache = TextCache(counting, tmp_path)
  cache.fill(CAPTIONS)
  cache.release()
  cache(CAPTIONS)
  assert counting.made == 1
  cache(["a dog"])
  assert counting.made == 2


def _flip(content):
  return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


@pytest.mark.parametrize(
  "damage",
  [
    _flip,
    lambda content: content[:-1],
    lambda content: b"",
    lambda content: b"something else",
    lambda content: content.replace(b'"mask"', b'"mass"'),
  ],
)
def test_damaged_entries_are_encoded_again(counting, tmp_path, damage):
  expected = TextCache(counting, tmp_path)(CAPTIONS)
  entry = _entries(tmp_path)[2]
  whole = entry.read_bytes()
  entry.write_bytes(damage(whole))
  counting.encoded.clear()
  assert TextCache(counting, tmp_path).fill(CAPTIONS) == 1
  assert len(counting.encoded) == 1
  assert entry.read_bytes() == whole
  entry.write_bytes(damage(whole))
  _assert_same(TextCache(counting, tmp_path)(CAPTIONS), expected)
  assert entry.read_bytes() == whole


def test_the_entry_of_another_caption_is_not_used(counting, tmp_path):
  expected = TextCache(counting, tmp_path)(CAPTIONS)
  a, b = _entries(tmp_path)[:2]
  a.write_bytes(b.read_bytes())
  _assert_same(TextCache(counting, tmp_path)(CAPTIONS), expected)


def test_encoders_do_not_share_entries(encoder, tmp_path):
  other = TextEncoder.random(max_length=12, seed=1)
  ours = TextCache(encoder, tmp_path)(CAPTIONS[:1])[0]
  theirs = TextCache(other, tmp_path)(CAPTIONS[:1])[0]
  assert np.abs(ours - theirs).max() > 0.1
  assert len(_entries(tmp_path)) == 2


def test_the_identity_of_another_encoder_is_an_error(encoder, tmp_path):
  cache = TextCache(encoder, tmp_path, identity="0" * 64)
  with pytest.raises(UserError, match="belongs to another text encoder"):
    cache(CAPTIONS[:1])
  assert not _entries(tmp_path)


def test_memory_is_bounded_and_keeps_recent_entries(counting, tmp_path):
  entry_bytes = 12 * 64 * 4 + 12
  cache = TextCache(counting, tmp_path, memory_bytes=2 * entry_bytes)
  cache(CAPTIONS[:2])
  cache(CAPTIONS[:1])
  cache(CAPTIONS[2:3])  # Evicts CAPTIONS[1].
  for entry in _entries(tmp_path):
    entry.unlink()
  counting.encoded.clear()
  cache([CAPTIONS[0], CAPTIONS[2]])
  assert counting.encoded == []
  cache(CAPTIONS)  # More than fit into memory.
  assert sorted(counting.encoded) == sorted(CAPTIONS[i] for i in (1, 3, 4))


def test_callers_cannot_change_entries(encoder, tmp_path):
  cache = TextCache(encoder, tmp_path)
  first = cache(CAPTIONS[:1])[0]
  expected = first.copy()
  first[:] = 0
  np.testing.assert_array_equal(cache(CAPTIONS[:1])[0], expected)


def test_threads_and_caches_may_share_a_folder(encoder, tmp_path):
  expected = encoder.encode(CAPTIONS)[0]
  results = []

  def work(cache):
    for i in range(5):
      text, _ = cache(CAPTIONS[i:] + CAPTIONS[:i])
      results.append(np.array_equal(text, np.roll(expected, -i, axis=0)))

  caches = [TextCache(encoder, tmp_path) for _ in range(2)]
  threads = [threading.Thread(target=work, args=(c,)) for c in caches * 2]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == [True] * 20
  assert len(list(tmp_path.rglob("*.*"))) == len(CAPTIONS)


def test_progress_is_shown_only_if_there_is_work(encoder, tmp_path, capsys):
  cache = TextCache(encoder, tmp_path)
  cache.fill(CAPTIONS)
  printed = capsys.readouterr()
  assert "5/5" in printed.err
  assert printed.out == ""
  cache.fill(CAPTIONS)
  assert capsys.readouterr() == ("", "")


def test_truncated_captions_are_reported(encoder, tmp_path):
  with pytest.warns(UserWarning, match='left out: "sign language"'):
    TextCache(encoder, tmp_path)([CAPTIONS[3] + " and in " + "sign language"])


def test_unwritable_folder_is_named(encoder, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match=f"{tmp_path}/file.*cannot be written"):
    TextCache(encoder, tmp_path / "file")(CAPTIONS[:1])


def test_one_caption_instead_of_a_sequence_is_an_error(encoder, tmp_path):
  cache = TextCache(encoder, tmp_path)
  for use in (cache, cache.fill, encoder.encode):
    with pytest.raises(TypeError, match="sequence"):
      use("a dog")


@pytest.fixture
def fake():
  return FakeEncoder()


def test_the_cache_reads_shards_first(fake, tmp_path):
  expected = fake.features(CAPTIONS)
  (tmp_path / "made").mkdir()
  assert write_text_shards(tmp_path / "made", fake, CAPTIONS * 2) == 5
  shards = TextShards(Folder(tmp_path / "made"))
  cache = TextCache(lambda: fake, tmp_path / "cache", shards=[shards])
  assert cache.fill(CAPTIONS) == 0
  _assert_same(cache(CAPTIONS), expected)
  assert not (tmp_path / "cache").exists()
  assert fake.encoded == CAPTIONS
  cache([CAPTIONS[0], "a dog"])  # "a dog" is in neither.
  assert fake.encoded == [*CAPTIONS, "a dog"]
  assert len(_entries(tmp_path / "cache")) == 1


def test_only_missing_captions_are_encoded(fake, tmp_path):
  write_text_shards(tmp_path, fake, CAPTIONS[:2])
  assert write_text_shards(tmp_path, fake, CAPTIONS) == 3
  assert fake.encoded == CAPTIONS
  assert write_text_shards(tmp_path, fake, CAPTIONS) == 0
  assert len(list(tmp_path.rglob("text-*"))) == 2
  shards = TextShards(Folder(tmp_path))
  assert all(shards.find(fake.identity, caption) for caption in CAPTIONS)


def test_features_of_another_encoder_are_not_used(fake, tmp_path):
  write_text_shards(tmp_path, fake, CAPTIONS)
  other = FakeEncoder("b")
  assert TextShards(Folder(tmp_path)).find(other.identity, CAPTIONS[0]) is None
  assert write_text_shards(tmp_path, other, CAPTIONS[:1]) == 1


def test_a_damaged_shard_is_named(fake, tmp_path):
  write_text_shards(tmp_path, fake, CAPTIONS)
  shard = next(tmp_path.rglob("text-00000*"))
  shard.write_bytes(shard.read_bytes()[:1000])
  with pytest.raises(UserError, match=r"text-00000.*damaged"):
    TextShards(Folder(tmp_path)).find(fake.identity, CAPTIONS[0])
