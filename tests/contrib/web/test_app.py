"""The command as a user runs it, on a bundle of random weights."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")


import collections
import contextlib
import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys

from lumiere_jax.contrib.web.tabs import TABS
from lumiere_jax.media.video_reader import read_video
from tests.conftest import run_command
from tests.contrib.web.serving import Site

pytestmark = pytest.mark.app


ROOT = Path(__file__).parents[2]


GOLDEN = ROOT / "tests/inference/golden/format_1"


FILE = "/gradio_api/file="


SESSION = "abc123"


@contextlib.contextmanager
def running(folder: Path, *flags: str):
  """(the page, its process) of a command, with its temporary folder."""
  ours = {"TMPDIR": folder, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
  environment = os.environ | {k: str(v) for k, v in ours.items()}
  command = [sys.executable, "-m", "lumiere_jax.app", "--port=0", *flags]
  with subprocess.Popen(
    command,
    cwd=folder,  # it needs no file of the repository
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
def place(tmp_path_factory):
  """(a bundle, a temporary folder)."""
  folder = tmp_path_factory.mktemp("app")
  shutil.copytree(GOLDEN, folder / "bundle")
  (folder / "tmp").mkdir()
  return folder / "bundle", folder / "tmp"


@pytest.fixture(scope="module")
def app(place):
  bundle, folder = place
  with running(folder, f"--model={bundle}", "--max_mb=1") as (site, process):
    yield site, process


def test_it_samples_what_is_asked_for(app, tmp_path):
  site, _ = app
  values = {"Prompt": "a small red circle moves left", "Steps": "2"}
  filled = site.filled("check_text_to_video", **values)
  checked = site.call("check_text_to_video", filled, SESSION)
  assert checked["output"]["data"] == ["In the queue."]
  ended = site.call("make_text_to_video", [], SESSION)
  assert ended["success"], ended
  report, video, *_ = ended["output"]["data"]
  assert report.startswith("Done in ")
  status, content = site.ask(FILE + video["value"]["path"])
  assert status == 200
  (tmp_path / "x.mp4").write_bytes(content)
  frames, fps = read_video(tmp_path / "x.mp4")
  assert (
    f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}" in report
  )
  assert frames.std() > 1
  assert fps == pytest.approx(16)


def test_its_examples_are_there(app):
  site, _ = app
  config = json.loads(site.ask("/config")[1])
  examples = [x for x in config["components"] if x["type"] == "dataset"]
  assert len(examples) == len(TABS)
  drawn = {*re.findall(r'"path": "([^"]*)"', json.dumps(examples))}
  endings = collections.Counter(Path(path).suffix for path in drawn)
  assert endings == {".png": 6, ".mp4": 6}
  for path in drawn:
    assert site.ask(FILE + path)[0] == 200


def test_it_stops_in_the_midst_of_sampling(app):
  site, _ = app
  values = {"Prompt": "a small red circle moves left", "Steps": "1000"}
  filled = site.filled("check_text_to_video", **values)
  site.call("check_text_to_video", filled, SESSION)
  making = site.join("make_text_to_video", [], SESSION)
  seen, ended = 0, {}
  for told in site.hear(SESSION):
    steps = told.get("progress_data") or [{}]
    if told["msg"] == "progress" and steps[0].get("index"):
      if not seen:
        site.join("cancel_text_to_video", [], SESSION)
      seen = steps[0]["index"]
    if told["msg"] == "process_completed":
      ended[told["event_id"]] = told["output"]["data"][0]
  assert 0 < seen < 1000
  assert ended.pop(making) == "Cancelled."
  assert [*ended.values()] == ["Cancelled."]  # so said the button


def test_files_of_its_bundle_are_refused(app, place):
  site, _ = app
  for file in place[0].iterdir():
    status, answer = site.ask(f"{FILE}{file}")
    assert status == 403
    assert file.read_bytes()[:20] not in answer


def test_its_port_is_taken(app, place):
  site, _ = app
  result = run_command("app", f"--model={place[0]}", f"--port={site.port}")
  assert result.returncode == 2
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error: "))
  assert f"--port={site.port} cannot be listened to" in line
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_word_and_leaves_nothing(place, tmp_path, number):
  with running(tmp_path, f"--model={place[0]}") as (site, process):
    assert site.ask("/")[0] == 200
    (folder,) = tmp_path.glob("lumiere_app_*")
    process.send_signal(number)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()
  assert not folder.exists()


def test_a_bundle_that_is_not_there_is_told_in_one_line():
  result = run_command("app", "--model=/no/such/place", "--port=0")
  assert result.returncode == 2
  assert "/no/such/place does not exist" in result.stderr.splitlines()[-1]
  assert "Traceback" not in result.stderr
