"""Configs are checked against the weights they start or resume from."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil

import pytest

from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.errors import UserError
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.compatibility import check_resumed
from lumiere_jax.training.initialization import (
  check_init_from,
  resolve_shift,
  set_auto_shift,
)
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, records

AUTO = {"shift": "auto"}


def base(image_run, **changes):
  return replace(BASE, init_from=str(image_run), **changes)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"diffusion": {"prediction": "eps"}}, "prediction is 'eps' here and 'v'"),
    ({"diffusion": {"null_text": "empty"}}, "null_text is 'empty' here"),
    ({"model": {"skip_scale": 0.7}}, "model.skip_scale is 0.7 here and 1.0"),
    ({"model": {"mask_text": False}}, "model.mask_text is False here"),
    ({"text": {"max_length": 40}}, "another text encoder"),
  ],
)
def test_another_task_does_not_fit_frozen_layers(
  image_run, tmp_path, changes, words
):
  with pytest.raises(UserError, match=words) as error:
    train(base(image_run, **changes), tmp_path / "run")
  assert "\n" not in str(error.value)
  assert str(image_run) in str(error.value)


def test_if_all_layers_train_the_task_may_change(image_run):
  """The noise embedding may not."""
  tune = replace(T2I, init_from=str(image_run))
  eps = replace(tune, diffusion={"prediction": "eps"})
  check_init_from(eps, resuming=False)
  shifted = replace(tune, model={"noise_embedding_shift": 1.0})
  with pytest.raises(UserError, match=r"noise_embedding_shift is 1\.0 here"):
    check_init_from(shifted, resuming=False)


def test_each_stage_may_have_its_own_schedule_and_shift(image_run):
  changes = {"schedule": "linear", "shift": -2.0, "noise": "normal"}
  check_init_from(base(image_run, diffusion=changes), resuming=False)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"diffusion": {"prediction": "eps"}}, "prediction is 'eps' and was 'v'"),
    ({"diffusion": {"schedule": "linear"}}, "schedule is 'linear'"),
    ({"diffusion": {"shift": -1.0}}, "shift is -1.0 and was 0.0"),
    ({"diffusion": {"noise": "normal"}}, "noise is 'normal'"),
    ({"model": {"noise_embedding": "linear"}}, "noise_embedding is 'linear'"),
    ({"text": {"max_length": 40}}, "text.max_length is 40 and was 48"),
    ({"text": {"cleaning": "lower"}}, "text.cleaning is 'lower'"),
    ({"init_from": "elsewhere"}, "config.init_from is 'elsewhere' and was"),
  ],
)
def test_a_resumed_run_cannot_change_fixed_settings(
  base_run, image_run, changes, words
):
  experiment = base(image_run, train={"steps": 6})
  before = snapshot(base_run)
  with pytest.raises(UserError, match=words):
    train(replace(experiment, **changes), base_run)
  assert snapshot(base_run) == before


def snapshot(folder):
  """The content hash and mtime of every file."""
  return {
    str(path): (
      hashlib.sha256(path.read_bytes()).hexdigest(),
      path.stat().st_mtime_ns,
    )
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_a_finished_run_changes_nothing_on_disk(base_run, image_run, capfd):
  """A relative path is the same source."""
  before = snapshot(base_run)
  other = {"ema_decay": 0.5, "steps": 3}  # would change the bundle
  train(base(os.path.relpath(image_run), train=other), base_run)
  assert snapshot(base_run) == before
  assert "finished at step 4, nothing to do" in capfd.readouterr().err


def test_an_outdated_bundle_is_written_again(base_run, image_run, tmp_path):
  run = shutil.copytree(base_run, tmp_path / "run")
  index = run / "bundle" / "bundle.json"
  want = json.loads(index.read_text())
  content = json.loads(index.read_text())
  content["parts"]["base"]["meta"]["step"] = 2
  index.write_text(json.dumps(content))
  train(base(image_run), run)
  assert json.loads(index.read_text()) == want


def test_auto_shift_depends_on_the_source(image_run, tmp_path):
  auto = base(image_run, diffusion=AUTO)
  assert resolve_shift(auto).diffusion.shift == FOUR_FRAMES
  of_size = set_auto_shift(replace(T2I, diffusion=AUTO)).diffusion.shift
  assert of_size == pytest.approx(-math.log(8 * 8 / 64**2), abs=1e-3)
  source = resolve_shift(auto).sampling
  of_same = set_auto_shift(replace(BASE, diffusion=AUTO), source).diffusion
  assert of_same.shift == pytest.approx(source.diffusion.shift)
  # An inflated model was not trained on clips yet.
  out = tmp_path / "inflated"
  job = Conversion(
    source="workdir",
    target="bundle",
    src=(str(image_run),),
    out=str(out),
    temporal=BASE,
  )
  convert(job)
  inflated = resolve_shift(base(out, diffusion=AUTO))
  assert inflated.diffusion.shift == FOUR_FRAMES


FOUR_FRAMES = pytest.approx(-math.log(4), abs=1e-3)


def test_a_resumed_run_keeps_its_auto_shift(image_run, tmp_path):
  run, source = tmp_path / "run", tmp_path / "source"
  shutil.copytree(image_run, source)
  experiment = base(source, diffusion=AUTO, train={"steps": 1})
  train(experiment, run)
  shutil.rmtree(source)
  train(replace(experiment, train={"steps": 2}), run)
  configs = [record["config"] for record in records(run / "runs.jsonl")]
  shifts = [config["diffusion"]["shift"] for config in configs]
  assert shifts == [FOUR_FRAMES] * 2
  meta = open_bundle(run).parts["base"].meta
  assert meta["diffusion"]["shift"] == shifts[0]
  assert (run / "noise.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
  ("optimizer", "fails"), [("schedule_free", True), ("adam", False)]
)
def test_the_share_of_a_schedule_free_average_is_fixed(optimizer, fails):
  before = replace(BASE, train={"optimizer": optimizer})
  now = replace(before, train={"b1": 0.95})
  run = {"config": dataclasses.asdict(before)}
  check_resumed(before, run)
  with (
    pytest.raises(UserError, match=r"train\.b1 is 0\.95 and was 0\.9")
    if fails
    else contextlib.nullcontext()
  ):
    check_resumed(now, run)
