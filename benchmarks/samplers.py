"""Error of each deterministic sampler by the number of steps.

python -m benchmarks.samplers

On data with independent values N(0.3, 0.5^2), whose flow is known, with the
exact denoiser and the cosine schedule: the root mean square error and the
standard deviation of the values, both over 0.5, the exact standard deviation.
"""

from absl import app
import jax.numpy as jnp
import numpy as np

from benchmarks.markdown import table
from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.diffusion.samplers import SAMPLERS
from lumiere_jax.diffusion.sampling_loop import sample_chunk
from lumiere_jax.diffusion.schedules import Cosine, alpha_sigma
from lumiere_jax.typing import Cond
from tests.diffusion.conftest import Gaussian

MEAN, STD, SHAPE = 0.3, 0.5, (1, 1, 64, 64, 1)
STEPS = (5, 10, 20, 50)


def main(argv: list[str]) -> None:
  """Prints the table in Markdown."""
  del argv
  cells = lambda name: (
    "{:.3f}, {:.3f}".format(*measure(name, steps)) for steps in STEPS
  )
  print(
    table(
      ("error, spread", *(f"{steps} steps" for steps in STEPS)),
      ((name, *cells(name)) for name in ("ddim", "dpmpp_2m", "heun")),
    )
  )


def measure(name: str, steps: int) -> tuple[float, float]:
  """Error and spread."""
  rule, grid = SAMPLERS[name](), jnp.append(Cosine().grid(steps), jnp.inf)
  z = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
  cond = Cond(text=jnp.zeros((1, 1, 1)))
  end = sample_chunk(
    Gaussian(MEAN, STD), rule, rule.init(z), grid, 0, sample_keys([0]), cond
  )
  (alpha_t, sigma_t), (alpha_s, sigma_s) = map(alpha_sigma, (grid[0], grid[-1]))
  quantile = (z - alpha_t * MEAN) / jnp.hypot(alpha_t * STD, sigma_t)
  exact = alpha_s * MEAN + jnp.hypot(alpha_s * STD, sigma_s) * quantile
  error = jnp.sqrt(jnp.square(end.z - exact).mean())
  return float(error) / STD, float(end.z.std()) / STD


if __name__ == "__main__":
  app.run(main)
