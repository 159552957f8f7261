"""Training learns, and temporal layers learn what images do not show."""

import numpy as np

from lumiere_jax.data.sources import registry
from lumiere_jax.data.sources.base import Group
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, records


class Stills:
  """Clips of one random image repeated.

  A frame alone cannot be told from noise, but several can.
  """

  def __init__(self, number: int, first: int, frames: int):
    self._number, self._first, self._frames = number, first, frames

  def __len__(self):
    return self._number

  @property
  def groups(self):
    return [Group(indices=range(self._number))]

  def captions(self, index):
    return ("noise",)

  def clip(self, index, rng=None):
    draw = np.random.default_rng(self._first + index)
    picture = draw.integers(0, 256, (1, 8, 8, 3), np.uint8)
    return np.repeat(picture, self._frames, axis=0)


def least_loss(frames: int) -> float:
  """The loss of the best linear denoiser that sees this many frames.

  The error of v is that of x0 over sigma. x0 has variance 1/3 in [-1, 1], and
  1 / (3 + frames alpha^2 / sigma^2) given the frames.
  """
  time = (np.arange(1000) + 0.5) / 1000
  alpha, sigma = np.cos(np.pi * time / 2), np.sin(np.pi * time / 2)
  return float(np.mean(1 / (3 * sigma**2 + frames * alpha**2)))


def test_learning(tmp_path, monkeypatch):
  """Held-out loss falls in every stage, and temporal layers lower it further.

  Image training reaches the optimum for one frame. The base then beats it, and
  its own weights without the temporal layers.
  """
  monkeypatch.setitem(
    registry.SOURCES,
    "procedural",
    lambda config, seed, report: (
      Stills(4096, 0, config.num_frames),
      Stills(64, 10**6, config.num_frames),
    ),
  )
  brief = {
    "steps": 80,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 10,
    "cooldown_steps": 30,
    "eval_clips": 32,
    "eval_levels": 4,
    "log_every": 10,
  }
  wide = {"channels": (16,)}
  pictures = replace(T2I, model=wide, train=brief | {"batch_size": 32})
  videos = replace(
    BASE,
    model=wide,
    data={"num_frames": 8},
    init_from=str(tmp_path / "t2i"),
    train=brief,
  )
  ends = {}
  for experiment in (pictures, videos):
    workdir = tmp_path / experiment.stage
    train(experiment, workdir)
    first, ends[experiment.stage] = records(workdir / "held_out.jsonl")
    assert ends[experiment.stage]["loss"] < 0.9 * first["loss"]
  alone, together = least_loss(1), least_loss(8)
  assert 0.97 * alone < ends["t2i"]["loss"] < 1.05 * alone
  assert 0.97 * alone < ends["base"]["frame_by_frame"] < 1.05 * alone
  learned = (alone - ends["base"]["loss"]) / (alone - together)
  assert 0.35 < learned < 1.03
