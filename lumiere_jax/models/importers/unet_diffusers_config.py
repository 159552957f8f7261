"""`UNetConfig` from and to config.json of IF's U-Nets in diffusers."""

from collections.abc import Iterable, Mapping
import math
from typing import Any, NoReturn

from lumiere_jax.errors import UserError
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers.hf_checkpoint import check_known

CLASS = "UNet2DConditionModel"

# Keys of which only some values are supported; None includes an absent key. The
# defaults are those of the class in diffusers.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
  "addition_embed_type": ("text",),
  "attention_type": ("default", None),
  "center_input_sample": (False, None),
  "class_embed_type": (None, "timestep"),
  "class_embeddings_concat": (False, None),
  "conv_in_kernel": (3, None),
  "conv_out_kernel": (3, None),
  "cross_attention_norm": ("group_norm",),
  "dropout": (0, None),
  "dual_cross_attention": (False, None),
  "encoder_hid_dim_type": ("text_proj", None),
  "flip_sin_to_cos": (True, None),
  "freq_shift": (0, None),
  "in_channels": (3, 6),
  "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
  "norm_eps": (1e-5, None),
  # The norm of the text always has 32 groups in diffusers.
  "norm_num_groups": (32,),
  "num_attention_heads": (None,),
  "num_class_embeds": (None,),
  "out_channels": (3, 6),
  "resnet_time_scale_shift": ("scale_shift",),
  "time_cond_proj_dim": (None,),
  "time_embedding_type": ("positional", None),
  "timestep_post_act": (None,),
}

# Keys without effect on networks with these blocks.
_IGNORED = (
  *("addition_time_embed_dim", "downsample_padding", "sample_size"),
  *("projection_class_embeddings_input_dim", "upcast_attention"),
  *("transformer_layers_per_block", "use_linear_projection"),
  "reverse_transformer_layers_per_block",
)

_ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "swish": "silu"}

# Block type -> whether it has attention.
_BLOCKS = {
  "ResnetDownsampleBlock2D": False,
  "SimpleCrossAttnDownBlock2D": True,
  "ResnetUpsampleBlock2D": False,
  "SimpleCrossAttnUpBlock2D": True,
}


class _Keys:
  """A config.json; records which keys were read."""

  def __init__(self, content: Mapping[str, Any], name: str):
    self.content = content
    self.name = name
    self.read: set[str] = set()

  def __call__(self, key: str, default: Any = None) -> Any:
    self.read.add(key)
    return self.content.get(key, default)

  def refuse(self, key: str, expected: str) -> NoReturn:
    raise UserError(
      f"{self.name}:",
      f"{key}={self.content.get(key)!r} is not supported, it must be "
      f"{expected}",
      "give a U-Net of DeepFloyd IF",
    )

  def sizes(self, key: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Checks that values of a key are positive integers."""
    values = tuple(values)
    if not values or not all(type(n) is int and n > 0 for n in values):
      self.refuse(key, "made of positive integers")
    return values

  def size(self, key: str, default: Any = None) -> int:
    """A positive integer that must not differ between levels."""
    value = self(key, default)
    values = value if isinstance(value, list) else [value]
    if any(other != values[0] for other in values):
      self.refuse(key, "the same at every level")
    return self.sizes(key, values)[0]

  def each(self, key: str, levels: int, default: Any = None) -> tuple:
    """The values of a key for each level."""
    value = self(key, default)
    if not isinstance(value, list):
      return (value,) * levels
    if len(value) != levels:
      self.refuse(key, f"{levels} values, as block_out_channels")
    return tuple(value)


def config_from_diffusers(content: Mapping[str, Any], name: str) -> UNetConfig:
  """The `UNetConfig` of a config.json; unsupported keys are errors.

  `name` is its path, for errors.
  """
  if content.get("_class_name", CLASS) != CLASS:
    raise UserError(
      f"{name}:",
      f"_class_name={content['_class_name']!r}",
      f"give the folder of a {CLASS} (in a whole pipeline: its `unet`)",
    )
  keys = _Keys(content, name)
  for key, values in _SUPPORTED.items():
    if keys(key) not in values:
      keys.refuse(key, " or ".join(map(repr, values)))
  channels = keys("block_out_channels")
  channels = channels if isinstance(channels, list) else ()
  channels = keys.sizes("block_out_channels", channels)
  levels = len(channels)
  once = bool(keys("resnet_skip_time_act", False))
  width = keys("time_embedding_dim") or 4 * channels[0]
  if width != channels[-1]:
    keys.refuse(
      "time_embedding_dim",
      f"{channels[-1]}, the width of the coarsest level (if absent, it is "
      f"{4 * channels[0]})",
    )
  scale = keys("resnet_out_scale_factor", 1.0)
  if type(scale) not in (int, float) or not 0 < scale < math.inf:
    keys.refuse("resnet_out_scale_factor", "a positive number")
  if keys("mid_block_scale_factor", 1.0) != scale:
    keys.refuse("mid_block_scale_factor", f"{scale!r}, as for other blocks")
  blocks = keys.each("layers_per_block", levels, 2)
  config: dict[str, Any] = {
    "channels": channels,
    "num_res_blocks": keys.sizes("layers_per_block", blocks),
    "attention": _attention(keys, levels),
    "text_dim": keys.size("encoder_hid_dim"),
    "text_channels": keys.size("cross_attention_dim", 1280),
    "pool_heads": keys.size("addition_embed_type_num_heads", 64),
    "head_dim": keys.size("attention_head_dim", 8),
    "in_channels": keys("in_channels"),
    # IF's pipelines up-sample the low-resolution input in this way.
    "low_resolution": "corners" if keys("in_channels") == 6 else "half_pixel",
    "out_channels": keys("out_channels"),
    "activation": _activation(keys, once),
    "noise_embedding": "squaredcos_cap_v2",
    "noise_conditioned": keys("class_embed_type") == "timestep",
    "activate_embedding_once": once,
    "skip_scale": 1 / scale,
    "mask_text": False,
  }
  known = {*keys.read, *_IGNORED}
  check_known(content, known, name, "give a U-Net of DeepFloyd IF")
  try:
    return UNetConfig(**config)
  except UserError as error:  # Widths that do not divide.
    field = f"{name}: {error.field}"
    raise UserError(field, error.problem, error.fix) from error


def config_to_diffusers(
  config: UNetConfig, sample_size: int | list[int]
) -> dict[str, Any]:
  """The config.json of the spatial part of a network.

  `sample_size` is the side in pixels of the training images.
  """
  c = config
  for field, supported in {"mask_text": False, "norm_groups": 32}.items():
    if (value := getattr(c, field)) != supported:
      raise UserError(
        f"config.model.{field}={value!r}",
        f"is not supported by diffusers, which needs {supported!r}",
        "keep this model as a bundle",
      )
  block = lambda direction, kind: (
    f"Resnet{direction}sampleBlock2D"
    if kind == "none"
    else f"SimpleCrossAttn{direction}Block2D"
  )
  return {
    "_class_name": CLASS,
    "_diffusers_version": "0.42.1",
    "act_fn": c.activation,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": c.pool_heads,
    "attention_head_dim": c.head_dim,
    "block_out_channels": list(c.channels),
    "class_embed_type": "timestep" if c.noise_conditioned else None,
    "cross_attention_dim": c.text_channels,
    "cross_attention_norm": "group_norm",
    "down_block_types": [block("Down", kind) for kind in c.attention],
    "encoder_hid_dim": c.text_dim,
    "encoder_hid_dim_type": "text_proj",
    "in_channels": c.in_channels,
    "layers_per_block": list(c.num_res_blocks),
    "mid_block_only_cross_attention": c.attention[-1] != "self",
    "mid_block_scale_factor": 1 / c.skip_scale,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": c.norm_groups,
    "only_cross_attention": [kind == "cross" for kind in c.attention],
    "out_channels": c.out_channels,
    "resnet_out_scale_factor": 1 / c.skip_scale,
    "resnet_skip_time_act": c.activate_embedding_once,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": sample_size,
    "time_embedding_act_fn": (
      c.activation if c.activate_embedding_once else None
    ),
    "time_embedding_dim": c.channels[-1],
    "up_block_types": [block("Up", kind) for kind in c.attention[::-1]],
  }


def _activation(keys: _Keys, once: bool) -> str:
  name = keys("act_fn", "silu")
  if not (isinstance(name, str) and name in _ACTIVATIONS):
    keys.refuse("act_fn", " or ".join(_ACTIVATIONS))
  of_embedding = keys("time_embedding_act_fn")
  if of_embedding != (name if once else None):
    keys.refuse(
      "time_embedding_act_fn",
      f"{name if once else None!r} with act_fn={name!r} and "
      f"resnet_skip_time_act={once}",
    )
  return _ACTIVATIONS[name]


def _attention(keys: _Keys, levels: int) -> tuple[str, ...]:
  down = keys.each("down_block_types", levels)
  up = keys.each("up_block_types", levels)
  for key, blocks in (("down_block_types", down), ("up_block_types", up)):
    if not all(isinstance(b, str) and b in _BLOCKS for b in blocks):
      names = [name for name in _BLOCKS if key[:2].title() in name]
      keys.refuse(key, "made of " + " and ".join(names))
  attends = [_BLOCKS[block] for block in down]
  if [_BLOCKS[block] for block in up] != attends[::-1]:
    keys.refuse("up_block_types", "those of down_block_types, reversed")
  only = keys("only_cross_attention", False)
  middle = keys("mid_block_only_cross_attention")
  if middle is None:
    middle = only if isinstance(only, bool) else False
  kinds = tuple(
    ("cross" if cross_only else "self") if attention else "none"
    for attention, cross_only in zip(
      attends, keys.each("only_cross_attention", levels, False), strict=True
    )
  )
  if middle != (kinds[-1] != "self"):
    keys.refuse(
      "mid_block_only_cross_attention",
      f"{kinds[-1] != 'self'}, as for the coarsest level",
    )
  return kinds
