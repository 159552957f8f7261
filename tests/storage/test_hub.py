"""Names of repositories on the Hugging Face hub, read from its cache."""

from pathlib import Path
import shutil

import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage.bundle import is_hub_name

GOLDEN = Path(__file__).parents[1] / "inference" / "golden" / "format_1"

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """The hub's cache in a folder, and no network."""
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  return tmp_path / "hub"


def test_downloaded_repositories_are_opened_by_name(offline):
  repository = offline / "models--someone--lumiere"
  shutil.copytree(GOLDEN, repository / "snapshots" / COMMIT)
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text(COMMIT)
  bundle = bundles.open_bundle("someone/lumiere")
  assert bundle.folder == repository / "snapshots" / COMMIT
  assert set(bundle.parts) == {"text", "base", "ssr"}
  pinned = bundles.open_bundle(f"someone/lumiere@{COMMIT}")
  assert pinned.folder == bundle.folder


def test_failed_downloads_are_one_line(offline):
  with pytest.raises(UserError, match="someone/none is no local f") as error:
    bundles.open_bundle("someone/none")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("someone/lumiere", True),
    ("someone/lumiere@main", True),
    ("lumiere_jax/bundle", False),  # a folder of that name is here
    ("bundle", False),
    ("a/b/c", False),
    ("/a/b", False),
    ("../a", False),
    ("./a", False),
  ],
)
def test_paths_are_no_names(name, expected):
  assert is_hub_name(name) == expected
