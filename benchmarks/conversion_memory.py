"""Peak memory of a conversion, compared with the size of the model.

python -m benchmarks.conversion_memory [--size=IF-II-L]

Writes random float16 weights of a published size in the layout of diffusers,
converts them in separate processes, and prints a table in MiB: the peak of
resident memory, and its excess over the conversion of a tiny model.
"""

import multiprocessing
from pathlib import Path
import resource
import tempfile

from absl import app, flags
import jax
import numpy as np

from benchmarks.markdown import table
from configs import base, common, ssr
from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.conversion.diffusers import write_stage
from lumiere_jax.conversion.lazy_stage import LazyStage
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.stages.config import StageConfig, VideoConfig
from lumiere_jax.storage.safetensors import LazyArray

SIZES = {
  "IF-II-L": (common.IF_II_L, ssr.IF),
  "IF-I-XL": (common.IF_I_XL, base.FULL),
}
SIZE = flags.DEFINE_enum("size", "IF-II-L", list(SIZES), "Published size.")


def write_random(model: UNetConfig, folder: Path) -> None:
  """Writes random weights, tensor by tensor."""
  rng = np.random.default_rng(0)

  def lazy(leaf: jax.ShapeDtypeStruct) -> LazyArray:
    # Random bits with a small exponent: fast to draw, finite.
    make = lambda: rng.integers(0, 2**14, leaf.shape, np.uint16).view(
      np.float16
    )
    return LazyArray(leaf.shape, np.dtype(np.float16), make)

  write_stage(
    LazyStage(
      name="t2i",
      config=StageConfig(
        model=model,
        diffusion=common.IF_DIFFUSION,
        video=VideoConfig(num_frames=1, fps=16.0, resolution=(64, 64)),
      ),
      leaves={k: lazy(leaf) for k, leaf in abstract_params(model).items()},
      about={},
    ),
    folder,
  )


def peak_of(job: Conversion) -> float:
  """Peak resident memory in MiB of a process that runs a conversion."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(_run, (job,))


def _run(job: Conversion) -> float:
  convert(job)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  model, video = SIZES[SIZE.value]
  small = common.IF_TINY_SSR if model.in_channels == 6 else common.IF_TINY
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    for name, config in (("small", small), ("large", model)):
      write_random(config, folder / name)
    job = lambda source, name, out, **options: Conversion(
      source=source,
      src=(str(folder / name),),
      out=str(folder / out),
      **{"target": "bundle"} | options,
    )
    least = peak_of(job("diffusers", "small", "0"))
    leaves = abstract_params(model).values()
    total = 2 * sum(leaf.size for leaf in leaves) / 2**20
    largest = 2 * max(leaf.size for leaf in leaves) / 2**20
    jobs = {
      "diffusers to bundle": job("diffusers", "large", "1"),
      "bundle to diffusers": job("bundle", "1", "2", target="diffusers"),
      "diffusers to bundle, inflated": job(
        "diffusers", "large", "3", temporal=video
      ),
    }
    rows = {name: peak_of(each) for name, each in jobs.items()}
  print(
    f"{SIZE.value}: {total:,.0f} MiB, its largest tensor {largest:,.0f} MiB"
  )
  cells = ((k, f"{v:,.0f}", f"{v - least:,.0f}") for k, v in rows.items())
  print(table(("conversion", "peak", "over a small model's"), cells))


if __name__ == "__main__":
  app.run(main)
