"""The command as a user runs it, on a bundle of random weights."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")


import collections
import contextlib
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

from lumiere_jax.contrib.web.tabs import TABS
from lumiere_jax.media.video_reader import read_video
from tests.conftest import run_command
from tests.contrib.web.serving import FILE, SESSION, Site
from tests.contrib.web.test_options import GOLDEN, ROOT

pytestmark = pytest.mark.app


@contextlib.contextmanager
def running(folder: Path, *flags: str):
  """Runs the command with a temporary folder: (its page, its process)."""
  changes = {"TMPDIR": folder, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
  environment = os.environ | {k: str(v) for k, v in changes.items()}
  command = [sys.executable, "-m", "lumiere_jax.app", "--port=0", *flags]
  with subprocess.Popen(
    command,
    cwd=folder,  # no file of the repository is needed
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      line = process.stdout.readline()
      found = re.fullmatch(
        r"http://127.0.0.1:(\d+)/ \(Ctrl-C ends it\)\n", line
      )
      assert found, line + process.stderr.read()
      yield Site(port=int(found[1])), process
    finally:
      process.kill()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tmp")
  with running(folder, f"--model={GOLDEN}", "--max_mb=1") as (site, _):
    yield site


def submit(site: Site, steps: int) -> list[str]:
  values = {"Prompt": "a small red circle moves left", "Steps": str(steps)}
  arguments = site.arguments("check_text_to_video", **values)
  done = site.call("check_text_to_video", arguments, SESSION)
  return done["output"]["data"]


def test_sampling(site, tmp_path):
  assert submit(site, steps=2) == ["In the queue."]
  done = site.call("make_text_to_video", [], SESSION)
  assert done["success"], done
  report, video, *_ = done["output"]["data"]
  assert report.startswith("Done in ")
  status, content = site.ask(FILE + video["value"]["path"])
  assert status == 200
  (tmp_path / "x.mp4").write_bytes(content)
  frames, fps = read_video(tmp_path / "x.mp4")
  count, height, width, _ = frames.shape
  assert f"{count} frames of {width}x{height}" in report
  assert frames.std() > 1
  assert fps == pytest.approx(16)


def test_example_files_are_served(site):
  components = site.config["components"]
  examples = [x for x in components if x["type"] == "dataset"]
  assert len(examples) == len(TABS)
  paths = {*re.findall(r'"path": "([^"]*)"', json.dumps(examples))}
  suffixes = collections.Counter(Path(path).suffix for path in paths)
  assert suffixes == {".png": 6, ".mp4": 6}
  for path in paths:
    assert site.ask(FILE + path)[0] == 200
  assert site.ask(f"{FILE}{GOLDEN}/bundle.json")[0] == 403


def test_cancelling_while_sampling(site):
  submit(site, steps=1000)
  site.join("make_text_to_video", [], SESSION)
  steps, statuses = 0, []
  for event in site.events(SESSION):
    (progress, *_) = event.get("progress_data") or [{}]
    if event["msg"] == "progress" and progress.get("index"):
      if not steps:
        site.join("cancel_text_to_video", [], SESSION)
      steps = progress["index"]
    if event["msg"] == "process_completed":
      statuses.append(event["output"]["data"][0])
  assert 0 < steps < 1000
  assert statuses == ["Cancelled."] * 2  # of the job and of the button


def test_a_port_in_use(site):
  result = run_command("app", f"--model={GOLDEN}", f"--port={site.port}")
  assert result.returncode == 2
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error: "))
  assert f"--port={site.port} cannot be used" in line
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_and_remove_its_files(tmp_path, number):
  with running(tmp_path, f"--model={GOLDEN}") as (site, process):
    assert site.ask("/")[0] == 200
    (folder,) = tmp_path.glob("lumiere_app_*")
    process.send_signal(number)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()
  assert not folder.exists()


def test_a_missing_bundle():
  result = run_command("app", "--model=/no/such/place", "--port=0")
  assert result.returncode == 2
  assert "/no/such/place does not exist" in result.stderr.splitlines()[-1]
  assert "Traceback" not in result.stderr
