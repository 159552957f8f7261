"""Stores outputs of T5 in transformers and of IF's cleaning in diffusers.

.venv-parity/bin/python -m tests.references.make_t5

Weights are not stored: script and tests draw the same ones.
"""

import json
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from tests.references import t5
from tests.references.captions import nasty_captions
from tests.references.strings import mixed_strings

EMBEDDING_AGAIN = "encoder.embed_tokens.weight"


def encoder(config: dict[str, Any], seed: int):
  """The float32 encoder of transformers with random weights, and shapes."""
  model = transformers.T5EncoderModel(transformers.T5Config(**config)).eval()
  state = model.state_dict()
  shapes = {k: list(v.shape) for k, v in state.items() if k != EMBEDDING_AGAIN}
  drawn = t5.weights(config, shapes, seed)
  drawn[EMBEDDING_AGAIN] = drawn["shared.weight"]
  model.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
  return model, shapes


def features(model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Features of an encoder of transformers, float32."""
  with torch.no_grad():
    inputs = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
    return model(*inputs).last_hidden_state.numpy()


def text_ids(texts: list[str]) -> list[list[int]]:
  """Token ids of transformers, without padding."""
  model = transformers.T5Tokenizer.from_pretrained(t5.SPIECE.parent)
  return model(texts)["input_ids"]


def cleaned(caption: str) -> str:
  """A prompt, cleaned by IF in diffusers."""
  pipeline = object.__new__(diffusers.IFPipeline)  # No part of it is used.
  return pipeline._text_preprocessing(caption, clean_caption=True)[0]


def main() -> None:
  """Writes all references."""
  t5.FOLDER.mkdir(exist_ok=True)
  made_with = {
    m.__name__: m.__version__ for m in (torch, transformers, diffusers, np)
  }
  cases = {}
  for seed, (name, config) in enumerate(t5.CONFIGS.items()):
    model, shapes = encoder(config, seed)
    out = features(model, *t5.tokens(config["vocab_size"]))
    np.save(t5.FOLDER / f"{name}.npy", out)
    cases[name] = {"config": config, "seed": seed, "shapes": shapes}
  _write("encoder", {"made_with": made_with, "cases": cases})
  strings = mixed_strings(t5.STRINGS, t5.SEED)
  tokens = {
    "made_with": made_with,
    "seed": t5.SEED,
    "strings": t5.digest(strings),
    "ids": t5.digest(text_ids(strings)),
    "texts": dict(zip(t5.TEXTS, text_ids(list(t5.TEXTS)), strict=True)),
  }
  _write("tokens", tokens)
  pairs = [[c, cleaned(c)] for c in nasty_captions(200, t5.SEED)]
  _write("cleaning", {"made_with": made_with, "pairs": pairs})


def _write(name: str, content: dict[str, Any]) -> None:
  text = json.dumps(content, indent=1, ensure_ascii=False)
  (t5.FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
