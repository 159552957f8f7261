import dataclasses
import json
import threading

from flax import serialization
import jax
import numpy as np
import pytest

from lumiere_jax.data.text_features import TextCache
from lumiere_jax.errors import UserError
from lumiere_jax.models.caption_cleaning import CLEANINGS
from lumiere_jax.models.importers.t5_hf import params_to_hf
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5_SIZES, T5Encoder, init_params
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.models.tokenizer import (
  Tokenizer,
  default_tokenizer_path,
  train_tokenizer,
)
from lumiere_jax.storage import safetensors

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
  """Makes the encoder and counts how often, and what it was asked for."""

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


def test_encoder_is_tokenizer_then_t5(encoder):
  text, mask = encoder.encode(CAPTIONS)
  assert (text.shape, text.dtype) == ((5, 12, 64), np.float32)
  assert (mask.shape, mask.dtype) == ((5, 12), bool)
  assert mask.sum(axis=1).tolist() == [6, 6, 1, 10, 5]
  tokens, _ = encoder.tokenizer.encode(CAPTIONS)
  net = T5Encoder(T5_SIZES["tiny"])
  expected = net.apply({"params": init_params(T5_SIZES["tiny"])}, tokens, mask)
  np.testing.assert_allclose(text, expected, atol=1e-5)
  assert [x.shape[0] for x in encoder.encode([])] == [0, 0]


def test_features_depend_on_the_caption_alone_to_the_bit(encoder):
  text, _ = encoder.encode(CAPTIONS)
  for i, caption in enumerate(CAPTIONS):
    np.testing.assert_array_equal(encoder.encode([caption])[0][0], text[i])
  turned, _ = encoder.encode(CAPTIONS[::-1] * 2)
  np.testing.assert_array_equal(turned[:5], text[::-1])
  np.testing.assert_array_equal(turned[5:], text[::-1])


def test_captions_compile_once(encoder, caplog):
  encoder.encode(CAPTIONS[:1])
  with jax.log_compiles(), caplog.at_level("WARNING"):
    encoder.encode(CAPTIONS)
    encoder.encode(CAPTIONS[2:4])
  assert "ompil" not in caplog.text


def test_same_beginning_does_not_mean_same_features(encoder):
  text, _ = encoder.encode(CAPTIONS[:2])
  assert np.abs(text[0] - text[1]).max(axis=-1)[:6].min() > 1e-2


def test_tokenizer_of_another_encoder_is_refused(encoder):
  small = dataclasses.replace(encoder.config, vocab_size=1000)
  with pytest.raises(UserError, match=r"1024 pieces exceed .* 1000"):
    TextEncoder(encoder.tokenizer, small, init_params(small))
  with pytest.raises(UserError, match='did you mean "tiny"'):
    TextEncoder.random("tiney")


def test_identity_changes_with_all_that_features_depend_on(encoder, tmp_path):
  make = lambda **kw: (
    TextEncoder(
      **{
        "tokenizer": encoder.tokenizer,
        "config": encoder.config,
        "params": encoder.params,
      }
      | kw
    ).identity
  )
  train_tokenizer(CAPTIONS, tmp_path / "m", 400)
  leaf = encoder.params["encoder_norm"]["scale"]
  changed = encoder.params | {"encoder_norm": {"scale": leaf.at[3].add(1e-6)}}
  identities = [
    make(),
    make(tokenizer=Tokenizer(default_tokenizer_path(), 13)),
    make(tokenizer=Tokenizer(tmp_path / "m", 12)),
    make(config=dataclasses.replace(encoder.config, max_distance=64)),
    make(params=changed),
  ]
  assert len(set(identities)) == len(identities)
  on_host = jax.tree.map(np.asarray, encoder.params)
  assert make(params=on_host) == identities[0] == encoder.identity


def _publish(encoder, folder):
  """The encoder's weights as Hugging Face folders hold them."""
  folder.mkdir(parents=True)
  c = encoder.config
  content = {f.name: getattr(c, f.name) for f in dataclasses.fields(c)}
  content |= {"feed_forward_proj": "gated-gelu"}
  (folder / "config.json").write_text(json.dumps(content))
  safetensors.save(folder / "model.safetensors", params_to_hf(encoder.params))
  return folder


@pytest.mark.parametrize("place", ["", "../tokenizer"])
def test_pretrained_folder_gives_the_same_encoder(encoder, tmp_path, place):
  folder = _publish(encoder, tmp_path / "text_encoder")
  with pytest.raises(UserError, match=r"has no spiece\.model, nor .*token"):
    TextEncoder.pretrained(folder, 12)
  (folder / place).mkdir(exist_ok=True)
  (folder / place / "spiece.model").write_bytes(encoder.tokenizer.to_bytes())
  for source in (folder, folder / "model.safetensors"):
    loaded = TextEncoder.pretrained(source, 12)
    assert loaded.identity == encoder.identity
  np.testing.assert_array_equal(
    loaded.encode(CAPTIONS[:1])[0], encoder.encode(CAPTIONS[:1])[0]
  )


def test_pretrained_checkpoint_gives_the_same_encoder(encoder, tmp_path):
  flat = flatten(encoder.params)
  inside = lambda k: k if k.startswith("token_") else f"encoder/{k}"
  tree = {f"target/{inside(k)}": np.asarray(v) for k, v in flat.items()}
  file = tmp_path / "checkpoint_3"
  file.write_bytes(serialization.msgpack_serialize(unflatten(tree)))
  with pytest.raises(UserError, match=r"T5X checkpoints have none.*tokenizer"):
    TextEncoder.pretrained(file, 12)
  loaded = TextEncoder.pretrained(file, 12, tokenizer=default_tokenizer_path())
  assert loaded.identity == encoder.identity


def test_pretrained_encoder_may_be_bfloat16(encoder, tmp_path):
  folder = _publish(encoder, tmp_path / "x")
  half = TextEncoder.pretrained(
    folder, 12, "bfloat16", tokenizer=default_tokenizer_path()
  )
  assert half.config.dtype == "bfloat16"
  text, exact = half.encode(CAPTIONS)[0], encoder.encode(CAPTIONS)[0]
  error = np.sqrt(np.mean((text - exact) ** 2) / np.mean(exact**2))
  assert 0 < error < 0.05
  random = TextEncoder.random(max_length=12, dtype="bfloat16")
  assert random.identity == half.identity != encoder.identity


def test_tokenizer_with_far_too_few_pieces_is_refused(encoder, tmp_path):
  train_tokenizer(CAPTIONS, tmp_path / "m", 400)
  folder = _publish(encoder, tmp_path / "x")
  with pytest.raises(UserError, match=r"m: .*\d pieces, far fewer.* 1024"):
    TextEncoder.pretrained(folder, 12, tokenizer=tmp_path / "m")


@pytest.mark.parametrize("cleaning", ["lower", "if"])
def test_captions_are_cleaned_before_they_are_encoded(encoder, cleaning):
  clean = TextEncoder.random(max_length=12, cleaning=cleaning)
  caption = " A RED circle &amp; moves"
  plain = CLEANINGS[cleaning](caption)
  assert plain != caption
  np.testing.assert_array_equal(
    clean.encode([caption])[0], encoder.encode([plain])[0]
  )
  assert clean.identity != encoder.identity


def test_unknown_cleaning_is_told(encoder):
  with pytest.raises(UserError, match=r"cleaning='iff' .*none, lower, if"):
    TextEncoder.random(cleaning="iff")


def test_cache_gives_what_the_encoder_gives(encoder, tmp_path):
  cache = TextCache(encoder, tmp_path)
  order = [CAPTIONS[i] for i in (3, 0, 2, 0)]
  for _ in range(2):
    for ours, theirs in zip(cache(order), encoder.encode(order), strict=True):
      assert ours.dtype == theirs.dtype
      np.testing.assert_array_equal(ours, theirs)
  assert len(_entries(tmp_path)) == 3


def test_second_run_encodes_nothing_and_needs_no_weights(counting, tmp_path):
  first = TextCache(counting, tmp_path)
  assert first.fill(iter(CAPTIONS + CAPTIONS)) == 5
  assert first.fill(CAPTIONS) == 0
  expected = first(CAPTIONS)
  assert counting.encoded == CAPTIONS
  assert counting.made == 1
  second = TextCache(counting, tmp_path, identity=first.identity)
  assert second.fill(CAPTIONS) == 0
  for ours, theirs in zip(second(CAPTIONS), expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert counting.made == 1
  second([*CAPTIONS[:2], "a dog"])
  assert counting.encoded == [*CAPTIONS, "a dog"]
  assert counting.made == 2


def test_released_weights_are_made_again_only_for_a_miss(counting, tmp_path):
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
def test_damaged_entry_is_made_again(counting, tmp_path, damage):
  expected = TextCache(counting, tmp_path)(CAPTIONS)
  entry = _entries(tmp_path)[2]
  whole = entry.read_bytes()
  entry.write_bytes(damage(whole))
  counting.encoded.clear()
  assert TextCache(counting, tmp_path).fill(CAPTIONS) == 1
  assert len(counting.encoded) == 1
  assert entry.read_bytes() == whole
  entry.write_bytes(damage(whole))
  for ours, theirs in zip(
    TextCache(counting, tmp_path)(CAPTIONS), expected, strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert entry.read_bytes() == whole


def test_entry_of_another_caption_is_not_taken(counting, tmp_path):
  cache = TextCache(counting, tmp_path)
  expected = cache(CAPTIONS)[0]
  a, b = _entries(tmp_path)[:2]
  a.write_bytes(b.read_bytes())
  ours = TextCache(counting, tmp_path)(CAPTIONS)[0]
  np.testing.assert_array_equal(ours, expected)


def test_encoders_do_not_share_entries(encoder, tmp_path):
  other = TextEncoder.random(max_length=12, seed=1)
  ours = TextCache(encoder, tmp_path)(CAPTIONS[:1])[0]
  theirs = TextCache(other, tmp_path)(CAPTIONS[:1])[0]
  assert np.abs(ours - theirs).max() > 0.1
  assert len(_entries(tmp_path)) == 2


def test_recorded_identity_of_another_encoder_is_told(encoder, tmp_path):
  cache = TextCache(encoder, tmp_path, identity="0" * 64)
  with pytest.raises(UserError, match="made by another encoder"):
    cache(CAPTIONS[:1])
  assert not _entries(tmp_path)


def test_memory_is_bounded_and_keeps_what_was_used_last(counting, tmp_path):
  entry_bytes = 12 * 64 * 4 + 12
  cache = TextCache(counting, tmp_path, memory_bytes=2 * entry_bytes)
  cache(CAPTIONS[:2])
  cache(CAPTIONS[:1])
  cache(CAPTIONS[2:3])  # Pushes out CAPTIONS[1].
  for entry in _entries(tmp_path):
    entry.unlink()
  counting.encoded.clear()
  cache([CAPTIONS[0], CAPTIONS[2]])
  assert counting.encoded == []
  cache(CAPTIONS)  # More at once than memory holds.
  assert sorted(counting.encoded) == sorted(
    [CAPTIONS[1], CAPTIONS[3], CAPTIONS[4]]
  )


def test_callers_cannot_change_what_is_kept(encoder, tmp_path):
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
  shown = capsys.readouterr()
  assert "5/5" in shown.err
  assert shown.out == ""
  cache.fill(CAPTIONS)
  assert capsys.readouterr() == ("", "")


def test_cut_captions_are_told(encoder, tmp_path):
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
