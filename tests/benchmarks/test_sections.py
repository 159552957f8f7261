"""Rows of the sections from given seconds and counts."""

import sys

import numpy as np
import pytest

from benchmarks.speed import ours, sections, startup
from lumiere_jax.models.config import UNetConfig
from tests.benchmarks.results import measure


def medians(rows):
  return {
    row["name"]: {k: v["median"] for k, v in row["ratios"].items()}
    for row in rows
  }


def test_same_weights():
  rows = medians(measure("same_weights"))
  assert len(rows) == 4
  assert rows["medium, 16 pictures"] == {
    "forward": 0.5,
    "forward, memory": 1,
    "train": pytest.approx(0.55),
    "train, memory": 1,
  }


def test_same_job():
  rows = medians(measure("same_job"))
  assert list(rows) == list(sections.VIDEO_PEERS)
  # A step takes 3.3 times the seconds of a pass and 3 times its FLOPs.
  assert rows["imagen_unet3d"] == {
    "forward, GFLOP/s": 2,
    "train, GFLOP/s": pytest.approx(6 / 3.3),
    "train / forward, by FLOPs": pytest.approx(1.1),
  }


def test_faster_is_by_each_sides_own_flops():
  row = {"ours": {"train_flops": 6}, "theirs": {"train_flops": 2}}
  ratio = sections.faster(row, "train", ([3.0, 3.0], [2.0, 4.0]))
  assert ratio["median"] == pytest.approx(3)  # 2 a second and 2/3 in the mean
  assert ratio["better"] == "higher"


def test_growth():
  rows = medians(measure("growth"))
  assert rows["frames 80"]["seconds"] == 5
  assert rows["windows 8"]["seconds"] == 8
  assert sections.work("frames", 80) == 5
  assert sections.work("side", 64) == 4
  assert sections.work("batch", 4) == 4
  for (axis, number), goal in sections.GROWTH_GOALS.items():
    assert goal / sections.work(axis, number) == pytest.approx(
      1.04 if axis == "frames" else 1.05
    )


def test_limits():
  rows = {row["name"]: row for row in measure("limits")}
  alone = rows[sections.ALL_CONVOLUTIONS]
  assert alone["gflops"] == alone["best_gflops"] == [100, 50]
  assert alone["unet_gflops"] == 100
  assert alone["ratios"]["ours / torch"]["median"] == 2
  assert alone["ratios"]["share of the U-Net"]["median"] == 1
  assert "share of the U-Net" not in rows["matmul 1024"]["ratios"]


@pytest.mark.parametrize(
  "name", [k for k, v in sections.SECTIONS.items() if v.quick_seconds]
)
def test_quick_rows_are_some_of_all(name):
  quick = medians(measure(name, quick=True))
  whole = medians(measure(name))
  assert 0 < len(quick) < len(whole)
  assert quick.items() <= whole.items()


def test_all_sections_take_twenty_minutes():
  assert sum(s.seconds for s in sections.SECTIONS.values()) <= 20 * 60


def test_convolutions_of_a_network():
  config = UNetConfig(
    channels=(32,),
    num_res_blocks=(1,),
    attention=("none",),
    text_dim=8,
    text_channels=8,
    pool_heads=1,
    head_dim=8,
    norm_groups=8,
    out_channels=6,
  )
  given = ours.inputs(2, 3, 8, config.text_dim, 0)
  # Stem; one block down, two in the middle, two up; head.
  assert sorted(ours.convolutions_of(config, given)) == [
    [6, 8, 3, 32, 1],
    [6, 8, 32, 6, 1],
    [6, 8, 32, 32, 8],
    [6, 8, 64, 32, 2],
  ]


def test_jobs_of_products_and_convolutions():
  job = ours.convolutions(shapes=[[2, 8, 3, 4, 5]], seed=0)
  job.forward()
  assert job.forward_flops == 5 * 2 * (2 * 8 * 8) * (9 * 3 * 4)
  job = ours.matmul(size=8, times=3, seed=0)
  job.forward()
  assert job.forward_flops == 3 * 2 * 8**3


def test_startup_run(tmp_path):
  log = tmp_path / "log"
  code = f"import time; open({str(log)!r}, 'w'); time.sleep(0.5)"
  seconds, first = startup.run([sys.executable, "-c", code], log)
  assert 0 < first < seconds
  assert np.isclose(seconds - first, 0.5, atol=0.3)
  assert startup.run([sys.executable, "-c", ""])[1] is None
  with pytest.raises(RuntimeError, match="out of luck"):
    startup.run([sys.executable, "-c", "raise SystemExit('out of luck')"])
