"""Text features in the cache and in shards."""

from concurrent import futures

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


@pytest.fixture
def fake():
  return FakeEncoder()


@pytest.fixture
def open_cache(fake, tmp_path):
  """Opens a cache in one folder; `made` counts how often weights are read."""

  def open_cache(**options):
    return TextCache(make, tmp_path / "cache", **options)

  def make():
    open_cache.made += 1
    return fake

  open_cache.made = 0
  return open_cache


def _entries(folder):
  return sorted(folder.glob("**/??/*.safetensors"))


def _assert_same(first, second):
  for ours, theirs in zip(first, second, strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_the_cache_gives_the_features_of_the_encoder(tmp_path):
  encoder = TextEncoder.random(max_length=12)
  cache = TextCache(encoder, tmp_path)
  order = [CAPTIONS[i] for i in (3, 0, 2, 0)]
  for _ in range(2):
    _assert_same(cache(order), encoder.encode(order))
  assert len(_entries(tmp_path)) == 3
  first = cache(order)[0]
  first[:] = 0  # Callers cannot change entries.
  _assert_same(cache(order), encoder.encode(order))
  with pytest.warns(UserWarning, match='left out: "sign language"'):
    cache([CAPTIONS[3] + " and in " + "sign language"])
  for use in (cache, cache.fill, encoder.encode):
    with pytest.raises(TypeError, match="sequence"):
      use("a dog")


def test_weights_are_read_only_when_needed(open_cache, fake):
  first = open_cache()
  assert first.fill(iter(CAPTIONS + CAPTIONS)) == 5
  assert first.fill(CAPTIONS) == 0
  expected = first(CAPTIONS)
  first.release()
  first(CAPTIONS)
  second = open_cache(identity=first.identity)
  assert second.fill(CAPTIONS) == 0
  _assert_same(second(CAPTIONS), expected)
  assert (fake.encoded, open_cache.made) == (CAPTIONS, 1)
  for k, cache in enumerate((first, second)):
    cache([*CAPTIONS[:2], f"a dog {k}"])
  assert fake.encoded == [*CAPTIONS, "a dog 0", "a dog 1"]
  assert open_cache.made == 3


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
    None,  # the entry of another caption
  ],
)
def test_damaged_entries_are_encoded_again(open_cache, fake, tmp_path, damage):
  expected = open_cache()(CAPTIONS)
  entry, other = _entries(tmp_path)[1:3]
  whole = entry.read_bytes()
  spoil = lambda: entry.write_bytes(
    damage(whole) if damage else other.read_bytes()
  )
  spoil()
  fake.encoded.clear()
  assert open_cache().fill(CAPTIONS) == len(fake.encoded) == 1
  assert entry.read_bytes() == whole
  spoil()
  _assert_same(open_cache()(CAPTIONS), expected)
  assert entry.read_bytes() == whole


def test_encoders_do_not_share_entries(fake, tmp_path):
  other = FakeEncoder("b")
  ours, theirs = (
    TextCache(lambda e=encoder: e, tmp_path)(CAPTIONS[:1])[0]
    for encoder in (fake, other)
  )
  assert np.abs(ours - theirs).max() > 0.1
  assert len(_entries(tmp_path)) == 2
  cache = TextCache(lambda: fake, tmp_path, identity="0" * 64)
  with pytest.raises(UserError, match="belongs to another text encoder"):
    cache(CAPTIONS[:1])
  assert len(_entries(tmp_path)) == 2


def test_memory_is_bounded_and_keeps_recent_entries(open_cache, fake, tmp_path):
  entry_bytes = 5 * 3 * 4 + 5
  cache = open_cache(memory_bytes=2 * entry_bytes)
  cache(CAPTIONS[:2])
  cache(CAPTIONS[:1])
  cache(CAPTIONS[2:3])  # Evicts CAPTIONS[1].
  for entry in _entries(tmp_path):
    entry.unlink()
  fake.encoded.clear()
  cache([CAPTIONS[0], CAPTIONS[2]])
  assert fake.encoded == []
  cache(CAPTIONS)  # More than fit into memory.
  assert sorted(fake.encoded) == sorted(CAPTIONS[i] for i in (1, 3, 4))


def test_threads_and_caches_may_share_a_folder(open_cache, fake, tmp_path):
  expected = fake.features(CAPTIONS)[0]

  def work(cache):
    for i in range(5):
      text, _ = cache(CAPTIONS[i:] + CAPTIONS[:i])
      np.testing.assert_array_equal(text, np.roll(expected, -i, axis=0))

  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(work, [open_cache(), open_cache()] * 2))
  assert len(list(tmp_path.rglob("*.*"))) == len(CAPTIONS)


def test_progress_is_shown_only_if_there_is_work(open_cache, capsys):
  cache = open_cache()
  cache.fill(CAPTIONS)
  printed = capsys.readouterr()
  assert "5/5" in printed.err
  assert printed.out == ""
  cache.fill(CAPTIONS)
  assert capsys.readouterr() == ("", "")


def test_unwritable_folder_is_named(fake, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match=f"{tmp_path}/file.*cannot be written"):
    TextCache(lambda: fake, tmp_path / "file")(CAPTIONS[:1])


def test_the_cache_reads_shards_first(open_cache, fake, tmp_path):
  (tmp_path / "made").mkdir()
  assert write_text_shards(tmp_path / "made", fake, CAPTIONS * 2) == 5
  shards = TextShards(Folder(tmp_path / "made"))
  cache = open_cache(shards=[shards])
  assert cache.fill(CAPTIONS) == 0
  _assert_same(cache(CAPTIONS), fake.features(CAPTIONS))
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
  other = FakeEncoder("b")
  assert shards.find(other.identity, CAPTIONS[0]) is None
  assert write_text_shards(tmp_path, other, CAPTIONS[:1]) == 1


def test_a_damaged_shard_is_named(fake, tmp_path):
  write_text_shards(tmp_path, fake, CAPTIONS)
  shard = next(tmp_path.rglob("text-00000*"))
  shard.write_bytes(shard.read_bytes()[:500])
  with pytest.raises(UserError, match=r"text-00000.*damaged"):
    TextShards(Folder(tmp_path)).find(fake.identity, CAPTIONS[0])
