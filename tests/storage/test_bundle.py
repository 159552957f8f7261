"""Bundles: reading, replacing and clear errors."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors

GOLDEN = Path(__file__).parents[1] / "inference" / "golden" / "format_1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make(folder, stage, value, identity="same"):
  folder.mkdir(exist_ok=True)
  names = {name: f"{name}-{value}.safetensors" for name in ("text", stage)}
  for name, file in names.items():
    safetensors.save(folder / file, {f"{name}/w": np.full(3, value)})
  (folder / "tokenizer.model").write_bytes(b"pieces")
  parts = {
    "text": bundles.Part(
      meta={"identity": identity},
      tensors=(names["text"],),
      files={"tokenizer": "tokenizer.model"},
    ),
    stage: bundles.Part(meta={"step": value}, tensors=(names[stage],)),
  }
  bundles.write(folder, parts, {"made_by": "test"})
  return folder


def test_round_trip(tmp_path):
  bundle = bundles.open_bundle(make(tmp_path / "b", "base", 1))
  assert set(bundle.parts) == {"text", "base"}
  assert bundle.parts["base"].meta == {"step": 1}
  np.testing.assert_array_equal(bundle.load("base")["base/w"], np.full(3, 1))
  assert bundle.file("text", "tokenizer").read_bytes() == b"pieces"
  make(tmp_path / "b", "base", 2)  # replaces it
  bundle = bundles.open_bundle(tmp_path / "b")
  assert bundle.load("base")["base/w"][0] == 2
  assert not (tmp_path / "b" / "base-1.safetensors").exists()


def test_files_of_others_stay(tmp_path):
  folder = make(tmp_path / "b", "base", 1)
  others = {"lora.safetensors": b"mine", "base-9.safetensors": b"mine"}
  for name, content in others.items():
    (folder / name).write_bytes(content)
  make(folder, "base", 2)
  names = {"base-2.safetensors", "text-2.safetensors"}
  assert {p.name for p in folder.glob("*.safetensors")} == names | {*others}
  source = tmp_path / "lora.safetensors"
  source.write_bytes(b"another")
  assert bundles.link(source, folder) == "lora-2.safetensors"
  assert bundles.link(source, folder) == "lora-2.safetensors"
  assert (folder / "lora-2.safetensors").samefile(source)
  for name, content in others.items():
    assert (folder / name).read_bytes() == content


def test_shipped_bundle(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(bundles.resources, "files", lambda name: tmp_path / name)
  with pytest.raises(UserError, match="model=demo does not exist"):
    bundles.open_bundle("demo")
  assert not bundles.is_bundle("demo")
  (tmp_path / "lumiere_jax" / "assets").mkdir(parents=True)
  shipped = make(tmp_path / "lumiere_jax" / "assets" / "demo", "base", 1)
  assert bundles.open_bundle("demo").folder == shipped
  assert bundles.is_bundle("demo")
  own = make(tmp_path / "demo", "base", 2)
  assert bundles.open_bundle("demo").folder.resolve() == own


def test_bundle_of_a_workdir(tmp_path):
  make(tmp_path / "bundle", "base", 1)
  assert bundles.open_bundle(tmp_path).folder == tmp_path / "bundle"


def test_different_text_encoders(tmp_path):
  opened = [
    bundles.open_bundle(make(tmp_path / name, "base", 1, identity=name))
    for name in "ab"
  ]
  bundles.check_same_text(opened[:1] * 2)
  with pytest.raises(UserError, match=r"a, .*b: .*different text encoders"):
    bundles.check_same_text(opened)


def test_damage_is_named(tmp_path):
  folder = make(tmp_path / "b", "base", 1)
  index = json.loads((folder / "bundle.json").read_text())
  damaged = {
    "is damaged": [json.dumps(index)[:40], "[]"],
    "version 99": [json.dumps({**index, "version": 99})],
  }
  index["parts"]["base"]["tensors"] = ["../elsewhere.safetensors"]
  damaged["outside"] = [json.dumps(index)]
  index["parts"]["base"]["tensors"] = ["gone.safetensors"]
  damaged["lacks gone.safetensors"] = [json.dumps(index)]
  for words, contents in damaged.items():
    for content in contents:
      (folder / "bundle.json").write_text(content)
      with pytest.raises(UserError, match=f"{folder}.*{words}"):
        bundles.open_bundle(folder)


def test_folders_without_a_bundle(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    bundles.open_bundle(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"has no bundle\.json"):
    bundles.open_bundle(tmp_path)


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
  with pytest.raises(UserError, match="someone/none is not a local f") as error:
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
  assert bundles.is_hub_name(name) == expected
