"""Captions by a command: kept, resumed, failures, and what is refused."""

import dataclasses
from pathlib import Path
import sys
import time

import pytest

from lumiere_jax.data import caption_command as module
from lumiere_jax.data.caption_command import CAPTIONS, CaptionCommand
from lumiere_jax.data.manifest import read_manifest
from lumiere_jax.data.preprocess import REPORT, Options, prepare
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage.remote import Folder
from tests.conftest import run_command
from tests.data.videos import make, picture, read_report

SHELL = "sh -c '{}' x {{clip}} {{file}} {{start_s}} {{seconds}}"


def shell(script, **options):
  return CaptionCommand(caption_command=SHELL.format(script), **options)


@pytest.fixture
def options(tmp_path):
  """Two videos of two clips each, one with a caption, and a picture."""
  folder = tmp_path / "videos"
  make(folder / "class", "a b.mp4")
  make(folder, "told.mp4")
  (folder / "told.txt").write_text("told")
  picture(folder, "-p.png")
  return Options(
    input=str(folder),
    out=str(tmp_path / "out"),
    cache=str(tmp_path / "cache"),
    fps=8,
    side=16,
    max_seconds=1,
    threads=2,
  )


def captions(options):
  clips = read_manifest(Folder(options.out)).clips
  return [(c.file, c.start_s, *c.captions) for c in clips]


@pytest.mark.parametrize("workers", [1, 3])
def test_captions_of_clips_without_one(options, tmp_path, workers, capsys):
  log = tmp_path / "log"
  script = 'test -s "$1"; echo " ${1##*.} of  $(basename -- "$2"),"; '
  script += f'printf "%s\\n" "$3 to $4" | tee -a {log}'
  command = shell(script, caption_workers=workers)
  prepare(options, command=command)
  expected = [
    ("-p.png", 0, "png of -p.png, 0.0 to 0.0"),
    ("class/a b.mp4", 0, "mp4 of a b.mp4, 0.0 to 1.0"),
    ("class/a b.mp4", 1, "mp4 of a b.mp4, 1.0 to 1.0"),
    ("told.mp4", 0, "told"),
    ("told.mp4", 1, "told"),
  ]
  assert captions(options) == expected
  assert "3 captions by sh, 0 failures" in capsys.readouterr().err
  # Half a line of a killed run.
  with open(Path(options.out, CAPTIONS), "a") as file:
    file.write('\n{"key": "')
  prepare(options, command=command)
  assert captions(options) == expected
  assert len(log.read_text().splitlines()) == 3
  make(Path(options.input), "new.mp4", seconds=1)
  prepare(options, command=command)
  assert len(captions(options)) == 6
  assert len(log.read_text().splitlines()) == 4
  prepare(options, command=shell("echo other"))
  assert captions(options)[0][-1] == "other"


def test_failures_are_reported_and_tried_again(options, tmp_path, capsys):
  flag = tmp_path / "flag"
  command = shell(f"test -e {flag} || ! echo no luck >&2 || exit 3; echo x")
  prepare(options, command=command)
  assert [row[0] for row in captions(options)] == ["told.mp4"] * 2
  rows = [r for r in read_report(Path(options.out, REPORT)) if not r["used"]]
  assert {r["reason"] for r in rows} == {
    "caption command: exit status 3: no luck"
  }
  assert [(r["start_s"], r["end_s"]) for r in rows] == [(0, 0), (0, 1), (1, 2)]
  assert "0 captions by sh, 3 failures" in capsys.readouterr().err
  flag.touch()
  prepare(options, command=command)
  assert len(captions(options)) == 5


def test_all_fail(options):
  Path(options.input, "told.txt").unlink()
  with pytest.raises(UserError, match="all videos were dropped; see"):
    prepare(options, command=shell("exit 1"))


def test_interrupted(options, monkeypatch):
  """Commands that run are ended, and captions so far are kept."""

  class Bar(module.tqdm):
    def update(self, n=1):
      raise KeyboardInterrupt

  script = "case $1 in *.png) echo p;; *) sleep 60;; esac"
  monkeypatch.setattr(module, "tqdm", Bar)
  begin = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    prepare(options, command=shell(script, caption_workers=2))
  assert time.monotonic() - begin < 30
  assert len(Path(options.out, CAPTIONS).read_text().splitlines()) == 2


@pytest.mark.parametrize(
  ("script", "reason"),
  [
    ("exit 2", "exit status 2$"),
    ('echo a >&2; echo; printf "b\\tc\\n\\n" >&2; exit 1', "status 1: b c$"),
    ("kill -9 $$", "signal 9"),
    ("echo", "printed nothing$"),
    ("echo why >&2", "printed nothing: why$"),
    (r'printf "\377"', "printed other than UTF-8"),
    (r'printf "a\033[0m"', r"control characters: 'a\\x1b"),
    ("while echo yes; do :; done", "printed more than 20,000 bytes"),
    ("sleep 60", r"took over 0.5 s, and was ended"),
    ("sleep 60 & echo x", r"took over 0.5 s, and was ended"),
  ],
)
def test_bad_output(script, reason):
  command = shell(script, caption_timeout=0.5 if "sleep" in script else 60)
  with pytest.raises(VideoError, match=f"caption command: .*{reason}"):
    command.run(set(), clip="x")


@pytest.mark.parametrize(
  ("script", "caption"),
  [
    ('echo one; echo; echo " two "', "one two"),
    ("echo {[]} $1", "{[]} a b; $(c)"),
    (r'printf "\357\273\277vid\303\251o"', "vidéo"),
    ("echo error >&2; echo fine", "fine"),
  ],
)
def test_good_output(script, caption):
  assert shell(script).run(set(), clip="a b; $(c)") == caption


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"caption_command": "echo x"}, "has no {clip}"),
    ({"caption_command": "echo '{clip}"}, "cannot be split"),
    ({"caption_command": "no-such-program {clip}"}, "no program 'no-such-"),
    ({"caption_command": "echo {clip}", "caption_timeout": 0.0}, "above 0"),
    ({"caption_command": "echo {clip}", "caption_workers": 0}, "at least 1"),
  ],
)
def test_refused(values, message):
  with pytest.raises(UserError, match=message):
    CaptionCommand(**values)


def test_captions_of_others_stay(options):
  path = Path(options.out, CAPTIONS)
  path.parent.mkdir()
  path.write_text("mine")
  with pytest.raises(UserError, match=f"{CAPTIONS}: is there already"):
    prepare(options, command=shell("echo x"))
  assert path.read_text() == "mine"


def test_the_command_line(options):
  result = run_command(
    "prepare",
    *(f"--{name}={getattr(options, name)}" for name in ("input", "out")),
    *("--side=16", "--fps=8", f"--cache={options.cache}"),
    f"--caption_command={sys.executable} -c 'print(1 + 1)' {{clip}}",
  )
  assert result.returncode == 0, result.stderr
  whole = dataclasses.replace(options, max_seconds=60)
  assert [c[-1] for c in captions(whole)] == ["2", "2", "told"]
