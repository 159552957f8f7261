"""Which paths can be a workdir."""

import pathlib

import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.training.workdir import check_workdir
from tests.conftest import run_command


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://b", "file:///tmp/x"])
def test_a_url_is_an_error(url):
  with pytest.raises(UserError, match=f"workdir={url} is a URL.*gcsfuse"):
    check_workdir(url)


@pytest.mark.parametrize("folder", ["out/x", "/mnt/run/x", "gs:/b", "a:b"])
def test_a_folder_is_used_as_given(folder):
  assert check_workdir(folder) == pathlib.Path(folder)


def test_the_error_comes_before_waiting_for_other_processes():
  result = run_command(
    *("main", "--config=configs/base.py:tiny", "--workdir=gs://bucket/x"),
    *("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1"),
  )
  assert result.returncode == 2
  assert result.stderr.startswith("error: --workdir=gs://bucket/x is a URL")
  assert len(result.stderr.splitlines()) == 1
