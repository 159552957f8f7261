"""Softmax attention with a choice of kernels.

xla      scores of all queries at once
chunked  the same result, scores of some queries at a time; any device
flash    the fused TPU kernel of JAX
cudnn    the fused kernel of NVIDIA GPUs; bfloat16 and float16
auto     if scores take more than `SCORES`: flash on TPUs, cudnn on NVIDIA GPUs,
         chunked elsewhere and for unsupported shapes; else xla
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
"""Most bytes of float32 scores that a device should hold at a time."""

_BLOCK = 512  # Most queries or keys in a block of the flash kernel.
_LANES = 128  # Blocks are multiples of it; fewer queries waste the kernel.
_RESIDUALS = "flash"  # Checkpoint name of the flash kernel's residuals.
_MASKED = -1e38  # Score of masked keys; finite, so that differences are.

# Sharding of queries and keys: image rows are among the queries of a group (a
# frame) and its keys, or each pixel is a group.
_SPECS = {"queries": P(BATCH, None, "space"), "groups": P(BATCH, "space")}


def check_platform(kernel: str, platform: str) -> None:
  """Checks that devices of a platform have a kernel."""
  if _ONLY_ON.get(kernel, platform) != platform:
    raise UserError(
      f"config.execution.attention_kernel={kernel!r}",
      f"runs on a {_ONLY_ON[kernel].upper()} only, but these devices are "
      f"{platform!r}",
      "use 'auto'",
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
  """Softmax attention of groups of queries to [shared, own] keys.

  Args:
    query: of b samples with g groups (such as frames) each.
    own: keys and values of each group, if any.
    shared: keys and values that all groups of a sample attend to, if any.
    mask: False for masked `shared` keys; None: none are masked.
    bias: added to the scores of every group, over [shared, own] keys.
    kernel: one of `KERNELS`; with a bias, 'flash' falls back to 'auto'.
    rows: the axis of image rows, which a mesh may shard: 'queries' (and own
      keys) or 'groups'.

  Returns:
    An array of the dtype of `query`; scores and softmax are float32.
  """
  args = (query, own, shared, mask, bias)
  if bias is not None and kernel == "flash":
    kernel = "auto"
  if kernel == "auto":
    kernel = _choose(*args, rows)
  if kernel in ("xla", "cudnn"):
    return _unchunked(*args, kernel)
  chunked = functools.partial(_on_each_device, _chunked, rows)
  flash = functools.partial(_on_each_device, _flash, rows)
  if kernel == "chunked":
    return chunked(*args)
  if kernel == "flash":
    return flash(*args)
  # The program may be compiled for another platform than this process has.
  return jax.lax.platform_dependent(*args, tpu=flash, default=chunked)


def _choose(query, own, shared, mask, bias, rows: str) -> str:
  """The kernel for 'auto'; stays 'auto' if it depends on the platform."""
  b, g, q, n, d = query.shape
  k = sum(x.shape[-4] for x in (own, shared) if x is not None)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    spec = fit_spec(_SPECS[rows], query.shape, mesh)
    shards = lambda axes: math.prod(
      mesh.shape[i] for i in jax.tree.leaves(axes)
    )
    sizes = zip(query.shape, spec, strict=True)
    b, g, q, _, _ = (size // shards(axes) for size, axes in sizes)
  if 4 * b * g * q * n * k <= SCORES:
    return "xla"
  fits = d % 8 == 0 and d <= 128 and q % 2 == 0 and bias is None
  if fits and query.dtype in (jnp.bfloat16, jnp.float16) and _has_cudnn():
    return "cudnn"
  return "chunked" if bias is not None or q < _LANES else "auto"


def _has_cudnn() -> bool:
  """Whether this process has an NVIDIA GPU that supports the kernel.

  The kernel queries the GPU while it is traced, so that programs for GPUs can
  only be compiled where they run.
  """
  if jax.default_backend() != "gpu":
    return False
  device = jax.local_devices()[0]
  return (
    "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8
  )


@functools.partial(jax.jit, static_argnames="kernel")
def _unchunked(query, own, shared, mask, bias, kernel: str) -> Array:
  args = _by_group(query, own, shared, mask)
  attention = lambda query, own, shared, mask: _dot_product(
    query, own, shared, mask, bias, kernel
  )
  if bias is None:
    return attention(*jax.tree.map(_fold, args)).reshape(query.shape)
  # Folding samples and rows into one axis would mix two sharded axes.
  return jax.vmap(attention)(*args)


def _chunked(query, own, shared, mask, bias, over: str | None = None) -> Array:
  """Attention that holds at most `SCORES` bytes of scores in either pass.

  Computes some groups at a time, or some queries of one group.
  """
  b, g, q, n, _ = query.shape
  k = _gathered_size(own, over) + (0 if shared is None else shared.shape[1])
  most = max(1, SCORES // (4 * n * k))  # Queries at a time.
  fitting = [i for i in range(1, b * g + 1) if b * g % i == 0 and i * q <= most]
  groups = max(fitting, default=1)
  chunks = -(-groups * q // most)

  # The residuals of groups and of chunks are their arguments. Gradients of keys
  # are summed over chunks in float32.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def attend_groups(args: tuple) -> Array:
    query, own, shared, mask = args
    dtype = query.dtype
    wide = lambda x: x.astype(jnp.float32)
    own, shared = jax.tree.map(wide, (_gathered(own, over), shared))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend_chunk(part: tuple) -> Array:
      query, bias = part
      narrow = jax.tree.map(lambda x: x.astype(dtype), (own, shared))
      return _dot_product(query, narrow[0], narrow[1], mask, bias, "xla")

    if chunks == 1:
      return attend_chunk((query, bias))
    split = functools.partial(_split, chunks=chunks)
    out = jax.lax.map(attend_chunk, jax.tree.map(split, (query, bias)))
    return einops.rearrange(out, "i g q n d -> g (i q) n d")[:, :q]

  in_groups = lambda x: x.reshape(-1, groups, *x.shape[2:])
  args = _by_group(query, own, shared, mask)
  out = jax.lax.map(attend_groups, jax.tree.map(in_groups, args))
  return out.reshape(query.shape)


def _flash(query, own, shared, mask, bias, over: str | None = None) -> Array:
  """The fused TPU kernel, one group at a time.

  Its residuals hold 128 copies of each sum of a softmax: too much for all
  groups at once.
  """
  assert bias is None
  q, n, d = query.shape[2:]
  k = _gathered_size(own, over) + (0 if shared is None else shared.shape[1])
  kernel, long_q, long_k = _flash_kernel(q, k, n)

  # Keeps the results of the kernel, not its arguments, which are cheap to
  # compute again from other residuals.
  @functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(_RESIDUALS),
  )
  def attend_group(args: tuple) -> Array:
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
  return jax.lax.map(attend_group, args).reshape(query.shape)


def _flash_kernel(queries: int, keys: int, heads: int):
  """The kernel, and the padded numbers of queries and keys it takes."""
  # A slow import.
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
      # A last axis of head features would be padded to 128.
      q_layout=splash.QKVLayout.SEQ_MINOR,
      k_layout=splash.QKVLayout.SEQ_MINOR,
      v_layout=splash.QKVLayout.SEQ_MINOR,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=_RESIDUALS,
  )
  return kernel, long_q, long_k


def _segments(mask, keys: int, long_q: int, long_k: int):
  """The mask as segments: all queries and unmasked keys are in segment 1."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  if mask is None and keys == long_k:
    return None
  seen = jnp.ones(keys, jnp.int32) if mask is None else mask.astype(jnp.int32)
  return splash.SegmentIds(
    q=jnp.ones(long_q, jnp.int32), kv=_pad(seen, 0, long_k)
  )


def _blocks(size: int) -> tuple[int, int]:
  """Block size and total size of the fewest equal blocks that hold `size`."""
  count = -(-size // _BLOCK)
  block = -(-size // (count * _LANES)) * _LANES
  return block, count * block


def _on_each_device(
  attention: Callable, rows: str, query, own, shared, mask, bias
) -> Array:
  """Calls `attention` on the samples and rows of each device.

  The compiler cannot partition a kernel and may gather what a loop slices.
  Keys are gathered group by group, never for a whole video.
  """
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  axes = {name for name, kind in kinds if kind == AxisType.Auto}
  args = (query, own, shared, mask, bias)
  if mesh.empty or mesh.size == 1 or not axes:
    return attention(*args)
  fitted = lambda x, spec: None if x is None else fit_spec(spec, x.shape, mesh)
  wanted = (_SPECS[rows], _SPECS[rows], P(BATCH), P(BATCH), P())
  specs = tuple(map(fitted, args, wanted))
  return jax.shard_map(
    functools.partial(attention, over=specs[1] and specs[1][2]),
    in_specs=specs,
    out_specs=specs[0],
    axis_names=axes,
    check_vma=False,  # Pallas kernels do not declare what outputs vary over.
  )(*args)


def _gathered(own: Array | None, over: str | None) -> Array | None:
  """The keys and values of a group, gathered from mesh axis `over`."""
  if own is None or over is None:
    return own
  return jax.lax.all_gather(own, over, axis=own.ndim - 4, tiled=True)


def _gathered_size(own: Array | None, over: str | None) -> int:
  if own is None:
    return 0
  return own.shape[2] * (1 if over is None else jax.lax.axis_size(over))


def _by_group(query, own, shared, mask) -> tuple:
  """Repeats `shared` and `mask` for every group."""
  every = lambda x: jnp.repeat(x[:, None], query.shape[1], axis=1)
  return query, own, *jax.tree.map(every, (shared, mask))


def _dot_product(query, own, shared, mask, bias, kernel: str) -> Array:
  """Attention of folded groups (g, ...), scores of all queries at once."""
  key, value, mask = _keys(own, shared, mask)
  if kernel == "xla":
    seen = None if mask is None else mask[:, None, None, :]
    return _softmax_attention(query, key, value, seen, bias)
  lengths = None
  if key.shape[1] % 2:
    # The backward pass of cudnn needs an even number of keys.
    if mask is None:
      lengths = jnp.full(len(key), key.shape[1], jnp.int32)
    even = key.shape[1] + 1
    key, value = _pad(key, 1, even), _pad(value, 1, even)
    mask = None if mask is None else _pad(mask, 1, even, False)
  if mask is not None:  # cudnn needs a mask for every query.
    shape = (len(mask), 1, query.shape[1], mask.shape[-1])
    mask = jnp.broadcast_to(mask[:, None, None, :], shape)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    bias=None if bias is None else bias[None],
    mask=mask,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
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

  The outputs are divided by the sum of the weights, not the weights, as they
  are fewer. The backward pass likewise gets the row sums of the softmax
  gradient from the outputs (FlashAttention, arXiv 2205.14135, appendix B.2).
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
    scores = jnp.where(mask, scores, _MASKED)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  total = weights.sum(-1, keepdims=True)
  weights = weights.astype(dtype)
  out = jnp.einsum(
    "gnqk,gnkd->gnqd", weights, v, preferred_element_type=jnp.float32
  )
  out = (out / total).astype(dtype)
  # An empty array stands for the dtype: residuals can only be arrays.
  like = None if bias is None else jnp.zeros(0, bias.dtype)
  return jnp.swapaxes(out, 1, 2), (q, k, v, weights, total, out, mask, like)


def _softmax_backward(residuals: tuple, g: Array) -> tuple:
  q, k, v, weights, total, out, mask, like = residuals
  dtype = q.dtype
  einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  g = jnp.swapaxes(g, 1, 2).astype(jnp.float32) / total
  mean = (g * out).sum(-1, keepdims=True)
  g = g.astype(dtype)
  to_value = einsum("gnqk,gnqd->gnkd", weights, g)
  to_scores = weights * (einsum("gnqd,gnkd->gnqk", g, v) - mean)
  if mask is not None:  # If all is masked, weights do not depend on scores.
    to_scores = jnp.where(mask, to_scores, 0.0)
  to_bias = None if like is None else to_scores.sum(0).astype(like.dtype)
  to_scores = to_scores.astype(dtype)
  to_query = einsum("gnqk,gnkd->gnqd", to_scores, k) * q.shape[-1] ** -0.5
  to_key = einsum("gnqk,gnqd->gnkd", to_scores, q)
  back = lambda x: jnp.swapaxes(x, 1, 2).astype(dtype)
  return back(to_query), back(to_key), back(to_value), None, to_bias


_softmax_attention.defvjp(_softmax_forward, _softmax_backward)


def _keys(own, shared, mask) -> tuple[Array, Array, Array | None]:
  """Concatenated keys and values (..., k, n, d), and their mask (..., k)."""
  both = jnp.concatenate([x for x in (shared, own) if x is not None], axis=-4)
  if mask is not None:
    mask = _pad(mask, mask.ndim - 1, both.shape[-4], True)
  return both[..., 0, :, :], both[..., 1, :, :], mask


def _fold(x: Array) -> Array:
  """Folds samples and groups into one axis."""
  return x.reshape(-1, *x.shape[2:])


def _split(x: Array, chunks: int) -> Array:
  """Splits axis 1, zero-padded, into equal chunks along a new axis 0."""
  x = _pad(x, 1, -(-x.shape[1] // chunks) * chunks)
  x = x.reshape(x.shape[0], chunks, -1, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _pad(x: Array, axis: int, size: int, value: float = 0) -> Array:
  """Pads the end of an axis up to a size."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths, constant_values=value)
