"""Training the real configs, shrunk: what moves, what must not, what fails."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import base, demo, ssr, ssr_image, t2i
from lumiere_jax.io.bundle import open_bundle
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train
from lumiere_jax.training.state import ema_decay
from lumiere_jax.typing import UserError
from tests.conftest import replace


def records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def load(workdir, stage):
  return open_bundle(workdir).load(stage)


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
  """A text-to-image model trained for a few steps."""
  workdir = tmp_path_factory.mktemp("t2i")
  train(replace(t2i.TINY, train={"steps": 4}), workdir)
  return workdir


@pytest.fixture(scope="module")
def base_run(tmp_path_factory, image_run):
  """A base inflated from it and trained for a few steps."""
  workdir = tmp_path_factory.mktemp("base")
  train(
    replace(base.TINY, init_from=str(image_run), train={"steps": 5}), workdir
  )
  return workdir


def test_frozen_leaves_stay_and_trainable_leaves_move(image_run, base_run):
  image, video = load(image_run, "t2i"), load(base_run, "base")
  added = {k for k in video if k.startswith("temporal_")}
  assert video.keys() - added == image.keys()
  for path, leaf in image.items():  # bit for bit
    np.testing.assert_array_equal(leaf, video[path], err_msg=path)
  task_params = fresh_temporal(base_run)
  still = [k for k in added if np.array_equal(video[k], task_params[k])]
  assert not still


def fresh_temporal(workdir):
  """The temporal leaves as they were before the first step."""
  import jax.numpy as jnp

  from lumiere_jax.training.tasks import Task

  text = base.TINY.model.text_dim
  task = Task(
    experiment=base.TINY,
    null_text=jnp.zeros((4, text)),
    null_mask=jnp.ones(4, bool),
  )
  return jax.jit(task.init)(jax.random.key(base.TINY.seed))


def test_state_holds_nothing_for_frozen_leaves(base_run):
  """No gradient, moment or average of them is saved: sizes by hand."""
  video = load(base_run, "base")
  trained = sum(v.size for k, v in video.items() if k.startswith("temporal_"))
  start = json.loads((base_run / "runs.jsonl").read_text())
  frozen = sum(v.size for v in video.values()) - trained
  assert start["parameters"] == {"trainable": trained, "frozen": frozen}
  files = list((base_run / "frozen").iterdir())
  assert len(files) == 1
  assert files[0].stat().st_size >= 4 * frozen
  # The bundle links it rather than keeping a second copy.
  linked = [f for f in (base_run / "bundle").iterdir() if "frozen" in f.name]
  assert linked[0].samefile(files[0])
  newest = max((base_run / "checkpoints").iterdir(), key=lambda p: p.name)
  stored = sum(f.stat().st_size for f in newest.rglob("*") if f.is_file())
  # weights, average, two moments; compressed, with some bookkeeping
  assert stored < 4 * 4 * trained * 1.5 + 300_000


def test_files_of_a_run(base_run):
  steps = records(base_run / "metrics.jsonl")
  assert [r["step"] for r in steps] == [1, 2, 3, 4, 5]
  assert all(np.isfinite(r["loss"]) for r in steps)
  held_out = records(base_run / "held_out.jsonl")
  assert [r["step"] for r in held_out] == [0, 5]
  assert len(held_out[0]["by_noise_level"]) == base.TINY.train.eval_levels
  start = json.loads((base_run / "runs.jsonl").read_text())
  assert (start["start_step"], start["processes"]) == (0, 1)
  assert start["devices"] == jax.device_count()


def test_a_finished_run_is_left_as_it_is(base_run, image_run):
  before = (base_run / "metrics.jsonl").read_text()
  train(
    replace(base.TINY, init_from=str(image_run), train={"steps": 5}), base_run
  )
  assert (base_run / "metrics.jsonl").read_text() == before


def test_super_resolution_stages_train(tmp_path):
  picture, video = tmp_path / "ssr_image", tmp_path / "ssr"
  train(replace(ssr_image.TINY, train={"steps": 2}), picture)
  train(replace(ssr.TINY, init_from=str(picture), train={"steps": 2}), video)
  image, inflated = load(picture, "ssr_image"), load(video, "ssr")
  for path, leaf in image.items():
    np.testing.assert_array_equal(leaf, inflated[path], err_msg=path)


def test_learning(tmp_path):
  """Held-out loss falls at every stage, and time layers are worth having.

  The base beats the very same weights with the temporal layers left out, on
  held-out clips: it learned something about time that frames do not show.
  """
  shrink = {"num_clips": 400}
  brief = {"steps": 120, "cooldown_steps": 70, "eval_clips": 16}
  pictures = replace(demo.T2I, data=shrink, train=brief)
  videos = replace(
    demo.BASE, init_from=str(tmp_path / "t2i"), data=shrink, train=brief
  )
  for experiment, factor in ((pictures, 0.6), (videos, 0.98)):
    workdir = tmp_path / experiment.stage
    train(experiment, workdir)
    first, last = records(workdir / "held_out.jsonl")
    assert last["loss"] < factor * first["loss"]
  assert last["loss"] < 0.98 * last["frame_by_frame"]


def test_average_of_weights_follows_its_closed_form():
  """ema_n = sum over steps of (1 - d_k) w_k, times the decays after them."""
  decay, weights = 0.9, [1.0, -2.0, 0.5, 4.0, 3.0]
  ema = start = 0.25
  for step, weight in enumerate(weights):
    d = float(ema_decay(np.int32(step), decay))
    ema = d * ema + (1 - d) * weight
  ds = [min(decay, (1 + k) / (10 + k)) for k in range(5)]
  closed = start * np.prod(ds) + sum(
    (1 - ds[k]) * weights[k] * np.prod(ds[k + 1 :]) for k in range(5)
  )
  np.testing.assert_allclose(ema, closed, rtol=1e-6)


@pytest.mark.parametrize("stage", ["base", "ssr"])
def test_a_stage_that_inflates_says_what_to_give(stage, tmp_path):
  experiment = {"base": base.FULL, "ssr": ssr.FULL}[stage]
  with pytest.raises(UserError) as error:
    train(experiment, tmp_path / "w")
  message = str(error.value)
  assert "--config.init_from=DIR" in message
  assert "--config.init_from=scratch" in message
  assert "\n" not in message
  assert not (tmp_path / "w").exists()


def test_another_config_is_refused_by_leaf_and_nothing_is_lost(
  base_run, image_run, tmp_path
):
  wider = dataclasses.replace(base.TINY.model, channels=(32, 48))
  before = sorted(p.name for p in (base_run / "checkpoints").iterdir())
  with pytest.raises(UserError, match=r"checkpoint 5 .*temporal_\S+ is 64"):
    train(
      replace(
        base.TINY, model=wider, init_from=str(image_run), train={"steps": 9}
      ),
      base_run,
    )
  with pytest.raises(UserError, match=r"init_from=.* is \d+x\d+"):
    train(replace(base.TINY, model=wider, init_from=str(image_run)), tmp_path)
  assert sorted(p.name for p in (base_run / "checkpoints").iterdir()) == before


def test_another_text_encoder_is_refused(image_run, tmp_path):
  with pytest.raises(UserError, match="another text encoder"):
    train(
      replace(base.TINY, init_from=str(image_run), text={"max_length": 47}),
      tmp_path,
    )


def test_full_size_without_t5_weights_says_so(tmp_path):
  experiment = replace(t2i.FULL, data={"source": "procedural", "num_clips": 8})
  with pytest.raises(UserError, match=r"4096.*--config.text.weights=DIR"):
    train(experiment, tmp_path)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"stage": "bse"}, 'not one of .*did you mean "base"'),
    ({"data": {"num_frames": 15}}, "num_frames=15 is no multiple of 2"),
    ({"data": {"crop": 64}}, "crop=64 is larger than the frames"),
    ({"upscale": 3}, "no multiple of config.upscale=3"),
    ({"train": {"steps": 0}}, "steps=0 must be above 0"),
    ({"diffusion": {"schedule": "cosin"}}, 'did you mean "cosine"'),
    ({"diffusion": {"caption_dropout": 2.0}}, "not in"),
  ],
)
def test_bad_values(changes, words):
  with pytest.raises(UserError, match=words):
    replace(base.TINY, **changes)


def test_unknown_keys_are_answered_with_the_nearest_name():
  config = dataclasses.asdict(base.TINY)
  config["train"]["lerning_rate"] = 1.0
  with pytest.raises(
    UserError, match=r"config.train: unknown key.*mean \"learning_rate\""
  ):
    Experiment.from_config(config)
