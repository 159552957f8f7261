"""Text encoders: features, weight files, configs and bundles."""

import dataclasses
import gc
import tracemalloc

import jax
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models.caption_cleaning import CLEANINGS
from lumiere_jax.models.params import flatten
from lumiere_jax.models.t5 import (
  T5_SIZES,
  T5Config,
  T5Encoder,
  abstract_params,
  init_params,
)
from lumiere_jax.models.text_encoder import (
  TextEncoder,
  open_t5,
  open_text_encoder,
  text_encoder_of,
  write_text_part,
)
from lumiere_jax.models.tokenizer import (
  Tokenizer,
  default_tokenizer_path,
  train_tokenizer,
)
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.bundle import TEXT, Bundle
from tests.references.t5 import params_to_hf, write_hf, write_t5x

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


def test_features_do_not_depend_on_the_batch(encoder):
  text, _ = encoder.encode(CAPTIONS)
  for i, caption in enumerate(CAPTIONS):
    np.testing.assert_array_equal(encoder.encode([caption])[0][0], text[i])
  reversed_, _ = encoder.encode(CAPTIONS[::-1] * 2)
  np.testing.assert_array_equal(reversed_[:5], text[::-1])
  np.testing.assert_array_equal(reversed_[5:], text[::-1])


def test_captions_compile_once(encoder, caplog):
  encoder.encode(CAPTIONS[:1])
  with jax.log_compiles(), caplog.at_level("WARNING"):
    encoder.encode(CAPTIONS)
    encoder.encode(CAPTIONS[2:4])
  assert "ompil" not in caplog.text


def test_features_depend_on_later_words(encoder):
  text, _ = encoder.encode(CAPTIONS[:2])
  assert np.abs(text[0] - text[1]).max(axis=-1)[:6].min() > 1e-2


def test_tokenizer_of_another_encoder_is_refused(encoder):
  small = dataclasses.replace(encoder.config, vocab_size=1000)
  with pytest.raises(UserError, match=r"1024 pieces exceed .* 1000"):
    TextEncoder(encoder.tokenizer, small, init_params(small))
  with pytest.raises(UserError, match='did you mean "tiny"'):
    TextEncoder.random("tiney")


def test_identity_depends_on_tokenizer_config_and_params(encoder, tmp_path):
  names = ("tokenizer", "config", "params")
  same = {name: getattr(encoder, name) for name in names}
  make = lambda **changes: TextEncoder(**same | changes).identity
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
  return write_hf(folder, encoder.config, params_to_hf(encoder.params))


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
  file = write_t5x(tmp_path / "checkpoint_3", encoder.params)
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


def test_unknown_cleaning_is_an_error(encoder):
  with pytest.raises(UserError, match=r"cleaning='iff' .*none, lower, if"):
    TextEncoder.random(cleaning="iff")


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
  captions = [" A RED circle", ""]
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded.encode(captions),
    encoder.encode(captions),
  )


def test_parts_hold_the_tensors_themselves(encoder, tmp_path, monkeypatch):
  """They are fetched one at a time. Without cleaning there is no key for it."""
  saved = {}
  monkeypatch.setattr(
    safetensors, "save", lambda path, flat: saved.update(flat)
  )
  part = write_text_part(tmp_path, encoder)
  for path, leaf in flatten(encoder.params).items():
    assert saved[path] is leaf
  assert set(part.meta) == {"identity", "max_length", "config"}


CONFIG = T5Config(
  vocab_size=2048, d_model=256, d_ff=512, num_heads=4, d_kv=64, num_layers=8
)

LARGEST = 4 * CONFIG.vocab_size * CONFIG.d_model


@pytest.mark.parametrize("t5x", [False, True])
def test_peak_memory_of_loading(tmp_path, t5x):
  """That of the result, and of one tensor more."""
  params = init_params(CONFIG)
  if t5x:
    source = write_t5x(tmp_path / "checkpoint_1", params)
  else:
    source = write_hf(tmp_path, CONFIG, params_to_hf(params))
  abstract_params(CONFIG)  # Traced here, so that it is not counted.
  gc.collect()
  tracemalloc.start()
  config, leaves = open_t5(source, "bfloat16")
  opened = tracemalloc.get_traced_memory()[0]
  loaded = {path: np.asarray(leaf) for path, leaf in leaves.items()}
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  size = sum(x.nbytes for x in jax.tree.leaves(loaded))
  print(f"{size / 1e6:.1f} MB took {peak / 1e6:.1f} MB")
  assert config.dtype == "bfloat16"
  assert opened < 0.1 * size
  # A tensor as read, its bytes, and the converted one.
  assert peak < size + 3 * LARGEST < 2 * size
