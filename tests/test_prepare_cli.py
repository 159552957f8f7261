"""`python -m lumiere_jax.prepare`, as a user types it."""

import json

from tests.conftest import run_command as run
from tests.test_cli import CLIPS, refused


def test_prepares_a_folder(tmp_path):
  flags = (f"--input={CLIPS}", f"--out={tmp_path}", "--side=32", "--fps=8")
  result = run("prepare", *flags, "--max_length=16", "--crf=30")
  assert result.returncode == 0, result.stderr
  assert "6 clips in" in result.stderr
  made = json.loads((tmp_path / "prepared.json").read_text())
  assert len(made["clips"]) == 6
  assert made["options"]["crf"] == 30
  assert (tmp_path / "text" / made["text"]).is_dir()


def test_a_mistake_is_one_line(tmp_path):
  line = refused(run("prepare", f"--out={tmp_path}", "--side=64"))
  assert "--input is missing" in line
