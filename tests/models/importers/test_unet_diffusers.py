"""The published configs of DeepFloyd IF, round trips, unsupported keys."""

import dataclasses
import math

import numpy as np
import pytest

from configs import common
from lumiere_jax.errors import UserError
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers.unet_diffusers import (
  from_diffusers,
  spatial_leaves,
  tensor_names,
  to_diffusers,
)
from lumiere_jax.models.importers.unet_diffusers_config import (
  config_from_diffusers,
  config_to_diffusers,
)
from lumiere_jax.models.unet import abstract_params
from tests.references import unets
from tests.stand_ins import random_leaves

# What the config.json of the published weights hold, save keys that are null.
IF_I_XL = {
  "_class_name": "UNet2DConditionModel",
  "_diffusers_version": "0.17.0.dev0",
  "_name_or_path": "DeepFloyd/IF-I-XL-v1.0",
  "act_fn": "gelu",
  "addition_embed_type": "text",
  "addition_embed_type_num_heads": 64,
  "attention_head_dim": 64,
  "block_out_channels": [704, 1408, 2112, 2816],
  "center_input_sample": False,
  "class_embed_type": None,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "cross_attention_dim": 2816,
  "cross_attention_norm": "group_norm",
  "down_block_types": [
    "ResnetDownsampleBlock2D",
    *["SimpleCrossAttnDownBlock2D"] * 3,
  ],
  "downsample_padding": 1,
  "dual_cross_attention": False,
  "encoder_hid_dim": 4096,
  "encoder_hid_dim_type": "text_proj",
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 3,
  "layers_per_block": 3,
  "mid_block_only_cross_attention": None,
  "mid_block_scale_factor": 1,
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "only_cross_attention": False,
  "out_channels": 6,
  "resnet_out_scale_factor": 1.0,
  "resnet_skip_time_act": False,
  "resnet_time_scale_shift": "scale_shift",
  "sample_size": 64,
  "time_embedding_type": "positional",
  "up_block_types": [
    *["SimpleCrossAttnUpBlock2D"] * 3,
    "ResnetUpsampleBlock2D",
  ],
  "upcast_attention": False,
  "use_linear_projection": False,
}

IF_II_L = IF_I_XL | {
  "block_out_channels": [160, 320, 640, 960, 1280],
  "class_embed_type": "timestep",
  "cross_attention_dim": 1280,
  "down_block_types": [
    *["ResnetDownsampleBlock2D"] * 3,
    *["SimpleCrossAttnDownBlock2D"] * 2,
  ],
  "in_channels": 6,
  "layers_per_block": [2, 2, 3, 5, 5],
  "mid_block_scale_factor": 1.4142271248762552,
  "resnet_out_scale_factor": 1.4142271248762552,
  "resnet_skip_time_act": True,
  "sample_size": 256,
  "time_embedding_act_fn": "gelu",
  "time_embedding_dim": 1280,
  "up_block_types": [
    *["SimpleCrossAttnUpBlock2D"] * 2,
    *["ResnetUpsampleBlock2D"] * 3,
  ],
}


@pytest.mark.parametrize(
  ("content", "ours", "size"),
  [
    (IF_I_XL, common.IF_I_XL, 4_304_695_110),
    (IF_II_L, common.IF_II_L, 1_243_277_190),
  ],
  ids=["IF-I-XL", "IF-II-L"],
)
def test_published_configs_and_sizes(content, ours, size):
  config = config_from_diffusers(content, "config.json")
  assert config == dataclasses.replace(ours, skip_scale=config.skip_scale)
  assert config.skip_scale == pytest.approx(ours.skip_scale, rel=1e-12)
  leaves = abstract_params(config)
  assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == size
  theirs = to_diffusers(leaves, config)
  assert sum(tensor.size for tensor in theirs.values()) == size


@pytest.mark.parametrize("name", unets.CONFIGS)
def test_configs_survive_the_round_trip(name):
  config = config_from_diffusers(unets.CONFIGS[name], "config.json")
  back = config_from_diffusers(config_to_diffusers(config, 8), "config.json")
  assert back == config


@pytest.mark.parametrize("name", unets.CONFIGS)
def test_leaves_survive_the_round_trip_to_the_bit(name):
  config = config_from_diffusers(unets.CONFIGS[name], "config.json")
  flat = random_leaves(config, 0)
  tensors = to_diffusers(flat, config)
  back = from_diffusers(tensors, config, "model")
  assert back.keys() == flat.keys()
  for path, leaf in back.items():
    assert (leaf.shape, leaf.dtype) == (flat[path].shape, np.float16)
    np.testing.assert_array_equal(leaf, flat[path])
  for tensor in tensors.values():
    assert np.asarray(tensor).shape == tensor.shape


def test_every_leaf_is_made_of_tensors_of_its_own():
  names = tensor_names(common.IF_II_L)
  every = [name for parts in names.values() for name in parts]
  assert len(every) == len(set(every))
  assert names.keys() == spatial_leaves(common.IF_II_L).keys()


def test_of_a_video_model_the_spatial_part_is_taken():
  config = common.inflated(common.IF_TINY, common.TINY_TEMPORAL)
  config = dataclasses.replace(config.for_clips(16), cond_channels=4)
  spatial = to_diffusers(random_leaves(config, 0), config)
  image = to_diffusers(random_leaves(common.IF_TINY, 0), common.IF_TINY)
  assert spatial.keys() == image.keys()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("_class_name", "UNet2DModel"),
    ("act_fn", "mish"),
    ("addition_embed_type", "image"),
    ("attention_head_dim", [64, 64, 64, 32]),
    ("block_out_channels", None),
    ("block_out_channels", 704),
    ("block_out_channels", [704, "a", 1, 2]),
    ("addition_embed_type_num_heads", "64"),
    ("cross_attention_dim", []),
    ("layers_per_block", 0),
    ("resnet_out_scale_factor", 0),
    ("down_block_types", None),
    ("up_block_types", [[], 1, None, {}]),
    ("class_embed_type", "projection"),
    ("conv_in_kernel", 5),
    ("cross_attention_norm", None),
    ("down_block_types", ["CrossAttnDownBlock2D"] * 4),
    ("dropout", 0.1),
    ("encoder_hid_dim", None),
    ("encoder_hid_dim_type", "image_proj"),
    ("flip_sin_to_cos", False),
    ("in_channels", 4),
    ("layers_per_block", [3, 3]),
    ("mid_block_only_cross_attention", True),
    ("mid_block_scale_factor", 2.0),
    ("mid_block_type", "UNetMidBlock2DCrossAttn"),
    ("norm_eps", 1e-6),
    ("norm_num_groups", 16),
    ("out_channels", 4),
    ("resnet_skip_time_act", True),
    ("resnet_time_scale_shift", "default"),
    ("time_embedding_act_fn", "gelu"),
    ("time_embedding_dim", 1024),
    ("time_embedding_type", "fourier"),
    ("timestep_post_act", "silu"),
    ("up_block_types", ["SimpleCrossAttnUpBlock2D"] * 4),
    ("something_new", 3),
  ],
)
def test_unsupported_keys_are_named(key, value):
  named = "time_embedding_act_fn" if key == "resnet_skip_time_act" else key
  with pytest.raises(UserError, match=rf"x/config\.json.*{named}"):
    config_from_diffusers(IF_I_XL | {key: value}, "x/config.json")


def test_bad_widths_name_the_file():
  content = IF_I_XL | {"attention_head_dim": 60}
  with pytest.raises(UserError, match=r"x/config\.json.*head_dim=60"):
    config_from_diffusers(content, "x/config.json")


@pytest.mark.parametrize("change", [{"mask_text": True}, {"norm_groups": 16}])
def test_fields_that_diffusers_does_not_support(change):
  config = dataclasses.replace(common.IF_TINY, **change)
  with pytest.raises(UserError, match=next(iter(change))):
    config_to_diffusers(config, 8)


def test_values_that_the_config_implies():
  first, second = (config_from_diffusers(c, "") for c in (IF_I_XL, IF_II_L))
  assert UNetConfig.mask_text and not first.mask_text
  assert first.low_resolution == "half_pixel"
  assert second.low_resolution == "corners"


def test_all_misfits_are_named():
  config = common.IF_TINY
  tensors = to_diffusers(random_leaves(config, 0), config)
  left_out = ["conv_in.bias", "conv_out.bias"]
  for name in left_out:
    del tensors[name]
  tensors["extra.one"] = tensors["extra.two"] = np.zeros(1)
  tensors["conv_in.weight"] = np.zeros((1, 2))
  tensors["conv_norm_out.bias"] = np.zeros(3)
  with pytest.raises(UserError) as caught:
    from_diffusers(tensors, config, "IF/unet")
  told = str(caught.value)
  for part in (*left_out, "extra.one, extra.two", "conv_in.weight (1, 2)"):
    assert part in told
  assert "conv_norm_out.bias (3,) instead of (32,)" in told
