"""The encoder and T5's tokenizer against what transformers gave.

`python -m tests.references.make_t5` made the references; tests/parity asks
transformers itself.
"""

import json

import jax
import numpy as np
import pytest

from lumiere_jax.models.t5 import T5Encoder
from lumiere_jax.models.text_encoder import load_t5
from lumiere_jax.models.tokenizer import Tokenizer
from lumiere_jax.storage import safetensors
from tests.references import t5
from tests.references.strings import mixed_strings

ENCODER = json.loads((t5.FOLDER / "encoder.json").read_text())
TOKENS = json.loads((t5.FOLDER / "tokens.json").read_text(encoding="utf-8"))

genuine = pytest.mark.skipif(
  not t5.SPIECE.exists(), reason="T5's tokenizer not at hand"
)


@pytest.mark.parametrize("name", ENCODER["cases"])
def test_features_are_those_of_transformers(tmp_path, name):
  case = ENCODER["cases"][name]
  assert case["config"] == t5.CONFIGS[name]
  tensors = t5.weights(**case)
  safetensors.save(tmp_path / "model.safetensors", tensors)
  (tmp_path / "config.json").write_text(json.dumps(case["config"]))
  config, params = load_t5(tmp_path)
  ids, mask = t5.tokens(config.vocab_size)
  ours = jax.jit(T5Encoder(config).apply)({"params": params}, ids, mask)
  error = t5.relative_error(ours, np.load(t5.FOLDER / f"{name}.npy"))
  print(f"{name}: differs from transformers by {error:.2e} of a feature")
  assert error < 1e-5


@genuine
def test_ids_are_those_of_transformers():
  tokenizer = Tokenizer(t5.SPIECE, 64)
  for text, ids in TOKENS["texts"].items():
    tokens, mask = tokenizer.encode([text])
    assert tokens[mask].tolist() == ids, text


@genuine
def test_ids_of_many_scripts_are_those_of_transformers():
  strings = mixed_strings(t5.STRINGS, TOKENS["seed"])
  assert t5.digest(strings) == TOKENS["strings"]
  tokens, mask = Tokenizer(t5.SPIECE, 64).encode(strings)
  ids = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
  assert t5.digest(ids) == TOKENS["ids"]
