"""Small U-Nets of DeepFloyd IF in every variant, and their test inputs."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np

from lumiere_jax.storage import safetensors
from tests.references.drawn import draw

FOLDER = Path(__file__).parent / "unets"
STEPS = np.array([0, 1, 500, 999])

LENGTHS = (9, 4, 1, 6)
"""Of the captions, padded to the first."""

_DOWN, _UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"

_CROSS_DOWN, _CROSS_UP = (
  "SimpleCrossAttnDownBlock2D",
  "SimpleCrossAttnUpBlock2D",
)

# At least two channels per group: a norm of one would hide the bias before it.
IF_I = {
  "_class_name": "UNet2DConditionModel",
  "act_fn": "gelu",
  "addition_embed_type": "text",
  "addition_embed_type_num_heads": 8,
  "attention_head_dim": 16,
  "block_out_channels": [64, 96, 128],
  "class_embed_type": None,
  "cross_attention_dim": 128,
  "cross_attention_norm": "group_norm",
  "down_block_types": [_DOWN, _CROSS_DOWN, _CROSS_DOWN],
  "encoder_hid_dim": 48,
  "encoder_hid_dim_type": "text_proj",
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 3,
  "layers_per_block": 1,
  "mid_block_scale_factor": 1,
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "only_cross_attention": False,
  "out_channels": 6,
  "resnet_out_scale_factor": 1.0,
  "resnet_skip_time_act": False,
  "resnet_time_scale_shift": "scale_shift",
  "sample_size": 8,
  "time_embedding_dim": 128,
  "time_embedding_type": "positional",
  "up_block_types": [_CROSS_UP, _CROSS_UP, _UP],
}

IF_II = IF_I | {
  "block_out_channels": [64, 64, 96, 128],
  "class_embed_type": "timestep",
  "down_block_types": [_DOWN, _DOWN, _CROSS_DOWN, _CROSS_DOWN],
  "in_channels": 6,
  "layers_per_block": [1, 2, 1, 2],
  "mid_block_scale_factor": 1.4142271248762552,
  "resnet_out_scale_factor": 1.4142271248762552,
  "resnet_skip_time_act": True,
  "sample_size": 32,
  "time_embedding_act_fn": "gelu",
  "up_block_types": [_CROSS_UP, _CROSS_UP, _UP, _UP],
}

CONFIGS: dict[str, dict[str, Any]] = {
  "IF-I": IF_I,
  "IF-II": IF_II,
  "IF-I, text alone": IF_I | {"only_cross_attention": True},
  "IF-II, text alone": IF_II
  | {
    "only_cross_attention": [False, False, False, True],
    "mid_block_only_cross_attention": True,
    "down_block_types": [_DOWN, _DOWN, _DOWN, _CROSS_DOWN],
    "up_block_types": [_CROSS_UP, _UP, _UP, _UP],
  },
  "IF-I, fixed variance": IF_I | {"out_channels": 3, "layers_per_block": 2},
  "IF-I, default width of the embedding": {
    k: v for k, v in IF_I.items() if k != "time_embedding_dim"
  }
  | {"block_out_channels": [32, 64, 128], "attention_head_dim": [16, 16, 16]},
  "IF-I, every kind of attention": IF_I
  | {
    "act_fn": "silu",
    "down_block_types": [_CROSS_DOWN] * 3,
    "only_cross_attention": [False, True, False],
    "up_block_types": [_CROSS_UP] * 3,
  },
  "IF-II, noise level and scale alone": IF_II
  | {
    "resnet_skip_time_act": False,
    "time_embedding_act_fn": None,
    "mid_block_scale_factor": 2.0,
    "resnet_out_scale_factor": 2.0,
  },
}


def weights(
  shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
  """The tensors of a model.

  Text projection and first convolution are small, so that the epsilons of the
  norms after them matter.
  """
  small = ("conv_in", "encoder_hid_proj")
  return {
    name: tensor * np.float32(0.01 if name.startswith(small) else 1)
    for name, tensor in draw(shapes, seed).items()
  }


def inputs(
  config: Mapping[str, Any], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Images (4, h, w, c), text (4, l, e) and noise levels (4,) as steps.

  Images are wider than high; texts are padded with one random vector.
  """
  rng = np.random.default_rng(seed)
  scale = 2 ** (len(config["block_out_channels"]) - 1)
  size = (len(STEPS), 2 * scale, 3 * scale, config["in_channels"])
  picture = rng.standard_normal(size, np.float32)
  width = config["encoder_hid_dim"]
  text = rng.standard_normal((len(STEPS), max(LENGTHS), width), np.float32)
  padding = rng.standard_normal(width, np.float32)
  real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
  text = np.where(real[..., None], text, padding)
  return picture, text, rng.permutation(STEPS)


def write_folder(
  folder: Path,
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  scheduler: Mapping[str, Any] | None = None,
) -> Path:
  """Writes a model in the format of diffusers."""
  unet = folder / "unet"
  unet.mkdir(parents=True, exist_ok=True)
  (unet / "config.json").write_text(json.dumps(config))
  file = unet / "diffusion_pytorch_model.safetensors"
  safetensors.save(file, tensors, {"format": "pt"})
  if scheduler:
    (folder / "scheduler").mkdir(exist_ok=True)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler))
  return folder
