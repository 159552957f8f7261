"""The smallest experiments with every kind of leaf."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.config import TemporalConfig
from lumiere_jax.stages.config import DiffusionConfig
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.config import Experiment, TrainConfig
from lumiere_jax.training.loop import train
from lumiere_jax.training.task import Task
from tests.conftest import replace

# One level: compiles ten times faster than the two of the real configs.
IMAGE = dataclasses.replace(
  common.TINY,
  channels=(8,),
  num_res_blocks=(1,),
  attention=("self",),
  text_channels=8,
  head_dim=8,
  norm_groups=4,
)

TEMPORAL = TemporalConfig(
  resample=(), num_attentions=1, head_dim=8, max_distance=4
)

TRAIN = TrainConfig(
  steps=4,
  batch_size=2,
  trainable=".*",
  learning_rate=1e-3,
  warmup_steps=2,
  ema_decay=0.9,
  log_every=1,
  eval_every=0,
  eval_clips=0,  # compiles another two programs
  eval_levels=2,
  save_every=100,
)

T2I = Experiment(
  stage="t2i",
  model=IMAGE,
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=DataConfig(
    source="procedural", num_clips=8, num_frames=1, resolution=8, threads=1
  ),
  train=TRAIN,
)

BASE = replace(
  T2I,
  stage="base",
  model={"temporal": TEMPORAL},
  data={"num_frames": 4},
  train={"trainable": "temporal_"},
)

CONDITIONAL = replace(
  BASE,
  stage="conditional",
  model={"cond_channels": 4},
  data={"masks": "first_frame random_boxes"},
  train={"trainable": "temporal_|cond_in"},
)


def records(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def load(workdir: pathlib.Path, part: str):
  """The leaves of a part of a run's bundle."""
  return open_bundle(workdir).load(part)


def assert_same(expected, got) -> None:
  """Checks that leaves are in `got` too, bit for bit."""
  for path, leaf in expected.items():
    np.testing.assert_array_equal(leaf, got[path], err_msg=path)


def make_task(experiment: Experiment) -> Task:
  width = experiment.model.text_dim
  return Task(
    experiment=experiment,
    null_text=jnp.zeros((4, width)),
    null_mask=jnp.ones(4, bool),
  )


def make_batch(experiment: Experiment, size: int, seed: int = 0, frames=None):
  """Random clips, texts and masks."""
  data, model = experiment.data, experiment.model
  keys = jax.random.split(jax.random.key(seed), 3)
  shape = (size, frames or data.num_frames, *data.resolution)
  pixels = lambda key, channels, top: jax.random.randint(
    key, (*shape, channels), 0, top
  ).astype(jnp.uint8)
  batch = {
    "video": pixels(keys[0], 3, 256),
    "text": jax.random.normal(keys[1], (size, 4, model.text_dim)),
    "text_mask": jnp.ones((size, 4), bool),
  }
  if model.cond_channels:
    batch["mask"] = pixels(keys[2], 1, 2)
  return batch


def run_stage(tmp_path_factory, experiment: Experiment) -> pathlib.Path:
  """Trains a stage in a new folder."""
  workdir = tmp_path_factory.mktemp(experiment.stage)
  train(experiment, workdir)
  return workdir


@pytest.fixture(scope="session")
def image_run(tmp_path_factory):
  """A text-to-image model trained for a few steps."""
  return run_stage(tmp_path_factory, T2I)


@pytest.fixture(scope="session")
def base_run(tmp_path_factory, image_run):
  """A base inflated from it, trained for a few steps and evaluated."""
  changes = {"init_from": str(image_run), "train": {"eval_clips": 2}}
  return run_stage(tmp_path_factory, replace(BASE, **changes))
