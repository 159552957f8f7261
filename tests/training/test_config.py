"""Training configs: invalid values, sizes, documentation."""

import dataclasses
import importlib
import pathlib

from jax.sharding import AbstractMesh, AxisType
import pytest

from configs import base, conditional, demo, shipped, ssr, ssr_image, t2i
from lumiere_jax.errors import UserError
from lumiere_jax.parallel.mesh import AXES, check_batch
from lumiere_jax.stages.config import PARENTS
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train
from tests.conftest import replace

SCHEDULE_FREE = {"optimizer": "schedule_free"}
DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
  ("part", "changes", "words"),
  [
    ("data", {"num_frames": 15}, "num_frames=15 is not a multiple of 2"),
    ("data", {"buckets": "7x16x16"}, "num_frames=7 is not a multiple of 2"),
    ("data", {"buckets": "8x16x17"}, "width=17 is not a multiple of 2"),
    ("data", {"crop": 64}, "crop=64 is larger than the frames"),
    ("data", {"masks": "none"}, "cond_channels=0 .*config.data.masks"),
    ("model", {"cond_channels": 4}, "cond_channels=4 does not fit"),
    ("data", {"image_share": 1.0}, r"image_share=1\.0 must lie between"),
    ("data", {"min_fps_ratio": -1.0}, r"min_fps_ratio=-1\.0 must be at"),
    ("data", {"resample": "blnd"}, 'did you mean "blend"'),
    ("model", {"in_channels": 6}, "in_channels=6 .*upscale=1.* 3 channels"),
    ("train", {"steps": 0}, "steps=0 must be above 0"),
    ("train", {"learning_rate": float("nan")}, "learning_rate=nan must be"),
    ("train", {"accumulate": 3}, "batch_size=2 does not divide into acc"),
    ("train", {"keep_best": 1, "eval_clips": 0}, "keep_best=1 needs the held"),
    ("train", {"optimizer": "adamm"}, 'did you mean "adam"'),
    ("train", SCHEDULE_FREE | {"decay": "cosine"}, "decay='cosine' is not for"),
    ("train", SCHEDULE_FREE | {"cooldown_steps": 9}, "cooldown_steps=9 is not"),
    ("train", SCHEDULE_FREE | {"ema_stds": (0.1,)}, "ema_stds=.* is not for"),
    ("train", SCHEDULE_FREE | {"b1": 0.0}, "b1=0.0 must be above 0"),
    ("train", {"decay": "cosin"}, 'did you mean "cosine"'),
    ("train", {"frozen_dtype": "bf16"}, "source, bfloat16"),
    ("train", {"ema_stds": (0.1, 0.3)}, r"ema_stds=.* at most 0\.288"),
    ("train", {"ema_decay": 1.0}, r"ema_decay=1\.0 .* at least 0 and below 1"),
    ("train", {"keep_best": -1}, "keep_best=-1 must be at least 0"),
    ("preview", {"clips": 0}, r"config\.preview\.clips=0 must be above 0"),
    ("data", {"resolution": (8, 8, 8)}, "neither a side nor"),
    ("data", {"resolution": (0,)}, "neither a side nor"),
    ("data", {"resolution": ("abc",)}, "neither a side nor"),
    ("lora", {"rank": -1}, r"config\.lora\.rank=-1 must be at least 0"),
    ("diffusion", {"schedule": "cosin"}, 'did you mean "cosine"'),
    ("execution", {"remat": ("full",)}, "remat has 1 entries"),
  ],
)
def test_invalid_values(part, changes, words):
  with pytest.raises(UserError, match=words):
    replace(base.TINY, **{part: changes})


@pytest.mark.parametrize(
  ("start", "changes", "words"),
  [
    (base.TINY, {"stage": "bse"}, 'not one of .*did you mean "base"'),
    (base.TINY, {"upscale": 3}, r"not a multiple of config\.upscale=3"),
    (base.TINY, {"stage": "conditional"}, "cond_channels=0 does not fit stage"),
    (
      conditional.TINY,
      {"preview": {"prompts": ("a dog",)}},
      r"config\.preview\.prompts does not",
    ),
  ],
)
def test_parts_that_do_not_fit_together(start, changes, words):
  with pytest.raises(UserError, match=words):
    replace(start, **changes)


def test_unknown_keys_suggest_the_nearest_name():
  config = dataclasses.asdict(base.TINY)
  config["train"]["lerning_rate"] = 1.0
  words = r"config.train: unknown key.*mean \"learning_rate\""
  with pytest.raises(UserError, match=words):
    Experiment.from_config(config)


@pytest.mark.parametrize(
  ("value", "size"), [(24, (24, 24)), ((24,), (24, 24)), ((16, 32), (16, 32))]
)
def test_resolution_is_a_side_or_two(value, size):
  assert replace(base.TINY, data={"resolution": value}).data.resolution == size


@pytest.mark.parametrize("size", ["full", "tiny"])
@pytest.mark.parametrize("module", [t2i, base, conditional, ssr_image, ssr])
def test_configs_survive_a_round_trip(module, size):
  config = module.get_config(size).to_dict()
  assert Experiment.from_config(config) == getattr(module, size.upper())


def test_execution_keys_of_older_configs_may_be_in_the_model():
  config = dataclasses.asdict(base.FULL)
  config["model"] |= config.pop("execution")
  assert Experiment.from_config(config) == base.FULL


@pytest.mark.parametrize("module", [demo, shipped])
@pytest.mark.parametrize("stage", PARENTS)
def test_every_stage_has_a_demo_and_a_shipped_config(module, stage):
  experiment = Experiment.from_config(module.get_config(stage).to_dict())
  assert experiment.stage == stage
  assert experiment.model.text_dim == shipped.IMAGE.text_dim


def test_video_stages_of_full_size_drop_cuts_and_slideshows():
  filtered = lambda x: (x.data.scene_cuts > 0, x.data.min_motion > 0)
  for video in (base.FULL, conditional.FULL, ssr.FULL, conditional.SSR, ssr.IF):
    assert filtered(video) == (True, True)
  small = [base.TINY, base.IF_TINY, ssr.TINY, ssr.IF_TINY, conditional.TINY]
  others = [*demo.STAGES.values(), shipped.BASE, t2i.FULL, ssr_image.FULL]
  for other in [*small, *others]:
    assert filtered(other) == (False, False)


@pytest.mark.parametrize("start", [base.FULL, conditional.FULL, ssr.FULL])
def test_a_stage_with_a_parent_needs_init_from(start, tmp_path):
  with pytest.raises(UserError, match=r"init_from=DIR .*init_from=scratch"):
    train(start, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def leaves(config: dict, prefix: str = "config"):
  for name, value in config.items():
    if isinstance(value, dict):
      yield from leaves(value, f"{prefix}.{name}")
    else:
      yield f"{prefix}.{name}"


def test_every_key_is_in_the_guide():
  text = (DOCS / "training.md").read_text()
  keys = set(leaves(dataclasses.asdict(conditional.FULL)))
  assert not [key for key in sorted(keys) if f"`{key}`" not in text]


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("stage", PARENTS)
def test_tiny_configs_run_on_any_number_of_devices(stage, devices):
  """Their two clips divide among few devices; the others share rows."""
  tiny = importlib.import_module(f"configs.{stage}").TINY
  kinds = (AxisType.Auto,) * len(AXES)
  mesh = AbstractMesh(tiny.mesh.resolve(devices), AXES, axis_types=kinds)
  check_batch(tiny.train.batch_size, tiny.train.accumulate, mesh)
