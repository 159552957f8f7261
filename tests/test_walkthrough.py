"""The walkthrough of docs/weights.md, from DeepFloyd IF to a first step.

Runs on stand-ins of the same layout.
"""

from pathlib import Path
import re
import shlex

import numpy as np

from lumiere_jax.media.video_writer import write_video
from lumiere_jax.storage import bundle as bundles
from tests.conftest import run_command
from tests.stand_ins import write_all

PAGE = Path(__file__).parents[1] / "docs/weights.md"
NAMES = {"IF-I-XL": "IF-I", "IF-II-L": "IF-II", "T5-XXL": "T5"}
SHORT = (
  "--config.train.steps=2",
  "--config.train.batch_size=1",
  "--config.train.eval_clips=1",
  "--config.train.eval_levels=1",
  "--config.data.resolution=16",
)


def commands():
  """(module, flags) of every command of the section."""
  chapter = PAGE.read_text().split("## From DeepFloyd IF")[1]
  block = chapter.split("```")[1].replace("\\\n", " ")
  for line in block.strip().splitlines():
    if not line.startswith("#"):
      python, m, module, *flags = shlex.split(line)
      assert (python, m) == ("python", "-m")
      yield module.removeprefix("lumiere_jax."), flags


def on_stand_ins(flags, folder):
  """The flags with stand-ins for the weights and paths in `folder`."""
  for flag in flags:
    for theirs, ours in NAMES.items():
      flag = re.sub(rf"={theirs}$", f"={folder / ours}", flag)
    flag = re.sub(r"=out/", f"={folder}/out/", flag)
    flag = re.sub(r"=(PICTURES|VIDEOS)$", f"={folder}/videos", flag)
    flag = re.sub(r"=(configs/\w+\.py)(:\w+)?$", r"=\1:if_tiny", flag)
    yield flag.replace("--dtype=bfloat16", "--dtype=float32")


def write_videos(folder):
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name in ("a dog.mp4", "a cat.mp4", "a bird.mp4", "a fox.mp4"):
    still = rng.integers(0, 255, (1, 32, 32, 3), np.uint8)
    write_video(folder / name, np.repeat(still, 40, axis=0), 16.0)
    (folder / name).with_suffix(".txt").write_text(Path(name).stem)


def test_every_command_works_on_stand_ins(tmp_path):
  write_all(tmp_path)
  write_videos(tmp_path / "videos")
  run = [*commands()]
  assert [m for m, _ in run].count("convert") == 4 and len(run) == 7
  for module, flags in run:
    flags = [*on_stand_ins(flags, tmp_path)]
    flags += SHORT if module == "main" else ()
    if "--config=configs/base.py:if_tiny" in flags:
      flags.append("--config.data.num_frames=4")
    flags += ["--steps=2"] if module == "sample" else []
    done = run_command(module, *flags)
    assert done.returncode == 0, (flags, done.stderr)
  out = tmp_path / "out"
  assert (out / "fox.png").stat().st_size > 1000
  assert "t2i" in bundles.open_bundle(out / "if128").parts
  start, trained = (bundles.open_bundle(out / x) for x in ("start", "base"))
  assert set(start.parts) == {"text", "base"}
  assert trained.parts["base"].meta["step"] == 2
  before, after = start.load("base"), trained.load("base")
  changed = {
    path for path in before if not np.array_equal(before[path], after[path])
  }
  assert changed and all(path.startswith("temporal_") for path in changed)
