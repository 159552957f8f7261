"""Time and memory of the attention kernels at the size of IF-I-XL.

python -m benchmarks.attention [--frames=40] [--side=64] [--heads=22]

One attention layer from the pixels of each frame to themselves and the text,
forward and backward, in bfloat16, for all kernels that run on this device. The
error is that of outputs and gradients against float32, over the largest value.
"""

import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from lumiere_jax.models.attention import attend

FRAMES = flags.DEFINE_integer("frames", 40, "Frames.")
SIDE = flags.DEFINE_integer("side", 64, "Rows and columns of pixels.")
HEADS = flags.DEFINE_integer("heads", 22, "Heads, of 64.")
MASKED = flags.DEFINE_bool("masked", False, "Half of the text is padding.")
KERNELS = flags.DEFINE_list(
  "kernels", "xla,chunked,cudnn,flash,auto", "To run."
)
TEXT, WIDTH, REPEATS = 77, 64, 5


def main(argv: list[str]) -> None:
  """Prints a line for each kernel."""
  del argv
  print(jax.devices()[0].device_kind)
  args = inputs(FRAMES.value, SIDE.value**2, HEADS.value)
  small = jax.tree.map(lambda x: x[:, :1], args[:2]) + args[2:]
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), small)
  truth = jax.jit(step("xla"))(*exact)
  for kernel in KERNELS.value:
    try:
      found = jax.jit(step(kernel))(*small)
      error = max(map(distance, jax.tree.leaves(found), jax.tree.leaves(truth)))
      print(f"{kernel:8} error {error:.1e}", measure(kernel, args), flush=True)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError) as e:
      why = (str(e).splitlines() or ["not on this device"])[0][:90]
      print(f"{kernel:8} {why}", flush=True)


def step(kernel: str):
  """A function that returns outputs and gradients."""

  def loss(query, own, shared, weight):
    mask = jnp.arange(TEXT)[None] < TEXT // 2 if MASKED.value else None
    out = attend(query, own, shared, mask, kernel=kernel)
    return (out.astype(jnp.float32) * weight[:, : out.shape[1]]).sum(), out

  return jax.grad(loss, (0, 1, 2), has_aux=True)


def inputs(frames: int, pixels: int, heads: int):
  """Random queries, keys and values, text, and loss weights."""
  keys = jax.random.split(jax.random.key(0), 4)
  draw = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)
  return (
    draw(keys[0], 1, frames, pixels, heads, WIDTH),
    draw(keys[1], 1, frames, pixels, 2, heads, WIDTH),
    draw(keys[2], 1, TEXT, 2, heads, WIDTH),
    draw(keys[3], 1, 1, pixels, heads, WIDTH),
  )


def distance(found: jax.Array, truth: jax.Array) -> float:
  """Largest difference, over the largest value."""
  found, truth = (np.asarray(x, np.float32) for x in (found, truth))
  return float(np.abs(found - truth).max() / np.abs(truth).max())


def measure(kernel: str, args: tuple) -> str:
  """Time, TFLOP/s and temporary memory."""
  compiled = jax.jit(step(kernel)).lower(*args).compile()
  jax.block_until_ready(compiled(*args))
  times = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    times.append(time.perf_counter() - start)
  frames, pixels, heads = args[0].shape[1:4]
  # Two products forward and four backward, as for model FLOPs.
  flops = 2 * 6 * frames * heads * pixels * (pixels + TEXT) * WIDTH
  memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
  best = min(times)
  return (
    f"{1e3 * best:.1f} ms, {flops / best / 1e12:.0f} TFLOP/s, {memory:.2f} GiB"
  )


if __name__ == "__main__":
  app.run(main)
