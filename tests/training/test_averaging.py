"""Averages of a length that is chosen after training."""

import numpy as np
import pytest

from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.errors import UserError
from lumiere_jax.training.averaging import exponent, reconstruct, write_snapshot
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import T2I, assert_same, load

STDS = (0.05, 0.1)
UPDATES = 640


@pytest.fixture(scope="module")
def walk():
  """Weights after each update: far from zero, noisy and drifting."""
  rng = np.random.default_rng(0)
  steps = rng.normal(size=(UPDATES, 50)) * 0.1
  return 5 + np.cumsum(steps, 0) + rng.normal(size=steps.shape)


def average(walk, updates, std):
  edges = (np.arange(updates + 1) / updates) ** (exponent(std) + 1)
  return np.diff(edges) @ walk[:updates]


@pytest.fixture(scope="module")
def workdir(walk, tmp_path_factory):
  """32 snapshots of each average."""
  folder = tmp_path_factory.mktemp("run")
  for updates in range(20, UPDATES + 1, 20):
    for std in STDS:
      leaf = average(walk, updates, std).astype(np.float32)
      counts = {"step": updates + 3, "updates": updates}
      write_snapshot(folder, "base", std, {"w": leaf}, **counts)
  return folder


@pytest.mark.parametrize(
  ("std", "tolerance"),
  [(0.05, 1e-5), (0.1, 1e-5), (0.07, 0.002), (0.03, 0.02), (0.2, 0.01)],
)
def test_any_length_is_that_of_all_weights(walk, workdir, std, tolerance):
  """To a share of the difference that the length makes."""
  leaves, step, error = reconstruct(workdir, "base", std)
  expected = average(walk, UPDATES, std)
  scale = np.abs(expected - walk[-1]).max()
  np.testing.assert_allclose(leaves["w"], expected, atol=tolerance * scale)
  assert step == UPDATES + 3
  assert error < max(tolerance, 1e-4)


def test_lengths_that_cannot_be_had(workdir, tmp_path):
  with pytest.raises(UserError, match=r"off by .*nearer to 0\.05 or 0\.1"):
    reconstruct(workdir, "base", 0.002)
  with pytest.raises(UserError, match="has no averages of stage 'ssr'"):
    reconstruct(workdir, "ssr", 0.1)
  for options in ({"source": "bundle"}, {"target": "stablehlo"}):
    job = {"source": "workdir", "src": (str(workdir),), "out": str(tmp_path)}
    with pytest.raises(UserError, match=r"ema_std=0\.1 needs the snapshots"):
      convert(Conversion(**{**job, **options}, ema_std=0.1))


def test_a_run_keeps_and_resumes_them_and_convert_chooses(tmp_path):
  whole, torn, out = (tmp_path / name for name in ("whole", "torn", "out"))
  settings = replace(T2I, train={"steps": 6, "ema_stds": STDS, "ema_every": 2})
  train(settings, whole)
  train(replace(settings, train={"steps": 3}), torn)
  train(settings, torn)
  files = lambda run: {p.name: p.read_bytes() for p in run.glob("averages/*")}
  kept = files(whole)
  assert sorted(kept) == [
    f"t2i-{step:08d}-{std}.safetensors" for step in (2, 4, 6) for std in STDS
  ]
  resumed = files(torn)
  assert {k: resumed[k] for k in kept} == kept
  assert_same(load(whole, "t2i"), load(torn, "t2i"))
  job = {"source": "workdir", "src": (str(whole),), "out": str(out)}
  convert(Conversion(**job, ema_std=0.1))
  chosen, plain = load(out, "t2i"), load(whole, "t2i")
  expected, _, _ = reconstruct(whole, "t2i", 0.1)
  assert chosen.keys() == plain.keys() == expected.keys()
  assert_same(expected, chosen)
  assert any((chosen[k] != plain[k]).any() for k in plain)
  with pytest.raises(UserError, match=r"ema_stds=\(0\.05, 0\.1\) and not \(\)"):
    train(replace(settings, train={"ema_stds": (), "steps": 7}), torn)
