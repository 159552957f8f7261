"""The commands in processes: one-line errors with exit code 2, and results."""

import json
import pathlib
import re
import subprocess
import sys

import av
import pytest

from lumiere_jax import cli
from tests.conftest import run_command as run
from tests.data.videos import write_jsonl

ROOT = pathlib.Path(__file__).parents[1]
TINY = "--config=configs/base.py:tiny"
CLIPS = ROOT / "lumiere_jax/data/assets/big_buck_bunny"


def refused(result: subprocess.CompletedProcess) -> str:
  """The one-line error of a command that failed with exit code 2."""
  assert result.returncode == 2, result.stderr
  assert "Traceback" not in result.stderr
  errors = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
  assert len(errors) == 1, result.stderr
  assert result.stderr.rstrip().endswith(errors[0])
  return errors[0]


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ("--config=configs/base.py", "config.init_from.*scratch"),
    ("--config=configs/base.py:tinny", 'tinny.*did you mean "tiny"'),
    (f"{TINY} --config.train.stesp=3", 'stesp.*Did you mean "steps"'),
    (f"{TINY} --config.model.dtype=bfloat16", "dtype.*config.execution.dtype"),
    ("--config=configs/nothing.py", "configs/nothing.py"),
    (f"{TINY} --config.train.steps=many", "steps.*many"),
    (f"{TINY} --config.data.num_frames=15", "num_frames=15.*14 or 16"),
    (f"{TINY} --config.init_from=/no/place", "/no/place.* does not exist"),
    ("--config=configs/t2i.py:tiny --config.data.source=files", "data.path"),
    ("--confg=configs/base.py", "confg"),
    ("stray", "stray"),
  ],
)
def test_training_mistakes(flags, words, tmp_path):
  workdir = f"--workdir={tmp_path / 'w'}"
  assert re.search(words, refused(run("main", *flags.split(), workdir)))


def test_a_folder_with_nothing_usable_counts_the_reasons(tmp_path):
  folder = tmp_path / "clips"
  folder.mkdir()
  (folder / "empty.mp4").touch()
  (folder / "text.mp4").write_text("this is no video")
  write_jsonl(folder, ["empty.mp4", "text.mp4", "gone.mp4"])
  flags = (
    *("--config=configs/t2i.py:tiny", "--config.data.source=files"),
    *(f"--config.data.path={folder}", f"--workdir={tmp_path / 'w'}"),
  )
  assert "3" in refused(run("main", *flags))
  report = (tmp_path / "w" / "data_report.jsonl").read_text()
  assert len(report.splitlines()) == 3
  assert report.count('"used": false') == 3


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A base trained by the command of the README, shrunk to two steps."""
  folder = tmp_path_factory.mktemp("base")
  result = run(
    *("main", TINY, "--config.init_from=scratch", "--config.train.steps=2"),
    *("--config.data.source=files", f"--config.data.path={CLIPS}"),
    *("--config.train.eval_clips=0", "--config.preview.every=0"),
    f"--workdir={folder}",
  )
  assert result.returncode == 0, result.stderr
  return folder


def test_the_same_command_makes_the_same_file(workdir, tmp_path):
  files = [tmp_path / name for name in ("a.mp4", "b.mp4")]
  for file in files:
    result = run(
      *("sample", f"--model={workdir / 'bundle'}", "--task=text_to_video"),
      *("--prompt=a big grey rabbit stretches", "--seed=1", "--steps=2"),
      *(f"--out={file}", f"--contact_sheet={file.with_suffix('.png')}"),
    )
    assert result.returncode == 0, result.stderr
    assert "100%" in result.stderr  # a bar for the stage
  assert files[0].read_bytes() == files[1].read_bytes()
  assert files[0].with_suffix(".png").stat().st_size > 0
  with av.open(str(files[0])) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert stream.average_rate == 16
    assert len(list(container.decode(stream))) == 16


def test_a_long_prompt_is_cut_and_shown(workdir, tmp_path):
  words = " ".join(f"word{i}" for i in range(80))
  result = run(
    *("sample", f"--model={workdir}", f"--prompt={words}", "--steps=1"),
    f"--out={tmp_path / 'x.gif'}",
  )
  assert result.returncode == 0, result.stderr
  assert "warning: " in result.stderr
  assert "word79" in result.stderr
  assert (tmp_path / "x.gif").stat().st_size > 0


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ("--prompt=", "--prompt is empty"),
    ("--window=20", "window of 20.*longer than the video of 16"),
    ("--window=8 --overlap=8", "overlap of 8"),
    ("--num_frames=15", "num_frames=15.*14 or 16"),
    ("--out=x.avii", r"\.avii.*\.mp4"),
    ("--contact_sheet=x.tiff", r"\.tiff.*\.png"),
    ("--task=text_to_vidio", 'did you mean "text_to_video"'),
    ("--seed=-1", r"--seed=-1 is not in \[0, 2\^32\)"),
    (
      "--negative_prompt=x --guidance_scale=1",
      "--negative_prompt changes noth",
    ),
    ("--model=/no/such/place", "/no/such/place.*does not exist"),
    ("--stepps=3", "stepps"),
    ("--sampler=hun", "--sampler='hun'.*did you mean \"heun\""),
    ("--guidance_interval=0.3", "guidance_interval=0.3.*two numbers"),
  ],
)
def test_sampling_mistakes(flags, words, workdir, tmp_path):
  given = ["--prompt=a circle", f"--out={tmp_path / 'x.mp4'}", "--steps=1"]
  line = refused(run("sample", f"--model={workdir}", *given, *flags.split()))
  assert re.search(words, line)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("command", "flags", "words"),
  [
    ("sample", ["--prompt=a circle"], "--model is missing"),
    ("sample", ["--model=x", "--alpha=2"], "--alpha=2 is not in [0, 1.5]"),
    ("prepare", ["--out=x", "--side=64"], "--input is missing"),
    ("plan", ["--job=trian", "--topology=v5p:1x1x1"], 'did you mean "train"'),
    (
      "sample",
      ["--model=x", "--prompt=a", "--out=FILE/x.mp4"],
      "FILE/x.mp4: ca",
    ),
    (
      "evaluate",
      ["--model=x", "--out=FILE/x.json"],
      "FILE/x.json: cannot be w",
    ),
    (
      "convert",
      ["--from=t5", "--src=x", "--out=FILE"],
      "cannot be written (Not",
    ),
    (
      "prepare",
      ["--input=x", "--out=FILE/x", "--max_length=8"],
      "FILE/x: cannot",
    ),
    (
      "plan",
      ["--topology=v5p:1x1x1", "--out=FILE/x.json"],
      "FILE/x.json: cann",
    ),
    (
      "main",
      ["--config=configs/t2i.py:tiny", "--workdir=FILE"],
      "cannot be wri",
    ),
    (
      "main",
      ["--config=configs/t2i.py:tiny", "--workdir=/proc/x"],
      "/proc/x: can",
    ),
  ],
)
def test_mistakes_before_anything_is_loaded(command, flags, words, tmp_path):
  file = tmp_path / "file"
  file.touch()
  flags = [flag.replace("FILE", str(file)) for flag in flags]
  words = words.replace("FILE", str(file))
  assert words in refused(run(command, *flags))
  assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
  ("command", "flags"),
  [
    ("sample", ["--model=~/none", "--prompt=~"]),
    ("sample", ["--model", "~/none", "--prompt", "~/a"]),
    ("main", [TINY, "--config.init_from=~/none", "--workdir=~/w"]),
  ],
)
def test_the_home_folder_is_found(command, flags, tmp_path):
  result = run(command, *flags, HOME=str(tmp_path))
  assert f"{tmp_path}/none does not exist" in refused(result)
  assert not list(tmp_path.glob("*w"))


def test_texts_are_no_paths(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  given = ["x", "--style=ink=~/s", "--prompt", "~/a", "--prompt=~", "--out=~"]
  expected = [
    *given[:1],
    "--style=ink=/home/me/s",
    *given[2:5],
    "--out=/home/me",
  ]
  assert cli._expanded(given) == expected
  values = {"a": ["~/x", 1, None], "b": {"c": ("b=~/y", "x~/z")}}
  assert cli._expand_values(values) == {
    "a": ["/home/me/x", 1, None],
    "b": {"c": ("b=/home/me/y", "x~/z")},
  }


def test_help_lists_all_options_of_a_command():
  text = " ".join(run("sample", "--help").stdout.split())
  for flag in ("oscillate_low", "[no]uncomposited", "model", "process_id"):
    assert f"--{flag}: " in text
  assert "alternate with --oscillate_low" in text


def test_prepares_a_folder(tmp_path):
  flags = (f"--input={CLIPS}", f"--out={tmp_path}", "--side=32", "--fps=8")
  result = run("prepare", *flags, "--max_length=16", "--crf=30")
  assert result.returncode == 0, result.stderr
  assert "6 clips in" in result.stderr
  made = json.loads((tmp_path / "prepared.json").read_text())
  assert len(made["clips"]) == 6
  assert made["options"]["crf"] == 30
  assert (tmp_path / "text" / made["text"]).is_dir()


def test_ctrl_c_ends_at_once_in_one_line():
  """Even while threads are working."""
  result = subprocess.run(
    [sys.executable, "-c", INTERRUPTED],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=50,
    check=False,
  )
  assert result.returncode == 130, result.stderr
  assert result.stderr == "\ninterrupted by Ctrl-C\n"


INTERRUPTED = """
import threading, time
from lumiere_jax import cli

def main(argv):
  threading.Thread(target=time.sleep, args=(60,)).start()
  raise KeyboardInterrupt

cli._guarded(main)(["main"])
"""
