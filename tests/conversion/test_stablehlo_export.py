"""The exported sampler equals the pipeline, without this package."""

import json
import os
from pathlib import Path
import subprocess
import sys

from jax import export
import numpy as np
import pytest

from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.conversion.stablehlo_export import sampler_of, write_artefact
from lumiere_jax.errors import UserError
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings

GOLDEN = Path(__file__).parents[1] / "inference" / "golden" / "format_1"
PROMPTS = ["a small red circle moves left", "a blue star"]
SEEDS = [1, 7]

# Both stages, the second in windows, with noise at every step.
SETTINGS = Settings(steps=3, sampler="ddpm", window=2, overlap=0)


@pytest.fixture(scope="module")
def pipeline():
  return Pipeline.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def artefact(pipeline, tmp_path_factory):
  folder = tmp_path_factory.mktemp("artefact")
  lines = write_artefact(pipeline, SETTINGS, folder, batch=2)
  assert "cpu, cuda, tpu" in lines[0] and "2x4x16x16x3" in lines[0]
  return folder


def call(folder, *flags):
  """Runs `call.py` without this package on the path."""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  command = [sys.executable, str(folder / "call.py"), *flags]
  done = subprocess.run(
    command,
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  source = (folder / "call.py").read_text()
  assert "import lumiere" not in source and "from lumiere" not in source


@pytest.mark.parametrize("negative", ["", "a green square"])
def test_equals_the_pipeline(pipeline, artefact, negative):
  prompts = [f"--prompt={p}" for p in PROMPTS]
  seeds = [f"--seed={s}" for s in SEEDS]
  flags = [*prompts, *seeds, f"--negative_prompt={negative}", "--out=x.npy"]
  call(artefact, *flags)
  live = pipeline.text_to_video(
    PROMPTS, seed=SEEDS, settings=SETTINGS, negative_prompt=negative
  )
  exported = np.load(artefact / "x.npy")
  assert exported.std() > 1
  assert exported.shape == live.shape
  # Up to rounding: one program here, one for each stage and chunk there.
  difference = np.abs(exported.astype(int) - live)
  print(f"largest difference in grey levels: {difference.max()}")
  assert difference.max() <= 1 and difference.mean() < 0.01


def test_platforms_and_signature(pipeline, artefact):
  exported = export.deserialize((artefact / "sampler.stablehlo").read_bytes())
  assert exported.platforms == ("cpu", "cuda", "tpu")
  signature = json.loads((artefact / "signature.json").read_text())
  _, inputs = sampler_of(pipeline, SETTINGS, 2)
  for name, value in inputs.items():
    expected = {"shape": list(value.shape), "dtype": str(value.dtype)}
    assert signature["inputs"][name] == expected
  assert signature["output"]["shape"] == [2, 4, 16, 16, 3]
  assert signature["guidance_scale"] == 7.0
  assert signature["ssr_guidance_scale"] == 4.0


def test_invalid_settings_write_nothing(tmp_path):
  job = lambda **options: Conversion(
    source="bundle",
    target="stablehlo",
    src=(str(GOLDEN),),
    out=str(tmp_path / "out"),
    **options,
  )
  with pytest.raises(UserError, match="batch=0"):
    convert(job(batch=0))
  with pytest.raises(UserError, match="num_frames=3 is not a multiple of 2"):
    convert(job(settings=Settings(num_frames=3)))
  assert not (tmp_path / "out" / "sampler.stablehlo").exists()
