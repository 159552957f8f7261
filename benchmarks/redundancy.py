"""Whether sampling preserves the variance of the shared content of frames.

python -m benchmarks.redundancy [--pictures=docs/noise]

Videos of one constant colour, N(0, 0.5^2), with the exact denoiser: the
standard deviation of the sampled colours, relative to 0.5; and that of the
slope of a colour that drifts linearly over the clip. The shared content is one
number, so one number is sampled instead of all pixels: the mean of T n pixels
is a diffusion of data with sqrt(T n) times the standard deviation of a pixel.
"""

from collections.abc import Sequence
import dataclasses
import math
from pathlib import Path

from absl import app, flags
from flax import struct
import jax.numpy as jnp
import numpy as np

from benchmarks.markdown import table
from configs import base, conditional, shipped, ssr, ssr_image, t2i
from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.diffusion.noise_levels import decisive_log_snr
from lumiere_jax.diffusion.prediction import Prediction
from lumiere_jax.diffusion.samplers import DDIM, Sampler, make_sampler
from lumiere_jax.diffusion.sampling_loop import sample_chunk
from lumiere_jax.diffusion.schedules import Cosine, SquaredCosCapV2, alpha_sigma
from lumiere_jax.inference.loading import load
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import resolve_shift
from lumiere_jax.training.noise_report import chart, draw_noise
from lumiere_jax.typing import Cond

STD = 0.5
SAMPLES = 4096

CONFIGS = {
  "t2i:full": t2i.FULL,
  "base:full": base.FULL,
  "conditional:full": conditional.FULL,
  "ssr_image:full": ssr_image.FULL,
  "ssr_image:if": ssr_image.IF,
  "ssr:full": ssr.FULL,
  "ssr:if": ssr.IF,
  "conditional:ssr": conditional.SSR,
  "shipped:t2i": shipped.T2I,
  "shipped:base": shipped.BASE,
  "shipped:conditional": shipped.CONDITIONAL,
  "shipped:ssr_image": shipped.SSR_IMAGE_STAGE,
  "shipped:ssr": shipped.SSR,
}

PICTURES = flags.DEFINE_string(
  "pictures", "", "Folder for the figures of docs/noise.md."
)


@struct.dataclass
class Shared:
  """The exact denoiser of one number shared by `count` pixels.

  It sees sqrt(count) times the number in noise of variance 1, and optionally a
  second, fixed observation: that of the low-resolution input.

  Attributes:
    std: of sqrt(count) times the number.
    seen: (b, 1, 1, 1, 1) the second observation.
    precision: one over the variance of its error; 0: no second observation.
  """

  std: float
  seen: jnp.ndarray
  precision: float = 0.0

  def __call__(self, z, log_snr, cond):
    """The posterior mean, weighted by the precisions of the observations."""
    alpha, sigma = alpha_sigma(log_snr.reshape(-1, 1, 1, 1, 1))
    # Multiplied by sigma^2, so that pure noise gives no infinity.
    known = alpha * z + sigma**2 * self.precision * self.seen
    weight = alpha**2 + sigma**2 * (self.precision + self.std**-2)
    x0 = known / weight
    eps = (z - alpha * x0) / sigma
    return Prediction(x0, eps, alpha * eps - sigma * x0)


def spread(
  levels: np.ndarray, rule: Sampler, count: float, precision: float = 0.0
) -> float:
  """The sampled standard deviation over the exact one.

  Args:
    levels: (steps + 1,) log-SNRs; the last one is +inf.
    rule: of the sampler.
    count, precision: see `Shared`.
  """
  std = STD * math.sqrt(count)
  rng = np.random.default_rng(0)
  column = lambda: rng.standard_normal((SAMPLES, 1, 1, 1, 1)).astype(np.float32)
  z, true, error = column(), std * column(), column()
  if not precision:  # the map is linear, so only the scale matters
    z /= z.std()
  seen = true + error / math.sqrt(precision or 1)
  end = sample_chunk(
    Shared(std, jnp.asarray(seen), precision),
    rule,
    rule.init(jnp.asarray(z)),
    jnp.asarray(levels),
    0,
    sample_keys(range(SAMPLES)),
    Cond(text=jnp.zeros((SAMPLES, 1, 1))),
  )
  return float(np.std(np.asarray(end.z, np.float64))) / std


def ramp(frames: int) -> float:
  """Effective number of frames that observe a slope from -1/2 to 1/2."""
  return float(np.sum(np.square(np.linspace(-0.5, 0.5, frames))))


@dataclasses.dataclass(frozen=True)
class Spreads:
  """Standard deviations of a stage at its defaults, over the exact ones.

  Attributes:
    colour: of videos of one colour.
    slope: of a colour that drifts; None for images.
    alone: of the colour without the low-resolution input.
  """

  colour: float
  slope: float | None
  alone: float


def of_stage(config: StageConfig) -> Spreads:
  """The spreads of a stage with its default sampling settings."""
  own, video = config.defaults, config.video
  pixels = math.prod(video.resolution)
  levels, rule = config.levels(own), make_sampler(own.sampler)
  precision = 0.0
  if video.upscale > 1:
    # The low-resolution input has 1 / upscale^2 of the pixels, with its noise.
    level = config.embedding_schedule.log_snr(jnp.float32(own.noise_level))
    precision = float(jnp.exp(level)) / video.upscale**2
  count = video.num_frames * pixels
  slope = None
  if video.num_frames > 1:
    slope = spread(levels, rule, ramp(video.num_frames) * pixels, precision)
  return Spreads(
    colour=spread(levels, rule, count, precision),
    slope=slope,
    alone=spread(levels, rule, count),
  )


def stages() -> dict[str, StageConfig]:
  """Every full and shipped config, and the stages of the shipped bundle."""
  configs = {k: settled_of(v).sampling for k, v in CONFIGS.items()}
  bundle = load(["demo"]).configs
  return configs | {f"demo {k}": v for k, v in bundle.items()}


def settled_of(experiment: Experiment) -> Experiment:
  """With shift 'auto' resolved, for an unshifted image model as parent."""
  return resolve_shift(dataclasses.replace(experiment, init_from=""))


def grids(steps: int) -> dict[str, np.ndarray]:
  """Grids in schedule time, as used up to format 1."""
  end = lambda levels: np.append(np.asarray(levels), np.inf)
  leading = SquaredCosCapV2().grid(steps)
  shifted = lambda shift, low=-15.0: np.maximum(
    Cosine(shift=shift, log_snr_min=-30.0).trailing(steps), low
  )
  return {
    f"IF's spacing, {steps} steps": end(leading),
    f"cosine, {steps}": end(shifted(0.0)),
    f"cosine shifted by -6, {steps}": end(shifted(-6.0)),
    f"cosine shifted by -8, from -20, {steps}": end(shifted(-8.0, -20.0)),
  }


def main(argv: list[str]) -> None:
  """Prints both tables in Markdown, and draws."""
  del argv
  print("Standard deviation of the colour (exact: 0.500), DDIM:\n")
  sizes = (64 * 64, 80 * 128 * 128)
  cosine = Cosine(log_snr_min=-15.0).trailing(1000)
  levels = grids(50) | {"cosine, 1000": np.append(np.asarray(cosine), np.inf)}
  cells = lambda grid: (f"{STD * spread(grid, DDIM(), n):.3f}" for n in sizes)
  rows = [(name, *cells(grid)) for name, grid in levels.items()]
  print(table(("grid", "1x64x64", "80x128x128"), rows))
  print(
    "\nCurrent defaults, over the exact value (SSR with its low-res input):\n"
  )
  rows, worst = [], {"colour": 0.0, "slope": 0.0}
  for name, config in stages().items():
    own, video = config.defaults, config.video
    found = of_stage(config)
    for kind, value in worst.items():
      worst[kind] = max(value, abs((getattr(found, kind) or 1) - 1))
    clip = "x".join(map(str, (video.num_frames, *video.resolution)))
    slope = "" if found.slope is None else f"{found.slope:.3f}"
    spreads = (f"{found.colour:.3f}", slope, f"{found.alone:.3f}")
    rows.append((name, clip, f"{own.sampler}, {own.steps}", *spreads))
  head = ("stage", "clip", "sampler, steps", "colour", "slope")
  print(table((*head, "no low-res input"), rows))
  errors = ", ".join(f"{kind} {value:.1%}" for kind, value in worst.items())
  print(f"\nLargest error, with low-res input: {errors}")
  if PICTURES.value:
    draw(Path(PICTURES.value))


def draw(folder: Path) -> None:
  """Draws the figures of docs/noise.md."""
  folder.mkdir(parents=True, exist_ok=True)
  for name in ("base:full", "shipped:base"):
    file = folder / f"{name.replace(':', '_')}.svg"
    draw_noise(settled_of(CONFIGS[name]), file)
  picture = settled_of(base.FULL).sampling
  at = jnp.asarray((np.arange(20_000) + 0.5) / 20_000, jnp.float32)
  plain = dataclasses.replace(picture.diffusion, shift=0.0)
  before = grids(50)["IF's spacing, 50 steps"][:-1]
  (folder / "before_after.svg").write_text(
    chart(
      "base:full, 80x128x128",
      {
        "drawn before": np.asarray(plain.make_noise().log_snr(at)),
        "drawn now": np.asarray(picture.diffusion.make_noise().log_snr(at)),
      },
      {"steps before": before, "steps now": _finite(picture)},
      {
        "colour of 80 frames decided": decisive_log_snr(80, 128 * 128),
        "of 1 frame": decisive_log_snr(1, 128 * 128),
      },
    )
  )


def _finite(config: StageConfig) -> Sequence[float]:
  return [float(x) for x in config.levels(config.defaults)[:-1]]


if __name__ == "__main__":
  app.run(main)
