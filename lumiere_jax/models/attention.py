"""Softmax attention of the whole network, by the kernel that a config names.

xla      scores of all queries at once, laid out by the compiler
chunked  the same numbers, scores of some queries at a time; any device
flash    the fused kernel that JAX ships for TPUs
cudnn    the fused kernel of NVIDIA GPUs; bfloat16 and float16
auto     where scores take more than `SCORES`, flash on TPUs, cudnn on
         NVIDIA GPUs, chunked elsewhere and where these do not fit; else xla
"""

from collections.abc import Callable
import functools
import math

import einops
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from lumiere_jax.errors import UserError
from lumiere_jax.parallel.mesh import BATCH
from lumiere_jax.parallel.sharding import fit_spec

KERNELS = ("auto", "xla", "chunked", "flash", "cudnn")


_ONLY_ON = {"flash": "tpu", "cudnn": "gpu"}


SCORES = 128 * 2**20
"""Bytes of float32 scores that a device should hold at a time, at most."""


_BLOCK = 512  # Most queries or keys in a block of the kernel.


_LANES = 128  # Blocks are multiples of these: fewer queries do not pay.


_KEPT = "flash"  # What the kernel calls its results.


# A score of keys that are not seen; differences of scores are finite.
_NEVER = -1e38


# What a mesh cuts: rows of pixels are among the queries of a group (a frame),
# and its keys with them, or each pixel is a group by itself.
_ROWS = {"queries": P(BATCH, None, "space"), "groups": P(BATCH, "space")}


def check_runs(kernel: str, platform: str) -> None:
  """Raises a UserError where devices of a platform do not have a kernel."""
  if _ONLY_ON.get(kernel, platform) != platform:
    raise UserError(
      f"config.model.attention_kernel={kernel!r}",
      f"is for a {_ONLY_ON[kernel].upper()}, these devices are of {platform!r}",
      "take 'auto'",
    )


def attend(
  query: Float[Array, "b g q n d"],
  own: Float[Array, "b g k 2 n d"] | None,
  shared: Float[Array, "b l 2 n d"] | None = None,
  mask: Bool[Array, "b l"] | None = None,
  bias: Float[Array, "n q k"] | None = None,
  *,
  kernel: str,
  rows: str = "queries",
) -> Float[Array, "b g q n d"]:
  """Softmax attention of each group of queries to [shared, own] keys.

  Args:
    query: of b samples with g groups each: frames, say.
    own: keys and values of each group; None: it has none.
    shared: keys and values that all groups of a sample see; None: none.
    mask: of `shared`, False where a key is not seen; None: all are.
    bias: added to the scores of every group; over all keys.
    kernel: one of `KERNELS`; 'flash' takes no bias and is 'auto' where there
      is one.
    rows: where rows of pixels are, which a mesh may cut up: in the 'queries'
      of a group and its keys, or in the 'groups'.

  Returns:
    Of the dtype of `query`; scores and softmax are float32.
  """
  args = (query, own, shared, mask, bias)
  if bias is not None and kernel == "flash":
    kernel = "auto"
  if kernel == "auto":
    kernel = _choose(*args, rows)
  if kernel in ("xla", "cudnn"):
    return _at_once(*args, kernel)
  chunked = functools.partial(_on_each_device, _chunked, rows)
  flash = functools.partial(_on_each_device, _flash, rows)
  if kernel == "chunked":
    return chunked(*args)
  if kernel == "flash":
    return flash(*args)
  # A program may be compiled for another device than this process has.
  return jax.lax.platform_dependent(*args, tpu=flash, default=chunked)


def _choose(query, own, shared, mask, bias, rows: str) -> str:
  """A kernel; or 'auto', where TPUs take another than all else does."""
  b, g, q, n, d = query.shape
  k = sum(x.shape[-4] for x in (own, shared) if x is not None)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    spec = fit_spec(_ROWS[rows], query.shape, mesh)
    ways = lambda axes: math.prod(mesh.shape[i] for i in jax.tree.leaves(axes))
    sizes = zip(query.shape, spec, strict=True)
    b, g, q, _, _ = (size // ways(axes) for size, axes in sizes)
  if 4 * b * g * q * n * k <= SCORES:
    return "xla"
  fits = d % 8 == 0 and d <= 128 and q % 2 == 0 and bias is None
  if fits and query.dtype in (jnp.bfloat16, jnp.float16) and _has_cudnn():
    return "cudnn"
  return "chunked" if bias is not None or q < _LANES else "auto"


def _has_cudnn() -> bool:
  """Whether this process computes on NVIDIA GPUs that have the kernel.

  Programs for GPUs are compiled where they run: the kernel asks for the GPU
  while it is traced.
  """
  if jax.default_backend() != "gpu":
    return False
  device = jax.local_devices()[0]
  return (
    "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8
  )


def _at_once(query, own, shared, mask, bias, kernel: str) -> Array:
  args = _by_group(query, own, shared, mask)
  attention = functools.partial(_dot_product, bias=bias, kernel=kernel)
  if bias is None:
    return attention(*jax.tree.map(_fold, args)).reshape(query.shape)
  # Sample by sample: folding samples and rows into one axis would mix up
  # which device of a mesh has which.
  return jax.vmap(attention)(*args)


def _chunked(query, own, shared, mask, bias, over: str | None = None) -> Array:
  """Attention that holds `SCORES` bytes of scores at most, forward or backward.

  Some groups at a time; where one has too many scores, some of its queries.
  """
  b, g, q, n, _ = query.shape
  k = _gathered_size(own, over) + (0 if shared is None else shared.shape[1])
  most = max(1, SCORES // (4 * n * k))  # queries at a time
  fitting = [i for i in range(1, b * g + 1) if b * g % i == 0 and i * q <= most]
  groups = max(fitting, default=1)
  chunks = -(-groups * q // most)

  # Kept of some groups are their arguments, of a chunk too. Gradients of keys
  # are summed over chunks in float32.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def some(args: tuple) -> Array:
    query, own, shared, mask = args
    dtype = query.dtype
    wide = lambda x: x.astype(jnp.float32)
    own, shared = jax.tree.map(wide, (_gathered(own, over), shared))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(part: tuple) -> Array:
      query, bias = part
      keys = jax.tree.map(lambda x: x.astype(dtype), (own, shared))
      return _dot_product(query, *keys, mask, bias, "xla")

    if chunks == 1:
      return chunk((query, bias))
    split = functools.partial(_split, chunks=chunks)
    out = jax.lax.map(chunk, jax.tree.map(split, (query, bias)))
    return einops.rearrange(out, "i g q n d -> g (i q) n d")[:, :q]

  some_at_a_time = lambda x: x.reshape(-1, groups, *x.shape[2:])
  args = _by_group(query, own, shared, mask)
  out = jax.lax.map(some, jax.tree.map(some_at_a_time, args))
  return out.reshape(query.shape)


def _flash(query, own, shared, mask, bias, over: str | None = None) -> Array:
  """The fused TPU kernel, one group at a time.

  For the backward pass it writes 128 copies of each sum of a softmax, which
  one group can afford.
  """
  assert bias is None
  q, n, d = query.shape[2:]
  k = _gathered_size(own, over) + (0 if shared is None else shared.shape[1])
  kernel, long_q, long_k = _flash_kernel(q, k, n)

  # Kept are results of the kernel, not its arguments: these are others'
  # results in another order.
  @functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(_KEPT),
  )
  def one(args: tuple) -> Array:
    query, own, shared, mask = args
    key, value, mask = _keys(_gathered(own, over), shared, mask)
    heads_first = lambda x, size: _pad(jnp.swapaxes(x, 0, 1), 1, size)
    return jnp.swapaxes(
      kernel(
        heads_first(query * d**-0.5, long_q),
        heads_first(key, long_k),
        heads_first(value, long_k),
        segment_ids=_segments(mask, k, long_q, long_k),
      )[:, :q],
      0,
      1,
    )

  args = jax.tree.map(_fold, _by_group(query, own, shared, mask))
  return jax.lax.map(one, args).reshape(query.shape)


def _flash_kernel(queries: int, keys: int, heads: int):
  """The kernel, and how many queries and keys it is to be given."""
  # Takes a while to import.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  (block_q, long_q), (block_k, long_k) = _blocks(queries), _blocks(keys)
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([splash.FullMask((long_q, long_k))] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block_q,
      block_kv=block_k,
      block_q_dkv=block_q,
      block_kv_dkv=block_k,
      block_q_dq=block_q,
      block_kv_dq=block_k,
      # Arrays whose last axis is a head would lie padded to 128.
      q_layout=splash.QKVLayout.SEQ_MINOR,
      k_layout=splash.QKVLayout.SEQ_MINOR,
      v_layout=splash.QKVLayout.SEQ_MINOR,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=_KEPT,
  )
  return kernel, long_q, long_k


def _segments(mask, keys: int, long_q: int, long_k: int):
  """All queries are in segment 1, with the keys they see; None: all keys."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  if mask is None and keys == long_k:
    return None
  seen = jnp.ones(keys, jnp.int32) if mask is None else mask.astype(jnp.int32)
  return splash.SegmentIds(
    q=jnp.ones(long_q, jnp.int32), kv=_pad(seen, 0, long_k)
  )


def _blocks(size: int) -> tuple[int, int]:
  """Size of the fewest equal blocks that hold `size`, and of all of them."""
  count = -(-size // _BLOCK)
  block = -(-size // (count * _LANES)) * _LANES
  return block, count * block


def _on_each_device(
  attention: Callable, rows: str, query, own, shared, mask, bias
) -> Array:
  """Calls it on the samples and rows that each device has.

  The compiler cannot cut up a kernel, and may gather what a loop slices. Keys
  are gathered group by group: never those of a whole video.
  """
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  axes = {name for name, kind in kinds if kind == AxisType.Auto}
  args = (query, own, shared, mask, bias)
  if mesh.empty or mesh.size == 1 or not axes:
    return attention(*args)
  cut = lambda x, spec: None if x is None else fit_spec(spec, x.shape, mesh)
  specs = (_ROWS[rows], _ROWS[rows], P(BATCH), P(BATCH), P())
  cuts = tuple(map(cut, args, specs))
  return jax.shard_map(
    functools.partial(attention, over=cuts[1] and cuts[1][2]),
    in_specs=cuts,
    out_specs=cuts[0],
    axis_names=axes,
    check_vma=False,  # A kernel does not say what its results vary over.
  )(*args)


def _gathered(own: Array | None, over: str | None) -> Array | None:
  """Keys and values of all devices that share a group."""
  if own is None or over is None:
    return own
  return jax.lax.all_gather(own, over, axis=own.ndim - 4, tiled=True)


def _gathered_size(own: Array | None, over: str | None) -> int:
  if own is None:
    return 0
  return own.shape[2] * (1 if over is None else jax.lax.axis_size(over))


def _by_group(query, own, shared, mask) -> tuple:
  """All of them by samples and groups."""
  every = lambda x: jnp.repeat(x[:, None], query.shape[1], axis=1)
  return query, own, *jax.tree.map(every, (shared, mask))


def _dot_product(query, own, shared, mask, bias, kernel: str) -> Array:
  """Of groups (g, ...), scores of all queries at once."""
  key, value, mask = _keys(own, shared, mask)
  if kernel == "xla":
    seen = None if mask is None else mask[:, None, None, :]
    return _softmax_attention(query, key, value, seen, bias)
  lengths = None
  if key.shape[1] % 2:
    # Its backward pass takes even lengths alone.
    if mask is None:
      lengths = jnp.full(len(key), key.shape[1], jnp.int32)
    even = key.shape[1] + 1
    key, value = _pad(key, 1, even), _pad(value, 1, even)
    mask = None if mask is None else _pad(mask, 1, even, False)
  if mask is not None:  # is wanted for every query
    shape = (len(mask), 1, query.shape[1], mask.shape[-1])
    mask = jnp.broadcast_to(mask[:, None, None, :], shape)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    bias=None if bias is None else bias[None],
    mask=mask,
    key_value_seq_lengths=lengths,
    implementation=kernel,
  )


@jax.custom_vjp
def _softmax_attention(
  query: Float[Array, "g q n d"],
  key: Float[Array, "g k n d"],
  value: Float[Array, "g k n d"],
  mask: Bool[Array, "g 1 1 k"] | None,
  bias: Float[Array, "n q k"] | None,
) -> Float[Array, "g q n d"]:
  """softmax(query key^T / sqrt(d) + bias) value, in few passes over scores.

  Outputs are divided by the sum of the weights, not the weights: they are
  fewer. So are what rows of the softmax's gradient sum up to (FlashAttention,
  arXiv 2205.14135, appendix B.2).
  """
  return _softmax_forward(query, key, value, mask, bias)[0]


def _softmax_forward(query, key, value, mask, bias) -> tuple[Array, tuple]:
  dtype = query.dtype
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  q = q * query.shape[-1] ** -0.5
  scores = jnp.einsum(
    "gnqd,gnkd->gnqk", q, k, preferred_element_type=jnp.float32
  )
  if bias is not None:
    scores = scores + bias
  if mask is not None:
    scores = jnp.where(mask, scores, _NEVER)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  total = weights.sum(-1, keepdims=True)
  weights = weights.astype(dtype)
  out = jnp.einsum(
    "gnqk,gnkd->gnqd", weights, v, preferred_element_type=jnp.float32
  )
  out = (out / total).astype(dtype)
  # An array that holds nothing, as what is kept says no dtypes.
  like = None if bias is None else jnp.zeros(0, bias.dtype)
  return jnp.swapaxes(out, 1, 2), (q, k, v, weights, total, out, mask, like)


def _softmax_backward(kept: tuple, g: Array) -> tuple:
  q, k, v, weights, total, out, mask, like = kept
  dtype = q.dtype
  einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  g = jnp.swapaxes(g, 1, 2).astype(jnp.float32) / total
  mean = (g * out).sum(-1, keepdims=True)
  g = g.astype(dtype)
  to_value = einsum("gnqk,gnqd->gnkd", weights, g)
  to_scores = weights * (einsum("gnqd,gnkd->gnqk", g, v) - mean)
  if mask is not None:  # where all is masked, scores change no weight
    to_scores = jnp.where(mask, to_scores, 0.0)
  to_bias = None if like is None else to_scores.sum(0).astype(like.dtype)
  to_scores = to_scores.astype(dtype)
  to_query = einsum("gnqk,gnkd->gnqd", to_scores, k) * q.shape[-1] ** -0.5
  to_key = einsum("gnqk,gnqd->gnkd", to_scores, q)
  back = lambda x: jnp.swapaxes(x, 1, 2).astype(dtype)
  return back(to_query), back(to_key), back(to_value), None, to_bias


_softmax_attention.defvjp(_softmax_forward, _softmax_backward)


def _keys(own, shared, mask) -> tuple[Array, Array, Array | None]:
  """Keys and values (..., k, n, d), and their mask (..., k)."""
  both = jnp.concatenate([x for x in (shared, own) if x is not None], axis=-4)
  if mask is not None:
    mask = _pad(mask, mask.ndim - 1, both.shape[-4], True)
  return both[..., 0, :, :], both[..., 1, :, :], mask


def _fold(x: Array) -> Array:
  """Samples and groups into one axis."""
  return x.reshape(-1, *x.shape[2:])


def _split(x: Array, chunks: int) -> Array:
  """Axis 1 in equal chunks, zeros added, as a new axis 0."""
  x = _pad(x, 1, -(-x.shape[1] // chunks) * chunks)
  x = x.reshape(x.shape[0], chunks, -1, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _pad(x: Array, axis: int, size: int, value: float = 0) -> Array:
  """The same at the end of an axis, up to a size."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths, constant_values=value)
