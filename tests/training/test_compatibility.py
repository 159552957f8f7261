"""Configs are checked against the weights they start or resume from."""

import hashlib
import json
import math
import os

import pytest

from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.errors import UserError
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.compatibility import set_auto_shift
from lumiere_jax.training.initialization import check_init_from, resolve_shift
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, records

AUTO = {"shift": "auto"}


def base(image_run, **changes):
  return replace(replace(BASE, init_from=str(image_run)), **changes)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"diffusion": {"prediction": "eps"}}, "prediction is 'eps' here and 'v'"),
    ({"diffusion": {"null_text": "empty"}}, "null_text is 'empty' here"),
    (
      {"model": {"noise_embedding": "linear"}},
      "model.noise_embedding is 'linear' here and 'cosine' there",
    ),
    ({"model": {"skip_scale": 0.7}}, "model.skip_scale is 0.7 here"),
    ({"model": {"mask_text": False}}, "model.mask_text is False here"),
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
  check_init_from(
    replace(tune, diffusion={"prediction": "eps"}), resuming=False
  )
  with pytest.raises(UserError, match=r"noise_embedding_shift is 1\.0 here"):
    check_init_from(
      replace(tune, model={"noise_embedding_shift": 1.0}), resuming=False
    )


def test_another_text_encoder_is_an_error(image_run, tmp_path):
  with pytest.raises(UserError, match="another text encoder"):
    train(base(image_run, text={"max_length": 40}), tmp_path / "run")


def test_each_stage_may_have_its_own_schedule_and_shift(image_run, tmp_path):
  changes = {"schedule": "linear", "shift": -2.0, "noise": "normal"}
  brief = {"steps": 1, "eval_clips": 0}
  run = tmp_path / "run"
  train(base(image_run, diffusion=changes, train=brief), run)
  meta = open_bundle(run).parts["base"].meta
  assert meta["model"]["noise_embedding"] == "cosine"
  assert meta["diffusion"]["shift"] == -2.0


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
  longer = {"train": {"steps": 6}}
  experiment = replace(base(image_run), **(longer | changes))
  before = snapshot(base_run)
  with pytest.raises(UserError, match=words):
    train(experiment, base_run)
  assert snapshot(base_run) == before


def test_a_relative_path_is_the_same_source(base_run, image_run):
  before = snapshot(base_run)
  relative = os.path.relpath(image_run)
  train(replace(BASE, init_from=relative), base_run)
  assert snapshot(base_run) == before  # finished, no error


def snapshot(folder):
  """The content hash and mtime of every file."""
  return {
    str(path): (
      hashlib.sha256(path.read_bytes()).hexdigest(),
      path.stat().st_mtime_ns,
    )
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != ".lock"
  }


def test_a_finished_run_changes_nothing_on_disk(base_run, image_run, capfd):
  before = snapshot(base_run)
  other = {"ema_decay": 0.5, "steps": 3}  # would change the bundle
  train(replace(base(image_run), train=other), base_run)
  assert snapshot(base_run) == before
  assert "finished at step 4, nothing to do" in capfd.readouterr().err


def test_an_outdated_bundle_is_written_again(base_run, image_run, tmp_path):
  run = tmp_path / "run"
  os.system(f"cp -r {base_run} {run}")
  index = run / "bundle" / "bundle.json"
  want = index.read_text()
  content = json.loads(want)
  content["parts"]["base"]["meta"]["step"] = 2
  index.write_text(json.dumps(content))
  train(base(image_run), run)
  assert json.loads(index.read_text()) == json.loads(want)


def test_auto_shift_depends_on_the_source(image_run):
  got = resolve_shift(base(image_run, diffusion=AUTO)).diffusion.shift
  assert got == pytest.approx(-math.log(4), abs=1e-3)  # 4 frames
  of_size = set_auto_shift(replace(T2I, diffusion=AUTO)).diffusion.shift
  assert of_size == pytest.approx(-math.log(8 * 8 / 64**2), abs=1e-3)
  source = resolve_shift(base(image_run, diffusion=AUTO)).sampling
  conditional = replace(BASE, diffusion=AUTO)
  assert set_auto_shift(conditional, source).diffusion.shift == pytest.approx(
    source.diffusion.shift
  )


def test_auto_shift_of_an_inflated_source(image_run, tmp_path):
  out = tmp_path / "inflated"
  convert(
    Conversion(
      source="workdir",
      target="bundle",
      src=(str(image_run),),
      out=str(out),
      temporal=BASE,
    )
  )
  got = resolve_shift(base(out, diffusion=AUTO)).diffusion.shift
  assert got == pytest.approx(-math.log(4), abs=1e-3)


def test_a_resumed_run_keeps_its_auto_shift(image_run, tmp_path):
  run, source = tmp_path / "run", tmp_path / "source"
  os.system(f"cp -r {image_run} {source}")
  brief = {"steps": 1, "eval_clips": 0}
  experiment = replace(BASE, init_from=str(source), diffusion=AUTO, train=brief)
  train(experiment, run)
  os.system(f"rm -r {source}")
  train(replace(experiment, train={"steps": 2}), run)
  shifts = [
    r["config"]["diffusion"]["shift"] for r in records(run / "runs.jsonl")
  ]
  assert shifts == [pytest.approx(-math.log(4), abs=1e-3)] * 2
  meta = open_bundle(run).parts["base"].meta
  assert meta["diffusion"]["shift"] == shifts[0]
  assert (run / "noise.svg").read_text().startswith("<svg")
