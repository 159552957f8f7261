"""Our T5 encoder, tokens and captions against transformers' and diffusers'."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lumiere_jax.models.caption_cleaning import clean
from lumiere_jax.models.t5 import (
  T5_SIZES,
  T5Config,
  T5Encoder,
  relative_position_bucket,
)
from lumiere_jax.models.tokenizer import Tokenizer
from tests.references import t5
from tests.references.captions import nasty_captions
from tests.references.strings import mixed_strings
from tests.references.t5 import hf_config, load_t5, params_from_hf, params_to_hf

pytestmark = pytest.mark.parity

SMALL = T5Config(
  vocab_size=100, d_model=48, d_ff=80, num_heads=6, d_kv=16, num_layers=4
)

CONFIGS = {
  "odd": SMALL,
  "few buckets": dataclasses.replace(SMALL, num_buckets=16, max_distance=60),
  "one head": dataclasses.replace(SMALL, num_heads=1, d_kv=64, num_layers=1),
  "deep": dataclasses.replace(SMALL, num_layers=24),
  "small": T5_SIZES["small"],
}

genuine = pytest.mark.skipif(
  not t5.SPIECE.exists(), reason="T5's tokenizer not at hand"
)


@pytest.fixture(scope="module")
def make():
  """The script that makes the references; it needs torch."""
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  pytest.importorskip("diffusers")
  from tests.references import make_t5

  return make_t5


def _tensors(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def _features(tensors, config, ids, mask):
  params = params_from_hf(tensors, config)
  return jax.jit(T5Encoder(config).apply)({"params": params}, ids, mask)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_encoder_agrees_with_transformers(make, config):
  model, _ = make.encoder(hf_config(config), seed=0)
  ids, mask = t5.tokens(config.vocab_size)
  ours = _features(_tensors(model), config, ids, mask)
  error = t5.relative_error(ours, make.features(model, ids, mask))
  print(f"largest difference from transformers: {error:.2e} of a feature")
  # Padding too: DeepFloyd IF reads those features.
  assert error < 1e-5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bfloat16_stays_near_transformers_float32(make, config):
  model, _ = make.encoder(hf_config(config), seed=0)
  ids, mask = t5.tokens(config.vocab_size)
  half = dataclasses.replace(config, dtype="bfloat16")
  ours = np.asarray(_features(_tensors(model), half, ids, mask))
  theirs = make.features(model, ids, mask)
  error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
  print(f"bfloat16 differs by {error:.2%} of the features' RMS")
  assert 1e-4 < error < 0.05


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 64, 127, 128])
def test_every_length_agrees_with_transformers(make, length):
  model, _ = make.encoder(hf_config(SMALL), seed=1)
  ids, _ = t5.tokens(SMALL.vocab_size)
  ids = ids[:1, :length]
  ours = _features(_tensors(model), SMALL, ids, ids >= 0)
  theirs = make.features(model, ids, ids >= 0)
  assert t5.relative_error(ours, theirs) < 1e-5


def test_our_weights_load_into_transformers(make):
  import torch

  model, _ = make.encoder(hf_config(SMALL), seed=0)
  other, _ = make.encoder(hf_config(SMALL), seed=1)
  tensors = params_to_hf(params_from_hf(_tensors(model), SMALL))
  state = {k: torch.tensor(np.array(v)) for k, v in tensors.items()}
  faults = other.load_state_dict(state, strict=False)
  assert not faults.unexpected_keys
  assert set(faults.missing_keys) <= {make.EMBEDDING_AGAIN}
  for name, value in other.state_dict().items():
    np.testing.assert_array_equal(value.numpy(), _tensors(model)[name])


@pytest.mark.parametrize("shard", ["50GB", "40KB"])
@pytest.mark.parametrize("full", [False, True])
def test_saved_models_load(make, tmp_path, shard, full):
  import transformers

  model, _ = make.encoder(hf_config(SMALL), seed=0)
  saved = model
  if full:  # with a decoder and a head, which are passed over
    config = transformers.T5Config(**hf_config(SMALL))
    config.tie_word_embeddings = False
    saved = transformers.T5ForConditionalGeneration(config)
    saved.load_state_dict(model.state_dict(), strict=False)
  saved.save_pretrained(tmp_path, max_shard_size=shard)
  assert len(list(tmp_path.glob("*.safetensors"))) > (shard == "40KB")
  config, params = load_t5(tmp_path)
  assert config == SMALL
  expected = params_from_hf(_tensors(model), SMALL)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 60)])
def test_buckets_agree_with_transformers(make, num_buckets, max_distance):
  import torch

  model, _ = make.encoder(hf_config(SMALL), seed=0)
  attention = model.encoder.block[0].layer[0].SelfAttention
  distance = np.arange(-400, 401)
  theirs = attention._relative_position_bucket(
    torch.tensor(distance), num_buckets=num_buckets, max_distance=max_distance
  )
  ours = relative_position_bucket(distance, num_buckets, max_distance)
  np.testing.assert_array_equal(ours, theirs.numpy())


def _ids(texts):
  tokens, mask = Tokenizer(t5.SPIECE, 64).encode(texts)
  return [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]


# transformers rebuilds T5's sentencepiece model, and where its tokens differ
# ours are those of sentencepiece, which T5 was trained with. These differ, and
# are left out of the strings:
# - U+0085 (next line): stripped as a space; sentencepiece has it unknown.
# - Characters joined to those before them (marks, joiners, skin tones): where
#   NFKC changes the beginning of such a cluster, its end is lost or goes
#   unchanged. Accents by themselves agree.
# - Rows of the same character that can be cut in several ways of equal worth
#   (three primes or more, as U+2034 is; seven dots): it cuts another way.
@genuine
def test_tokens_agree_with_transformers(make):
  texts = list(t5.TEXTS) + mixed_strings(t5.STRINGS, t5.SEED)
  differing = [
    text
    for text, ours, theirs in zip(
      texts, _ids(texts), make.text_ids(texts), strict=True
    )
    if ours != theirs
  ]
  print(f"{len(differing)} of {len(texts)} texts have other tokens")
  assert not differing


@genuine
@pytest.mark.parametrize(
  "text", ["\u0085", "\u2047\u0301", "\U0001d536\u0307", "a \u2034"]
)
def test_known_differences_follow_sentencepiece(make, text):
  import sentencepiece

  model = sentencepiece.SentencePieceProcessor(model_file=str(t5.SPIECE))
  assert _ids([text]) == [[*model.encode(text), 1]] != make.text_ids([text])


@genuine
def test_padding_and_cutting_agree_with_transformers(make):
  import transformers

  theirs = transformers.T5Tokenizer.from_pretrained(t5.SPIECE.parent)
  options = {"padding": "max_length", "truncation": True}
  batch = theirs(list(t5.TEXTS), max_length=6, **options)
  with pytest.warns(UserWarning, match="only 6 tokens"):
    tokens, mask = Tokenizer(t5.SPIECE, 6).encode(t5.TEXTS)
  np.testing.assert_array_equal(tokens, batch["input_ids"])
  np.testing.assert_array_equal(mask, np.array(batch["attention_mask"]) == 1)


# bs4 warns of captions that look like paths or addresses.
@pytest.mark.filterwarnings("ignore::bs4.MarkupResemblesLocatorWarning")
def test_cleaning_agrees_with_diffusers(make):
  captions = nasty_captions(10_000, seed=1) + mixed_strings(2_000, seed=1)
  for caption in captions:
    assert clean(caption) == make.cleaned(caption), caption
  print(f"{len(captions)} captions are cleaned alike")


def test_stored_references_are_up_to_date(make):
  pairs = json.loads((t5.FOLDER / "cleaning.json").read_text("utf-8"))["pairs"]
  assert all(make.cleaned(caption) == cleaned for caption, cleaned in pairs)
  cases = json.loads((t5.FOLDER / "encoder.json").read_text())["cases"]
  for name, case in cases.items():
    model, shapes = make.encoder(case["config"], case["seed"])
    assert shapes == case["shapes"]
    out = make.features(model, *t5.tokens(case["config"]["vocab_size"]))
    kept = np.load(t5.FOLDER / f"{name}.npy")
    assert t5.relative_error(out, kept) < 1e-5
