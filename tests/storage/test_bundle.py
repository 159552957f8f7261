"""Bundles: whole at any moment, and clear about what is wrong with them."""

import json

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors


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


def test_what_is_written_is_read(tmp_path):
  bundle = bundles.open_bundle(make(tmp_path / "b", "base", 1))
  assert set(bundle.parts) == {"text", "base"}
  assert bundle.parts["base"].meta == {"step": 1}
  np.testing.assert_array_equal(bundle.load("base")["base/w"], np.full(3, 1))
  assert bundle.file("text", "tokenizer").read_bytes() == b"pieces"


def test_the_bundle_that_ships_is_known_by_its_name(tmp_path, monkeypatch):
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


def test_a_newer_bundle_takes_the_place_of_the_old(tmp_path):
  folder = make(tmp_path / "b", "base", 1)
  make(folder, "base", 2)
  assert bundles.open_bundle(folder).load("base")["base/w"][0] == 2
  assert not (folder / "base-1.safetensors").exists()


def test_a_workdir_stands_for_its_bundle(tmp_path):
  (tmp_path / "w").mkdir()
  make(tmp_path / "w" / "bundle", "base", 1)
  opened = bundles.open_bundle(tmp_path / "w")
  assert opened.folder == tmp_path / "w" / "bundle"


def test_joining_takes_each_part_from_the_first_that_has_it(tmp_path):
  first = make(tmp_path / "a", "base", 1)
  second = make(tmp_path / "b", "ssr", 2)
  bundles.join([first, second], tmp_path / "both")
  both = bundles.open_bundle(tmp_path / "both")
  assert set(both.parts) == {"text", "base", "ssr"}
  assert both.load("text")["text/w"][0] == 1
  assert both.load("ssr")["ssr/w"][0] == 2
  # linked, not copied
  file = both.parts["ssr"].tensors[0]
  assert (tmp_path / "both" / file).samefile(second / file)


def test_bundles_of_different_text_encoders_do_not_join(tmp_path):
  paths = [
    make(tmp_path / "a", "base", 1),
    make(tmp_path / "b", "ssr", 2, identity="other"),
  ]
  with pytest.raises(UserError, match="different text encoders"):
    bundles.join(paths, tmp_path / "both")


def test_damage_is_named(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    bundles.open_bundle(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"has no bundle\.json"):
    bundles.open_bundle(tmp_path / "empty")
  folder = make(tmp_path / "b", "base", 1)
  index = folder / "bundle.json"
  whole = index.read_text()
  index.write_text(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="is damaged"):
    bundles.open_bundle(folder)
  index.write_text("[]")
  with pytest.raises(UserError, match="is damaged"):
    bundles.open_bundle(folder)
  index.write_text(json.dumps({**json.loads(whole), "version": 99}))
  with pytest.raises(UserError, match="version 99"):
    bundles.open_bundle(folder)
  index.write_text(whole)
  (folder / "base-1.safetensors").unlink()
  with pytest.raises(UserError, match=r"lacks base-1.safetensors"):
    bundles.open_bundle(folder)


def test_files_outside_the_folder_are_not_followed(tmp_path):
  folder = make(tmp_path / "b", "base", 1)
  index = json.loads((folder / "bundle.json").read_text())
  index["parts"]["base"]["tensors"] = ["../elsewhere.safetensors"]
  (folder / "bundle.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="outside"):
    bundles.open_bundle(folder)
