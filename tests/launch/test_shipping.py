"""Training of the shipped model, with stages that only write files."""

from pathlib import Path
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from configs import shipped
from launch import shipping
from launch.shipping import BUNDLED, FIRST, SHARES, STOPPED, Training
from lumiere_jax.stages.config import PARENTS

RUN = """
def leave(folder):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "runs.jsonl").write_text('{"parameters": {}}\\n')
  lines = '{"step": 1, "loss": 0.5}\\n{"step": 2, "loss": 0.25}\\n'
  (folder / "metrics.jsonl").write_text(lines)
"""

STAGE = (
  RUN
  + """
import pathlib, sys, time
out, name, source, broken, seconds = pathlib.Path(sys.argv[1]), *sys.argv[2:]
assert not source or (out / source).exists(), "started too early"
if name == broken:
  sys.exit(7)
time.sleep(float(seconds))
leave(out / name)
"""
)


class Fake(Training):
  broken = ""
  seconds = 0.0

  def command(self, stage, source, folder):
    args = (str(self._out), folder, source or "", self.broken)
    return [sys.executable, "-c", STAGE, *args, str(self.seconds)]

  def _bundle_command(self):
    return self.command("bundle", BUNDLED[0], "bundle")


def test_every_stage_trains_after_its_parent(tmp_path, capsys):
  assert Fake(tmp_path).run() == 0
  made = {path.name for path in tmp_path.iterdir() if not path.suffix}
  assert made == {*PARENTS, "bundle"}
  assert "conditional: done after" in capsys.readouterr().out
  picture = ElementTree.parse(tmp_path / "losses.svg")
  labels = {
    text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")
  }
  assert {f"{stage}: loss" for stage in PARENTS} <= labels


def test_a_failure_ends_the_training(tmp_path, capsys):
  training = Fake(tmp_path)
  training.broken = "base"
  assert training.run() == 7
  assert not (tmp_path / "conditional").exists()
  assert not (tmp_path / "bundle").exists()
  assert "base: failed" in capsys.readouterr().out


def test_sigterm_ends_the_running_stage_and_starts_none(tmp_path):
  script = f"""
import pathlib, sys
from tests.launch.test_shipping import Fake
training = Fake(pathlib.Path({str(tmp_path)!r}))
training.seconds = 30
sys.exit(training.run())
"""
  with subprocess.Popen(
    [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == "\n"
    assert process.stdout.readline().startswith("$ python")
    while not process.stdout.readline().startswith("time.sleep"):
      pass  # the rest of the command line
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == STOPPED
  assert not list(tmp_path.glob("*/"))


LONG = r"""
out=$0 name=$1
save() {
  kill $!
  mkdir -p $out/$name/checkpoints
  echo '{"parameters": {}}' >$out/$name/runs.jsonl
  # ssr has not logged a step
  [ $name = ssr ] || echo '{"step": 1, "loss": 0.5}' >$out/$name/metrics.jsonl
  exit 0
}
trap save TERM
echo $name >>$out/begun
if [ $name != bundle ]; then sleep 30 & wait; fi
"""


class Long(Fake):
  """Stages of half a minute, which save on SIGTERM."""

  def command(self, stage, source, folder):
    return ["bash", "-c", LONG, str(self._out), folder]


def test_a_budget_is_shared_by_all_stages(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(shipping, "_SPARE", 0.0)
  began = time.monotonic()
  assert Long(tmp_path).run(budget=5.0) == 0
  assert time.monotonic() - began < 15
  begun = (tmp_path / "begun").read_text().split()
  assert begun == [*PARENTS, "bundle"]
  assert "ssr: saved at its share" in capsys.readouterr().out
  # Stages that others started from are not continued.
  assert Long(tmp_path).run(budget=2.0) == 0
  begun = (tmp_path / "begun").read_text().split()[len(begun) :]
  assert begun == ["conditional", "ssr", "bundle"]


def test_shares_are_of_all_stages():
  assert SHARES.keys() == PARENTS.keys()
  assert sum(SHARES.values()) == pytest.approx(1)


AHEAD = (
  RUN
  + """
import pathlib, signal, sys, time
out, name, source = pathlib.Path(sys.argv[1]), *sys.argv[2:]
if name == "t2i":
  (out / "t2i/bundle").mkdir(parents=True)
  (out / "t2i/bundle/bundle.json").touch()
  while not (out / "warm/ssr_image/saved").exists():
    time.sleep(0.01)
elif name.startswith("warm/"):
  assert not source.startswith("warm/") or (out / source / "saved").exists()
  (out / name).mkdir(parents=True)
  def save(*_):
    (out / name / "saved").touch()
    sys.exit()
  signal.signal(signal.SIGTERM, save)
  (out / name / "metrics.jsonl").touch()
  time.sleep(30)
leave(out / name)
"""
)


def test_later_stages_are_compiled_while_the_first_one_trains(tmp_path):
  class Warmed(Fake):
    def command(self, stage, source, folder):
      return [sys.executable, "-c", AHEAD, str(self._out), folder, source or ""]

  assert Warmed(tmp_path).run(warm=True) == 0
  saved = {path.parent.name for path in tmp_path.glob("warm/*/saved")}
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
