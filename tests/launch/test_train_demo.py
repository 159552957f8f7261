"""Training of the shipped model, with stages that only write files."""

from pathlib import Path
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from configs import shipped
from launch import train_demo
from launch.train_demo import BUNDLED, FIRST, SHARES, STOPPED, Training
from lumiere_jax.stages.config import PARENTS

# A stage: it fails, trains for some seconds, or until SIGTERM.
STAGE = """
import os, signal, sys, time
out, name, source, broken, seconds = sys.argv[1:]
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
os.chdir(out)
with open("begun", "a") as file:
  file.write(name + "\\n")
assert not source or os.path.exists(source), "started too early"
if name == broken:
  sys.exit(7)
if name.startswith("warm/"):
  os.makedirs(name)
  open(name + "/metrics.jsonl", "w").close()
end = time.monotonic() + float(seconds)
while time.monotonic() < end and not stopped:
  time.sleep(0.01)
os.makedirs(name + "/checkpoints", exist_ok=True)
with open(name + "/runs.jsonl", "w") as file:
  file.write('{"parameters": {}}\\n')
with open(name + "/metrics.jsonl", "w") as file:
  if name != "ssr" or not stopped:  # which may not have logged a step
    file.write('{"step": 1, "loss": 0.5}\\n{"step": 2, "loss": 0.25}\\n')
"""


class Fake(Training):
  stage = STAGE
  broken = ""
  seconds = 0.0

  def command(self, stage, source, folder):
    args = (str(self._out), folder, source or "", self.broken)
    seconds = "0" if folder == "bundle" else str(self.seconds)
    return [sys.executable, "-S", "-c", self.stage, *args, seconds]

  def _bundle_command(self):
    return self.command("bundle", BUNDLED[0], "bundle")


def begun(folder):
  return (folder / "begun").read_text().split()


def test_every_stage_trains_after_its_parent(tmp_path, capsys):
  assert Fake(tmp_path).run() == 0
  assert begun(tmp_path) == [*PARENTS, "bundle"]
  assert "conditional: done after" in capsys.readouterr().out
  picture = ElementTree.parse(tmp_path / "losses.svg")
  texts = picture.iter("{http://www.w3.org/2000/svg}text")
  labels = {text.text for text in texts}
  assert {f"{stage}: loss" for stage in PARENTS} <= labels


def test_a_failure_ends_the_training(tmp_path, capsys):
  training = Fake(tmp_path)
  training.broken = "base"
  assert training.run() == 7
  assert begun(tmp_path) == [FIRST, "base"]
  assert "base: failed" in capsys.readouterr().out


def test_sigterm_ends_the_running_stage_and_starts_none(tmp_path):
  script = f"""
import pathlib, sys
from tests.launch.test_train_demo import Fake
training = Fake(pathlib.Path({str(tmp_path)!r}))
training.seconds = 30
sys.exit(training.run())
"""
  with subprocess.Popen([sys.executable, "-c", script]) as process:
    while not (tmp_path / "begun").exists():
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == STOPPED
  assert begun(tmp_path) == [FIRST]


def test_a_budget_is_shared_by_all_stages(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(train_demo, "_SPARE", 0.0)
  training = Fake(tmp_path)
  training.seconds = 30
  began = time.monotonic()
  assert training.run(budget=5.0) == 0
  assert time.monotonic() - began < 15
  first = begun(tmp_path)
  assert first == [*PARENTS, "bundle"]
  assert "ssr: saved at its share" in capsys.readouterr().out
  # Stages that others started from are not continued.
  training.seconds = 0
  assert training.run(budget=2.0) == 0
  assert begun(tmp_path)[len(first) :] == ["conditional", "ssr", "bundle"]


def test_shares_are_of_all_stages():
  assert SHARES.keys() == PARENTS.keys()
  assert sum(SHARES.values()) == pytest.approx(1)


# The first stage trains until the last of the others has saved.
AHEAD = """
import os, sys, time
if sys.argv[2] == "t2i":
  os.chdir(sys.argv[1])
  os.makedirs("t2i/bundle")
  open("t2i/bundle/bundle.json", "w").close()
  while not os.path.exists("warm/ssr_image/checkpoints"):
    time.sleep(0.01)
if sys.argv[2].startswith("warm/"):
  sys.argv[5] = "30"
"""


def test_later_stages_are_compiled_while_the_first_one_trains(tmp_path):
  training = Fake(tmp_path)
  training.stage = AHEAD + STAGE
  assert training.run(warm=True) == 0
  saved = {path.parent.name for path in tmp_path.glob("warm/*/checkpoints")}
  assert saved == {"base", "conditional", "ssr_image"}


@pytest.mark.parametrize("stage", [FIRST, "conditional"])
def test_the_commands_are_those_of_the_config(stage):
  training = Training(Path("out/x"), ["--config.data.workers=8"])
  command = training.command(stage, PARENTS[stage], stage)
  assert f"--config=configs/shipped.py:{stage}" in command
  assert command[-1] == "--config.data.workers=8"
  given = "--config.text.weights=out/x/t2i" in command
  assert given == (stage != FIRST)
  assert shipped.get_config(stage).stage == stage
