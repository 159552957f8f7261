"""The width of temporal position biases: by clips, source or resumed run."""

import dataclasses

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.compatibility import last_run
from lumiere_jax.training.initialization import resolve_max_distance
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import (
  BASE,
  CONDITIONAL,
  T2I,
  TEMPORAL,
  load,
  records,
)

TABLE = "temporal_mid/attention_0/position_bias"
LONG = {"data": {"num_frames": 16}}


def with_distance(number, start=BASE, **changes):
  """An experiment with this number in its config."""
  temporal = dataclasses.replace(TEMPORAL, max_distance=number)
  return replace(start, model={"temporal": temporal}, **changes)


def found(experiment, workdir=None):
  run = last_run(workdir) if workdir else None
  return resolve_max_distance(experiment, run).model.temporal.max_distance


def test_it_fits_the_longest_clips(image_run):
  assert with_distance(0).network.temporal.max_distance == 3  # 4 frames
  buckets = {"num_frames": 6, "buckets": "16x8x8 2x8x16"}
  longer = with_distance(0, data=buckets)
  assert longer.sampling.model.temporal.max_distance == 15
  for source in ("scratch", str(image_run)):
    assert found(replace(longer, init_from=source)) == 15
  assert resolve_max_distance(T2I, None) is T2I
  # The config itself is not changed.
  assert longer.model.temporal.max_distance == 0


def test_it_is_at_least_that_of_the_source(base_run):
  """Which is 4."""
  source = {"init_from": str(base_run)}
  assert found(with_distance(0, **source)) == 4
  assert found(with_distance(0, CONDITIONAL, **source)) == 4
  assert found(with_distance(0, **LONG, **source)) == 15
  assert found(with_distance(9, **source)) == 9
  with pytest.raises(UserError, match=r"=3 .*config\.init_from=.* has 4; set"):
    found(with_distance(3, **source))
  # An adapter does not change the weights it belongs to.
  adapter = {"lora": {"rank": 2}, **LONG, **source}
  assert found(with_distance(0, **adapter)) == 4
  with pytest.raises(UserError, match="set it to 4, or to 0"):
    found(with_distance(9, **adapter))


def test_a_resumed_run_keeps_its_own(base_run):
  """Also if its config set a number, as all once did."""
  assert found(with_distance(0, init_from="gone"), base_run) == 4
  assert found(with_distance(0, **LONG), base_run) == 4
  with pytest.raises(UserError, match=r"=5 .*the resumed run has 4"):
    found(with_distance(5), base_run)


def test_first_short_clips_then_long_ones(base_run, tmp_path):
  """The bias is widened by repeating its ends, and trains."""
  short = load(base_run, "base")[TABLE]
  assert short.shape[0] == 2 * 4 + 1
  experiment = with_distance(
    0,
    init_from=str(base_run),
    data={"num_frames": 8},
    train={"steps": 1, "warmup_steps": 1, "learning_rate": 1e-3},
  )
  train(experiment, tmp_path)
  meta = open_bundle(tmp_path).parts["base"].meta
  assert meta["model"]["temporal"]["max_distance"] == 7
  widened = np.concatenate([short[:1]] * 3 + [short] + [short[-1:]] * 3)
  moved = np.abs(load(tmp_path, "base")[TABLE] - widened)
  assert (moved <= 1.1e-3).all()  # one step of Adam
  assert moved.max() > 1e-6
  # Resumed with other clips, it keeps its width.
  train(
    replace(experiment, data={"num_frames": 4}, train={"steps": 2}), tmp_path
  )
  assert records(tmp_path / "metrics.jsonl")[-1]["step"] == 2
  assert load(tmp_path, "base")[TABLE].shape == widened.shape
