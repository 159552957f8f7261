"""DeepFloyd IF at its published widths against diffusers, with random weights.

.venv-parity/bin/python -m benchmarks.if_at_size --size=IF-I-M

diffusers builds a model of the size, saves it in the published layout and runs
it on one image; ours imports the folder and runs on the same image. Needs torch
and diffusers, and memory for two copies of the model (IF-II-L: 10 GB).
"""

import gc
from pathlib import Path
import tempfile
import time

from absl import app, flags
import diffusers
import torch

from lumiere_jax.models.importers.unet_diffusers_config import (
  config_from_diffusers,
)
from tests.references import make_if, ours, unets

_LEVELS = (1, 2, 3, 4)
_SHARED = {
  "addition_embed_type_num_heads": 64,
  "attention_head_dim": 64,
  "encoder_hid_dim": 4096,
}


def _first(width: int) -> dict:
  """IF-I with this many channels at its finest level."""
  down, up = unets.IF_I["down_block_types"], unets.IF_I["up_block_types"]
  return (
    unets.IF_I
    | _SHARED
    | {
      "block_out_channels": [width * n for n in _LEVELS],
      "cross_attention_dim": width * 4,
      "down_block_types": [*down, down[-1]],
      "layers_per_block": 3,
      "sample_size": 64,
      "time_embedding_dim": width * 4,
      "up_block_types": [up[0], *up],
    }
  )


CONFIGS = {
  "IF-I-M": _first(192),
  "IF-I-L": _first(320),
  "IF-II-L": unets.IF_II
  | _SHARED
  | {
    "block_out_channels": [160, 320, 640, 960, 1280],
    "cross_attention_dim": 1280,
    "down_block_types": [
      *["ResnetDownsampleBlock2D"] * 3,
      *["SimpleCrossAttnDownBlock2D"] * 2,
    ],
    "layers_per_block": [2, 2, 3, 5, 5],
    "sample_size": 256,
    "time_embedding_dim": 1280,
    "up_block_types": [
      *["SimpleCrossAttnUpBlock2D"] * 2,
      *["ResnetUpsampleBlock2D"] * 3,
    ],
  },
}

SIZE = flags.DEFINE_enum("size", "IF-I-M", list(CONFIGS), "Published size.")


def main(argv: list[str]) -> None:
  """Prints the largest difference over the output's standard deviation."""
  del argv
  config = CONFIGS[SIZE.value]
  assert config_from_diffusers(config, "config.json")
  with tempfile.TemporaryDirectory() as folder:
    start = time.time()
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel.from_config(config).eval()
    count = sum(x.numel() for x in model.parameters())
    with torch.no_grad():
      for name, value in model.named_parameters():
        if value.ndim > 1:
          value.normal_(std=value[0].numel() ** -0.5)
        else:
          value.normal_(
            mean=float("norm" in name and "weight" in name), std=0.3
          )
    theirs = make_if.output(model, config)
    model.save_pretrained(Path(folder) / "unet")
    del model
    gc.collect()
    print(f"diffusers: {time.time() - start:.0f} s", flush=True)
    error = ours.difference(ours.output(Path(folder)), theirs)
  print(f"{SIZE.value}: {count:,} parameters, {error:.1e}")


if __name__ == "__main__":
  app.run(main)
