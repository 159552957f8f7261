"""Our T5 v1.1 encoder against transformers', with copied random weights."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from lumiere_jax.models.t5 import (
  T5_SIZES,
  T5Config,
  T5Encoder,
  relative_position_bucket,
)
from lumiere_jax.models.t5_hf import load_hf, params_from_hf, params_to_hf
from lumiere_jax.models.tokenizer import Tokenizer

pytestmark = pytest.mark.parity

T5_MODEL = (
  pathlib.Path(__file__).parents[2] / "../shared/assets/tokenizers/t5"
) / "spiece.model"
SMALL = T5Config(
  vocab_size=100, d_model=48, d_ff=80, num_heads=6, d_kv=16, num_layers=4
)
CONFIGS = {
  "odd": SMALL,
  "few buckets": dataclasses.replace(SMALL, num_buckets=16, max_distance=60),
  "small": T5_SIZES["small"],
}


def _reference(config, seed=0):
  """transformers' encoder with random weights, norms and biases included."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(seed)
  model = transformers.T5EncoderModel(
    transformers.T5Config(
      vocab_size=config.vocab_size,
      d_model=config.d_model,
      d_ff=config.d_ff,
      num_heads=config.num_heads,
      d_kv=config.d_kv,
      num_layers=config.num_layers,
      relative_attention_num_buckets=config.num_buckets,
      relative_attention_max_distance=config.max_distance,
      feed_forward_proj="gated-gelu",
    )
  ).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      if "layer_norm" in name:
        value.add_(0.3 * torch.randn_like(value))
      if "relative_attention_bias" in name:
        value.normal_()
  return torch, model


def _tensors(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_encoder_agrees_with_transformers(config):
  torch, model = _reference(config)
  rng = np.random.default_rng(0)
  lengths = np.array([150, 77, 20, 1])
  ids = rng.integers(2, config.vocab_size, (4, 150))
  mask = np.arange(150) < lengths[:, None]
  ids = np.where(mask, ids, 0).astype(np.int32)
  params = params_from_hf(_tensors(model), config)
  ours = jax.jit(T5Encoder(config).apply)({"params": params}, ids, mask)
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
    ).last_hidden_state.numpy()
  error = np.abs(np.asarray(ours) - theirs).max()
  print(f"largest difference from transformers: {error:.2e}")
  # Padding too: DeepFloyd IF reads those features. Features have RMS about 1,
  # and the two orders of float32 summation alone give up to 1e-5 at d_ff 1024.
  assert error < 2e-5


def test_our_weights_load_into_transformers():
  torch, model = _reference(SMALL)
  _, other = _reference(SMALL, seed=1)
  tensors = params_to_hf(params_from_hf(_tensors(model), SMALL))
  state = {k: torch.tensor(np.array(v)) for k, v in tensors.items()}
  faults = other.load_state_dict(state, strict=False)
  assert not faults.unexpected_keys
  assert set(faults.missing_keys) <= {"encoder.embed_tokens.weight"}
  for name, value in other.state_dict().items():
    np.testing.assert_array_equal(value.numpy(), _tensors(model)[name])


@pytest.mark.parametrize("shard", ["50GB", "40KB"])
def test_saved_models_load(tmp_path, shard):
  _, model = _reference(SMALL)
  model.save_pretrained(tmp_path, max_shard_size=shard)
  assert len(list(tmp_path.glob("*.safetensors"))) > (shard == "40KB")
  config, params = load_hf(tmp_path)
  assert config == SMALL
  expected = params_from_hf(_tensors(model), SMALL)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 60)])
def test_buckets_agree_with_transformers(num_buckets, max_distance):
  torch, model = _reference(SMALL)
  attention = model.encoder.block[0].layer[0].SelfAttention
  distance = np.arange(-400, 401)
  theirs = attention._relative_position_bucket(
    torch.tensor(distance),
    num_buckets=num_buckets,
    max_distance=max_distance,
  )
  ours = relative_position_bucket(distance, num_buckets, max_distance)
  np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.skipif(not T5_MODEL.exists(), reason="T5's tokenizer not at hand")
def test_tokens_agree_with_transformers(tmp_path):
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("google.protobuf")
  theirs = transformers.T5Tokenizer.from_pretrained(T5_MODEL.parent)
  texts = [
    "Hello world",
    "",
    "a person signs the word again in sign language",
    "Ünïcödé ﬁsh  with   spaces, 35mm film... (4k)",
    "世界",
  ]
  batch = theirs(texts, padding="max_length", max_length=24, truncation=True)
  tokens, mask = Tokenizer(T5_MODEL, 24).encode(texts)
  np.testing.assert_array_equal(tokens, batch["input_ids"])
  np.testing.assert_array_equal(mask, np.array(batch["attention_mask"]) == 1)
