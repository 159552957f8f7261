"""Metric logger and writers, parameter tables, profiles, when to save."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.data.loader import LoadTimer
from lumiere_jax.errors import UserError
from lumiere_jax.training.loop import PeriodicActions, ProfileWindow
from lumiere_jax.training.metric_logger import (
  MetricLogger,
  PreviewClip,
  Trackio,
  WeightsAndBiases,
  flat_numbers,
)
from lumiere_jax.training.param_overview import memory_table, parameter_table
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, records


def test_nested_numbers_are_flattened():
  nested = {"grad_norms": {"mid": 1, "head": 2.0}, "by_noise_level": [0.1, 0.2]}
  record = {"loss": 0.5, **nested, "mfu": None, "name": "x"}
  assert flat_numbers(record) == {
    "loss": 0.5,
    "grad_norms/mid": 1.0,
    "grad_norms/head": 2.0,
    "by_noise_level/0": 0.1,
    "by_noise_level/1": 0.2,
  }


def test_parameter_table_is_in_the_order_of_the_network():
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


def test_memory_table_has_a_sum():
  table = memory_table({"average": 2**20, "optimizer": 3 * 2**21})
  assert table.splitlines()[1:] == [
    "  average             1.0",
    "  optimizer           6.0",
    "  all                 7.0",
  ]


@pytest.fixture
def wandb(monkeypatch):
  """A fake module that records calls."""
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


def test_weights_and_biases_resumes_the_same_run(wandb, tmp_path):
  video = np.zeros((1, 2, 2, 3), np.uint8)
  clip = PreviewClip("preview/0", tmp_path / "x.mp4", video, 16.0)
  for _ in range(2):
    writer = WeightsAndBiases("project", tmp_path, {"seed": 1})
    writer.scalars(4, {"train": {"loss": 0.5}})
    writer.clip(4, clip)
    writer.close()
  first = wandb.calls[0]
  assert (first["project"], first["resume"]) == ("project", "allow")
  assert wandb.calls[1:4] == [
    (4, {"train/loss": 0.5}),
    (4, {"preview/0": str(clip.path)}),
    "finished",
  ]
  assert wandb.calls[4]["id"] == first["id"] != ""


def test_wandb_errors_say_how_to_fix_them(wandb, tmp_path, monkeypatch):
  def fail(**kwargs):
    raise ConnectionError("no key")

  wandb.init = fail
  with pytest.raises(UserError, match=r"\(no key\); log in"):
    WeightsAndBiases("project", tmp_path, {})
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match="pip install wandb"):
    WeightsAndBiases("project", tmp_path, {})


@pytest.fixture
def trackio(monkeypatch):
  """A fake module that records calls."""
  module = types.SimpleNamespace(calls=[])
  run = types.SimpleNamespace(
    log=lambda what, step: module.calls.append((step, what)),
    finish=lambda: module.calls.append("finished"),
  )
  module.Video = lambda path: ("video", path)
  module.Image = lambda path: ("image", path)
  module.init = lambda **kwargs: module.calls.append(kwargs) or run
  monkeypatch.setitem(sys.modules, "trackio", module)
  return module


@pytest.mark.parametrize(
  ("file", "kind"), [("x.mp4", "video"), ("x.png", "image"), ("x.gif", "video")]
)
def test_trackio_resumes_the_same_run(trackio, tmp_path, file, kind):
  video = np.zeros((1, 2, 2, 3), np.uint8)
  clip = PreviewClip("preview/0", tmp_path / file, video, 16.0)
  for _ in range(2):
    writer = Trackio("project", tmp_path, {"seed": 1})
    writer.scalars(4, {"train": {"loss": 0.5}})
    writer.clip(4, clip)
    writer.close()
  first = trackio.calls[0]
  assert (first["project"], first["resume"]) == ("project", "allow")
  assert first["name"].startswith(f"{tmp_path.name}-")
  assert trackio.calls[1:4] == [
    (4, {"train/loss": 0.5}),
    (4, {"preview/0": (kind, str(clip.path))}),
    "finished",
  ]
  assert trackio.calls[4] == first


def test_trackio_errors_say_how_to_fix_them(trackio, tmp_path, monkeypatch):
  def fail(**kwargs):
    raise ValueError("reserved")

  trackio.init = fail
  with pytest.raises(UserError, match=r"\(reserved\); choose another name"):
    Trackio("project", tmp_path, {})
  monkeypatch.setitem(sys.modules, "trackio", None)
  with pytest.raises(UserError, match="pip install trackio"):
    Trackio("project", tmp_path, {})


def test_trackio_is_one_of_the_writers(trackio, tmp_path):
  experiment = replace(T2I, train={"log_every": 1, "trackio": "project"})
  with contextlib.closing(
    MetricLogger(experiment, tmp_path, 0, LoadTimer())
  ) as logger:
    logger.log_step(1, metrics(), flops=1)
  opened, (step, values), finished = trackio.calls
  assert opened["config"]["train"]["trackio"] == "project"
  assert (step, values["train/loss"], finished) == (1, 0.5, "finished")


def test_the_real_trackio_stores_locally(tmp_path):
  pytest.importorskip("trackio")
  code = """
import pathlib, sys
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.training.metric_logger import PreviewClip, Trackio
import numpy as np

folder = pathlib.Path(sys.argv[1])
clip = PreviewClip(
  "preview/0", folder / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8.0
)
write_video(clip.path, clip.video, clip.fps)
for step in (1, 2):
  writer = Trackio("project", folder, {"train": {"stds": (0.1,)}})
  writer.scalars(step, {"train": {"loss": 0.5 * step}})
  writer.clip(step, clip)
  writer.close()
"""
  environment = os.environ | {
    "TRACKIO_DIR": str(tmp_path / "trackio"),
    "HF_HUB_OFFLINE": "1",
  }
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert not done.returncode, done.stderr
  with sqlite3.connect(tmp_path / "trackio" / "project.db") as database:
    rows = database.execute("select step, metrics from metrics order by step")
    found = [(step, json.loads(text)) for step, text in rows]
  losses = [(step, x["train/loss"]) for step, x in found if "train/loss" in x]
  assert losses == [(1, 0.5), (2, 1.0)]
  assert len([*(tmp_path / "trackio").rglob("*.mp4")]) == 2


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
def logger(tmp_path):
  experiment = replace(T2I, train={"log_every": 2, "max_skips": 3})
  with contextlib.closing(
    MetricLogger(experiment, tmp_path, 0, LoadTimer())
  ) as logger:
    yield logger


@pytest.fixture
def clock(monkeypatch):
  """A clock that only moves when called."""
  now = [100.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_speed_excludes_untimed_blocks(clock, logger, tmp_path):
  clock(50)  # before the start
  logger.start_clock()
  for step in (1, 2):
    with logger.waiting_for_data():
      clock(1)
    with logger.untimed(None):  # such as an evaluation
      clock(30)
    clock(3)
    logger.log_step(step, metrics(), flops=10**13)
  (record,) = records(tmp_path / "metrics.jsonl")
  assert record["seconds"] == 8
  assert record["clips_per_s"] == 2 * T2I.train.batch_size / 8
  assert record["tflops"] == 2 * 10 / 8 / jax.device_count()
  assert record["data_wait"] == 2 / 8
  assert record["loader_clips_per_s"] is None


def test_slow_loading_is_reported_once(clock, logger, capsys):
  for step in range(1, 5):
    with logger.waiting_for_data():
      clock(1)
    clock(1)
    logger.log_step(step, metrics(), flops=1)
  err = capsys.readouterr().err
  assert err.count("50% of the time is spent waiting for clips") == 1
  assert "config.data.threads" in err


def test_many_skipped_steps_stop_the_run(logger):
  logger.log_step(1, metrics(), flops=1)
  logger.log_step(2, metrics(2), flops=1)
  logger.log_step(3, metrics(3), flops=1)  # not a log step: unchecked
  with pytest.raises(UserError, match=r"step 4: .* last 4 steps"):
    logger.log_step(4, metrics(4), flops=1)


def test_load_timer_gives_the_mean(clock):
  timer = LoadTimer()
  assert timer.take() is None
  for seconds in (1, 2, 6):
    with timer.timing():
      clock(seconds)
  assert timer.take() == 3
  assert timer.take() is None


@pytest.mark.parametrize("steps", [0, 2])
def test_the_configured_steps_are_profiled(tmp_path, steps):
  changes = {"profile_from": 2, "profile_steps": steps}
  window = ProfileWindow(replace(BASE, train=changes).train, tmp_path)
  double = jax.jit(lambda x: 2 * x)
  for step in range(6):
    with window.around(step):
      double(jnp.ones(3)).block_until_ready()
    there = bool(list((tmp_path / "profile").rglob("*.xplane.pb")))
    assert there == (steps > 0 and step >= 3)


def test_when_saving_is_due(clock):
  """By steps, by minutes, or by the best evaluation so far."""
  run = types.SimpleNamespace(
    experiment=replace(
      T2I,
      train={"save_every": 100, "save_minutes": 5.0, "keep_best": 1}
      | {"eval_clips": 1},
    ),
    task=types.SimpleNamespace(evaluation_log_snrs=[1.0]),
  )
  known = ((0, 9), (3, 5), (6, 7), (9, 4))
  losses = [{"step": s, "loss": x, "log_snr": [1.0]} for s, x in known]
  losses.append({"step": 1, "loss": 2})  # other noise levels: ignored
  records = types.SimpleNamespace(held_out_records=lambda: losses)
  actions = PeriodicActions(run, records)
  assert [step for step in range(1, 12) if actions.save_due(step)] == [3, 9]
  assert actions.save_due(100)
  clock(5 * 60 - 1)
  assert not actions.save_due(11)
  clock(2)
  assert actions.save_due(11)
