"""Compiles the golden TPU programs; needs libtpu.

python -m tests.contrib.planning.make_golden
"""

import pathlib
import re

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from lumiere_jax.contrib.planning.topology import describe

GOLDEN = pathlib.Path(__file__).with_name("golden")
LAYERS, WIDTH, ROWS = 6, 512, 2048


def layers(mesh):
  """Sharded matrix products in a scan, and their gradients."""
  sharded = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  rows = sharded(("a", "d"))

  def loss(weights, x):
    def layer(x, w):
      with jax.named_scope("layer"):
        return lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

    x, _ = lax.scan(layer, x, weights)
    return jnp.mean(x.astype(jnp.float32) ** 2)

  def step(weights, x):
    return weights - 0.1 * jax.grad(loss)(weights, x)

  weights = jax.ShapeDtypeStruct(
    (LAYERS, WIDTH, WIDTH), jnp.bfloat16, sharding=sharded(None, ("a", "d"))
  )
  x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16, sharding=rows)
  jitted = jax.jit(step, out_shardings=weights.sharding, donate_argnums=0)
  return jitted.lower(weights, x)


def gradient(mesh):
  """The gradient of one matrix, summed over all devices."""
  sharded = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  loss = lambda w, x: jnp.sum(jnp.square(x @ w).astype(jnp.float32))
  w = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.bfloat16, sharding=sharded())
  x = jax.ShapeDtypeStruct(
    (ROWS, WIDTH), jnp.bfloat16, sharding=sharded(("a", "d"))
  )
  return jax.jit(jax.grad(loss), out_shardings=sharded()).lower(w, x)


def rows_of_pixels(mesh):
  """A convolution of images with sharded rows."""
  shared = NamedSharding(mesh, PartitionSpec("a", "d"))
  images = jax.ShapeDtypeStruct((4, 16, 16, 128), jnp.bfloat16, sharding=shared)
  kernel = jax.ShapeDtypeStruct(
    (3, 3, 128, 128),
    jnp.bfloat16,
    sharding=NamedSharding(mesh, PartitionSpec()),
  )
  convolve = lambda x, k: lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return jax.jit(convolve, out_shardings=shared).lower(images, kernel)


def batched_product(mesh):
  """A batched matrix product, replicated."""
  sharding = NamedSharding(mesh, PartitionSpec())
  make = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding)
  product = jax.jit(jnp.matmul, out_shardings=sharding)
  return product.lower(make(8, 512, 256), make(8, 256, 384))


def shorten(text: str) -> str:
  """Removes what only the compiler needs."""
  text = re.sub(r", backend_config=\{.*", "", text)
  text = re.sub(r", (sharding|frontend_attributes)=\{devices[^}]*\}", "", text)
  text = re.sub(r' "/.*/tests/', ' "/tests/', text)
  return re.sub(r"(HloModule \w+).*(, num_partitions=\d+)", r"\1\2", text)


def main():
  programs = {
    "layers_v5p": ("v5p:2x2x1", 1, layers),
    "gradient_two_slices": ("v5e:2x2", 2, gradient),
    "rows_v6e": ("v6e:2x2", 1, rows_of_pixels),
    "batched_v5e": ("v5e:2x2", 1, batched_product),
  }
  for name, (slices, count, make) in programs.items():
    devices = np.array(describe(slices, count).devices)
    mesh = Mesh(
      devices.reshape(-1, 2), ("a", "d"), axis_types=(AxisType.Auto,) * 2
    )
    text = make(mesh).compile().as_text()
    (GOLDEN / f"{name}.txt").write_text(shorten(text))


if __name__ == "__main__":
  main()
