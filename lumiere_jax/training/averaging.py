"""Averages of weights whose length can be chosen after training.

Power-function averages (Karras et al. 2023, arXiv 2312.02696, section 3): after
update t, the weights of update k count in proportion to k^gamma. `std` is the
standard deviation of that profile relative to t. A few averages are kept in
training, snapshots of them are saved, and a least-squares fit of their profiles
gives the average of any other std.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from lumiere_jax.errors import UserError, option
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams

MAX_STD = 12**-0.5
"""That of a plain mean of all weights."""

_FOLDER = "averages"
_BINS = 4096  # of the updates, to compare profiles
_MAX_ERROR = 0.1


def exponent(std: float) -> float:
  """The gamma of a std: std^2 = (gamma + 1) / (gamma + 2)^2 / (gamma + 3)."""
  return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def update_averages(
  old: TrainState, new: TrainState, stds: Sequence[float]
) -> TrainState:
  """`new`, with the averages updated by its weights (section 3.1 of the paper).

  A skipped step changes nothing and is not counted.
  """
  if not stds:
    return new
  count = new.step - new.skipped
  taken = new.skipped == old.skipped
  log_shrink = jnp.log1p(-1.0 / jnp.maximum(count, 1).astype(jnp.float32))

  def update(std: float, average: FlatParams) -> FlatParams:
    share = -jnp.expm1((exponent(std) + 1) * log_shrink)
    share = jnp.where(taken, share, 0.0)
    return optax.incremental_update(new.trainable, average, share)

  averages = zip(stds, old.averages, strict=True)
  return dataclasses.replace(
    new, averages=tuple(update(std, average) for std, average in averages)
  )


def write_snapshot(
  workdir: Path, stage: str, std: float, leaves: FlatParams, **counts: int
) -> None:
  """Writes one average; `counts` are the step and the updates so far."""
  about = {"std": repr(std), **{k: str(v) for k, v in counts.items()}}
  name = f"{stage}-{counts['step']:08d}-{std:g}.safetensors"
  safetensors.save(workdir / _FOLDER / name, leaves, about)


def drop_snapshots_after(workdir: Path, step: int) -> None:
  """Removes those that a run which resumes from `step` will write again."""
  for path in (workdir / _FOLDER).glob("*.safetensors"):
    if int(path.name.split("-")[-2]) > step:
      path.unlink()


def reconstruct(
  workdir: Path, stage: str, std: float
) -> tuple[dict[str, LazyArray], int, float]:
  """The average of length `std` up to the newest snapshot.

  Returns:
    its leaves, the step of that snapshot, and the error of the fit: the norm of
    the difference between the profiles, relative to that of the wanted one.

  Raises:
    UserError: the workdir has no snapshots, or the fit is too far off.
  """
  files = sorted((workdir / _FOLDER).glob(f"{stage}-*.safetensors"))
  if not files:
    raise UserError(
      option("src", workdir),
      f"has no averages of stage {stage!r} to choose from",
      "train with config.train.ema_stds='(0.05, 0.1)'",
    )
  about = [safetensors.load_metadata(file) for file in files]
  stds = [float(a["std"]) for a in about]
  counts = [int(a["updates"]) for a in about]
  weights, error = fit(counts, stds, std)
  if error > _MAX_ERROR:
    raise UserError(
      option("ema_std", std),
      f"cannot be made of the {len(files)} snapshots in {workdir / _FOLDER}: "
      f"the fit is off by {error:.0%}",
      f"give a value nearer to {' or '.join(map(str, sorted({*stds})))}",
    )
  used = [(w, f) for w, f in zip(weights, files, strict=True) if abs(w) > 1e-7]
  parts = [(w, safetensors.load_lazily(f, finite=True)) for w, f in used]

  def lazy(path: str, leaf: Any) -> LazyArray:
    def make() -> np.ndarray:
      total = np.zeros(leaf.shape)
      for weight, leaves in parts:
        total += weight * np.asarray(leaves[path], np.float64)
      return total.astype(leaf.dtype)

    return LazyArray(leaf.shape, leaf.dtype, make)

  leaves = {path: lazy(path, leaf) for path, leaf in parts[0][1].items()}
  return leaves, max(int(a["step"]) for a in about), error


def fit(
  counts: Sequence[int], stds: Sequence[float], std: float
) -> tuple[np.ndarray, float]:
  """Weights of averages whose sum is nearest to another one.

  Args:
    counts: updates of each average.
    stds: its std.
    std: of the wanted one, up to the largest count.

  Returns:
    the weights, which add up to 1, and the relative error of the profile.
  """
  last = max(counts)
  edges = np.linspace(0, last, min(last, _BINS) + 1).round()
  edges = np.unique([*edges, *counts])
  widths = np.diff(edges) / last

  def profile(count: int, std: float) -> np.ndarray:
    """Shares of the updates between edges, as a vector of their L2 norm."""
    upto = (np.minimum(edges, count) / count) ** (exponent(std) + 1)
    return np.diff(upto) / np.sqrt(widths)

  given = np.stack(list(map(profile, counts, stds)), axis=1)
  wanted = profile(last, std)
  sums = 1e4  # the weight of the equation that the weights add up to 1
  system = np.vstack([given, np.full((1, len(counts)), sums)])
  weights = np.linalg.lstsq(system, [*wanted, sums], rcond=1e-10)[0]
  error = np.linalg.norm(given @ weights - wanted) / np.linalg.norm(wanted)
  return weights, float(error)
