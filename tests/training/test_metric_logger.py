"""What a run tells: sinks, tables, speed, warnings, profiles."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.data.loader import LoadTimer
from lumiere_jax.errors import UserError
from lumiere_jax.training.loop import ProfileWindow, Saver
from lumiere_jax.training.metric_logger import MetricLogger
from lumiere_jax.training.metric_writers import (
  Clip,
  WeightsAndBiases,
  flat_numbers,
)
from lumiere_jax.training.param_overview import memory_table, parameter_table
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, records


def test_numbers_of_a_record_are_flattened():
  record = {
    "step": 3,
    "loss": 0.5,
    "grad_norms": {"mid": 1, "head": 2.0},
    "by_noise_level": [0.1, 0.2],
    "mfu": None,
    "name": "x",
  }
  assert dict(flat_numbers(record)) == {
    "loss": 0.5,
    "grad_norms/mid": 1.0,
    "grad_norms/head": 2.0,
    "by_noise_level/0": 0.1,
    "by_noise_level/1": 0.2,
  }


def test_parameters_are_tabled_by_block_in_the_order_of_the_network():
  leaf = lambda *shape: np.zeros(shape)
  frozen = {"up_0_0/a": leaf(1000), "down_0_0/a": leaf(5), "head/a": leaf(2)}
  trainable = {"temporal_down_0_0/a": leaf(3, 4), "cond_in/a": leaf(7)}
  lines = parameter_table(trainable, frozen).splitlines()
  assert [line.split() for line in lines] == [
    ["parameters", "trainable", "frozen"],
    ["cond_in", "7"],
    ["down_0", "5"],
    ["temporal_down_0", "12"],
    ["up_0", "1,000"],
    ["head", "2"],
    ["all", "19", "1,007"],
  ]
  assert len({line.index("1,0") for line in lines if "1,0" in line}) == 1


def test_memory_is_tabled_with_its_sum():
  table = memory_table({"average": 2**20, "optimizer": 3 * 2**21})
  assert table.splitlines()[1:] == [
    "  average             1.0",
    "  optimizer           6.0",
    "  all                 7.0",
  ]


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in that records what it is told."""
  module = types.SimpleNamespace(calls=[])
  run = types.SimpleNamespace(
    log=lambda what, step: module.calls.append((step, what)),
    finish=lambda: module.calls.append("finished"),
  )
  module.errors = types.SimpleNamespace(Error=ConnectionError)
  module.Video = module.Image = lambda path: path
  module.init = lambda **kwargs: module.calls.append(kwargs) or run
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_weights_and_biases_goes_on_with_the_same_run(wandb, tmp_path):
  clip = Clip(
    name="preview/0",
    path=tmp_path / "x.mp4",
    video=np.zeros((1, 2, 2, 3), np.uint8),
    fps=16.0,
  )
  for _ in range(2):
    sink = WeightsAndBiases("project", tmp_path, {"seed": 1})
    sink.scalars(4, {"train": {"loss": 0.5}})
    sink.clip(4, clip)
    sink.close()
  first = wandb.calls[0]
  assert (first["project"], first["resume"]) == ("project", "allow")
  assert wandb.calls[1:4] == [
    (4, {"train/loss": 0.5}),
    (4, {"preview/0": str(clip.path)}),
    "finished",
  ]
  assert wandb.calls[4]["id"] == first["id"] != ""


def test_when_weights_and_biases_refuses_the_mend_is_said(wandb, tmp_path):
  def refuse(**kwargs):
    raise ConnectionError("no key")

  wandb.init = refuse
  with pytest.raises(UserError, match=r"\(no key\); log in"):
    WeightsAndBiases("project", tmp_path, {})


def test_without_wandb_the_mend_is_said(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match="pip install wandb"):
    WeightsAndBiases("project", tmp_path, {})


def metrics(in_a_row=0):
  return {
    "loss": jnp.float32(0.5),
    "grad_norm": jnp.float32(1.0),
    "grad_norms": {"mid": jnp.float32(1.0)},
    "learning_rate": 0.1,
    "skipped": jnp.int32(2),
    "skipped_in_a_row": jnp.int32(in_a_row),
  }


@pytest.fixture
def journal(tmp_path):
  made = MetricLogger(
    replace(T2I, train={"log_every": 2, "max_skips": 3}),
    tmp_path,
    0,
    LoadTimer(),
  )
  yield made
  made.close()


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still unless it is put forward."""
  now = [100.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_speed_is_that_of_the_steps_alone(clock, journal, tmp_path):
  clock(50)  # before the start
  journal.start_clock()
  for step in (1, 2):
    with journal.waiting():
      clock(1)
    with journal.apart(None):  # an evaluation, say
      clock(30)
    clock(3)
    journal.took_step(step, metrics(), flops=10**13)
  (record,) = records(tmp_path / "metrics.jsonl")
  assert record["seconds"] == 8
  assert record["clips_per_s"] == 2 * T2I.train.batch_size / 8
  assert record["tflops"] == 2 * 10 / 8 / jax.device_count()
  assert record["data_wait"] == 2 / 8
  assert record["loader_clips_per_s"] is None


def test_slow_loading_is_said_once(clock, journal, capsys):
  for step in range(1, 5):
    with journal.waiting():
      clock(1)
    clock(1)
    journal.took_step(step, metrics(), flops=1)
  said = capsys.readouterr().err
  assert said.count("50% of the time is spent waiting for clips") == 1
  assert "config.data.threads" in said


def test_steps_that_are_not_finite_stop_it(journal):
  journal.took_step(1, metrics(), flops=1)
  journal.took_step(2, metrics(2), flops=1)
  journal.took_step(3, metrics(3), flops=1)  # no line, so nobody looks
  with pytest.raises(UserError, match=r"last 4 steps, up to step 4"):
    journal.took_step(4, metrics(4), flops=1)


def test_pace_is_a_mean(clock):
  pace = LoadTimer()
  assert pace.take() is None
  for seconds in (1, 2, 6):
    with pace.timing():
      clock(seconds)
  assert pace.take() == 3
  assert pace.take() is None


def test_a_window_of_steps_is_profiled(tmp_path):
  config = replace(BASE, train={"profile_from": 2, "profile_steps": 2}).train
  window = ProfileWindow(config, tmp_path)
  double = jax.jit(lambda x: 2 * x)
  for step in range(6):
    with window.around(step):
      double(jnp.ones(3)).block_until_ready()
    there = bool(list((tmp_path / "profile").rglob("*.xplane.pb")))
    assert there == (step >= 3)
  assert list((tmp_path / "profile").rglob("*.trace.json.gz"))


def test_no_window_writes_no_profile(tmp_path):
  window = ProfileWindow(BASE.train, tmp_path)
  for step in range(20):
    with window.around(step):
      pass
  assert not list(tmp_path.iterdir())


def test_minutes_are_a_reason_to_save(clock):
  """And an evaluation that is the best yet, where the best is kept."""
  run = types.SimpleNamespace(
    experiment=replace(
      T2I, train={"save_every": 100, "save_minutes": 5.0, "keep_best": 1}
    ),
    task=types.SimpleNamespace(evaluation_log_snrs=[1.0]),
    exporter=lambda: None,
  )
  known = ((0, 9), (3, 5), (6, 7), (9, 4))
  losses = [{"step": s, "loss": x, "log_snr": [1.0]} for s, x in known]
  losses.append({"step": 1, "loss": 2})  # at other noise levels: no measure
  saver = Saver(run, types.SimpleNamespace(held_out=lambda: losses))
  assert [step for step in range(1, 12) if saver.due(step)] == [3, 9]
  assert saver.due(100)
  clock(5 * 60 - 1)
  assert not saver.due(11)
  clock(2)
  assert saver.due(11)
