"""The T5 v1.1 encoder: caption tokens in, one feature vector per token out.

Raffel et al., arXiv 1910.10683, in its v1.1 form: gated GELU, no biases, no
scaling of attention logits. Imagen and DeepFloyd IF condition on the XXL
encoder. Submodule names are those of T5X, and an API: import, export and
sharding go by path.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from lumiere_jax.errors import check_choice
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.typing import FlatParams, Params, typechecked

DTYPES = ("float32", "bfloat16")

PREFIX = "text_encoder/"
"""Path prefix of the encoder's leaves when it is trained with a network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """The shape of an encoder.

  Attributes:
    vocab_size: rows of the token embedding; may exceed the tokenizer's.
    d_model: width of the features.
    d_ff: width inside the gated feed-forward layers.
    num_heads, d_kv: attention heads, and the width of one.
    num_layers: blocks of attention and feed-forward.
    num_buckets: learned relative-position biases per head.
    max_distance: farther tokens share the last bucket.
    dtype: of the weights and matrix products; float16 would overflow. Norms,
      softmax and the residual stream are always float32.
  """

  vocab_size: int = 32128
  d_model: int
  d_ff: int
  num_heads: int
  d_kv: int
  num_layers: int
  num_buckets: int = 32
  max_distance: int = 128
  dtype: str = "float32"

  def __post_init__(self):
    check_choice("dtype of T5", self.dtype, DTYPES)


T5_SIZES: dict[str, T5Config] = {
  name: T5Config(
    d_model=d_model, d_ff=d_ff, num_heads=heads, d_kv=64, num_layers=layers
  )
  for name, (d_model, d_ff, heads, layers) in {
    "small": (512, 1024, 6, 8),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 16, 24),
    "xl": (2048, 5120, 32, 24),
    "xxl": (4096, 10240, 64, 24),
  }.items()
}
"""The published sizes, and "tiny" for tests and demos: it is never trained, and
its vocabulary fits the built-in tokenizer."""
T5_SIZES["tiny"] = T5Config(
  vocab_size=1024, d_model=64, d_ff=128, num_heads=4, d_kv=16, num_layers=2
)


def relative_position_bucket(
  distance: np.ndarray, num_buckets: int, max_distance: int
) -> np.ndarray:
  """The bucket of each distance (key position - query position), any shape.

  Half of the buckets are for keys after the query. In each half, the first half
  of the buckets hold one distance each. The rest widen logarithmically up to
  `max_distance`; larger distances share the last bucket.
  """
  half = num_buckets // 2
  exact = half // 2
  size = np.abs(distance)
  octave = np.log(np.maximum(size, exact) / exact) / np.log(
    max_distance / exact
  )
  # The small term keeps exact powers on the right side of their boundary.
  log_bucket = exact + (octave * (half - exact) + 1e-9).astype(np.int32)
  bucket = np.where(size < exact, size, np.minimum(log_bucket, half - 1))
  return (bucket + half * (distance > 0)).astype(np.int32)


class RelativePositionBias(nn.Module):
  """A learned logit per head and bucket of distance, shared by all layers."""

  config: T5Config

  @nn.compact
  def __call__(self, length: int) -> Float[Array, "n q k"]:
    """The biases of all query-key pairs."""
    c = self.config
    table = self.param(
      "rel_embedding",
      nn.initializers.normal(),
      (c.num_heads, c.num_buckets),
      jnp.float32,
    )
    place = np.arange(length)
    buckets = relative_position_bucket(
      place[None, :] - place[:, None], c.num_buckets, c.max_distance
    )
    return table[:, buckets]


def _norm(name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


def _dense(features: int, config: T5Config, name: str) -> nn.Dense:
  return nn.Dense(
    features,
    use_bias=False,
    dtype=config.dtype,
    param_dtype=config.dtype,
    name=name,
  )


class SelfAttention(nn.Module):
  """Multi-head self-attention without logit scaling (the init includes it)."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l e"],
    bias: Float[Array, "n l l"],
    mask: Bool[Array, "b l"],
  ) -> Float[Array, "b l e"]:
    """Attends to the tokens where `mask` is True."""
    c = self.config
    heads = lambda name: _dense(c.num_heads * c.d_kv, c, name)(x).reshape(
      *x.shape[:-1], c.num_heads, c.d_kv
    )
    mixed = jax.nn.dot_product_attention(
      heads("query"),
      heads("key"),
      heads("value"),
      bias[None],
      mask[:, None, None, :],
      scale=1.0,
    )
    return _dense(c.d_model, c, "out")(mixed.reshape(*x.shape[:-1], -1))


class GatedMlp(nn.Module):
  """wo(gelu(wi_0 x) * wi_1 x), with the tanh form of GELU."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
    """Maps each token independently."""
    c = self.config
    gate = _dense(c.d_ff, c, "wi_0")(x)
    value = _dense(c.d_ff, c, "wi_1")(x)
    hidden = jax.nn.gelu(gate, approximate=True) * value
    return _dense(c.d_model, c, "wo")(hidden)


class EncoderLayer(nn.Module):
  """Attention, then feed-forward: pre-norm residual layers."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l e"],
    bias: Float[Array, "n l l"],
    mask: Bool[Array, "b l"],
  ) -> Float[Array, "b l e"]:
    """Applies the layer; the residual stream `x` stays float32."""
    attention = SelfAttention(self.config, name="attention")
    mlp = GatedMlp(self.config, name="mlp")
    x += attention(_norm("pre_attention_layer_norm")(x), bias, mask)
    return x + mlp(_norm("pre_mlp_layer_norm")(x))


class T5Encoder(nn.Module):
  """The encoder.

  `init_params` gives untrained weights whose features distinguish texts, so
  that a frozen random encoder can replace pretrained weights in demos.
  """

  config: T5Config

  @nn.compact
  @typechecked
  def __call__(
    self,
    tokens: Int[Array | np.ndarray, "b l"],
    mask: Bool[Array | np.ndarray, "b l"],
  ) -> Float[Array, "b l e"]:
    """Float32 features of RMS about 1 of token ids.

    Padding, where the mask is False, is never attended to, but has features
    too: networks without a mask (DeepFloyd IF) were trained with these.
    """
    c = self.config
    x = nn.Embed(
      c.vocab_size,
      c.d_model,
      dtype=c.dtype,
      param_dtype=c.dtype,
      name="token_embedder",
    )(jnp.asarray(tokens)).astype(jnp.float32)
    bias = RelativePositionBias(c, name="relpos_bias")(tokens.shape[1])
    for i in range(c.num_layers):
      x = EncoderLayer(c, name=f"layers_{i}")(x, bias, jnp.asarray(mask))
    return _norm("encoder_norm")(x)


def init_params(config: T5Config, seed: int = 0) -> Params:
  """Random parameters, the same on every machine.

  Drawn by numpy: the last bits of XLA's random numbers differ between
  processors, which would change the identity of the encoder.
  """
  rng = np.random.default_rng(seed)

  def draw(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if path.endswith("scale"):
      return np.ones(leaf.shape, leaf.dtype)
    # T5's init, except for the position bias. T5 draws it with std
    # d_model ** -0.5: so small that untrained features hardly depend on word
    # order. 1 is the spread of the content logits.
    std = 1.0 if path.endswith("embedding") else leaf.shape[0] ** -0.5
    if "/query/" in path:  # Includes the scaling of the logits.
      std *= config.d_kv**-0.5
    return (std * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

  flat = {k: draw(k, leaf) for k, leaf in abstract_params(config).items()}
  return unflatten(flat)


def abstract_params(config: T5Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shape and dtype of every parameter by path, without allocating memory."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  init = lambda: T5Encoder(config).init(jax.random.key(0), tokens, tokens == 0)
  return flatten(jax.eval_shape(init)["params"])


def prefix_params(params: Params) -> FlatParams:
  """The encoder's leaves under `PREFIX`, to be trained with a network."""
  return {PREFIX + path: leaf for path, leaf in flatten(params).items()}


def split_params(flat: FlatParams) -> tuple[Params, FlatParams]:
  """Splits leaves into (the encoder's parameters, the network's leaves)."""
  encoder = {
    path.removeprefix(PREFIX): leaf
    for path, leaf in flat.items()
    if path.startswith(PREFIX)
  }
  rest = {k: v for k, v in flat.items() if not k.startswith(PREFIX)}
  return unflatten(encoder), rest
