"""Weight folders of others: whole ones are read, others named and refused."""

import json
import pickle

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models.importers.hf_checkpoint import (
  check_tensors,
  open_weights,
  read_json,
)
from lumiere_jax.storage import safetensors

TENSORS = {
  name: np.arange(12, dtype=np.float16).reshape(3, 4) + i
  for i, name in enumerate(["a.weight", "b.weight", "c.weight"])
}


def shard(folder, stem="model", variant=""):
  """As the libraries shard: an index and two files."""
  names = [f"{stem}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
  where = dict(zip(TENSORS, [names[0], names[1], names[1]], strict=True))
  for name in names:
    part = {k: v for k, v in TENSORS.items() if where[k] == name}
    safetensors.save(folder / name, part, {"format": "pt"})
  index = folder / f"{stem}.safetensors.index{variant}.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
  return index


def same(tensors):
  assert tensors.keys() == TENSORS.keys()
  for name, lazy in tensors.items():
    assert (lazy.shape, lazy.dtype) == ((3, 4), np.float16)
    assert (lazy.size, lazy.nbytes) == (12, 24)
    np.testing.assert_array_equal(np.asarray(lazy), TENSORS[name])
    assert np.asarray(lazy).dtype == np.float16


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_one_file_and_shards_are_the_same(tmp_path, variant):
  (tmp_path / "one").mkdir()
  file = tmp_path / "one" / f"model{variant}.safetensors"
  safetensors.save(file, TENSORS)
  same(open_weights(tmp_path / "one", "model"))
  same(open_weights(file, "model"))
  (tmp_path / "two").mkdir()
  shard(tmp_path / "two", variant=variant)
  same(open_weights(tmp_path / "two", "model"))
  same(open_weights(tmp_path / "two", "model", variant=variant[1:]))


def test_plain_file_is_preferred_to_variants(tmp_path):
  other = {k: v + 100 for k, v in TENSORS.items()}
  safetensors.save(tmp_path / "model.fp16.safetensors", other)
  shard(tmp_path)
  same(open_weights(tmp_path, "model"))
  chosen = open_weights(tmp_path, "model", variant="fp16")
  np.testing.assert_array_equal(chosen["a.weight"], other["a.weight"])


def test_several_variants_are_ambiguous(tmp_path):
  for variant in ("fp16", "bf16"):
    safetensors.save(tmp_path / f"model.{variant}.safetensors", TENSORS)
  with pytest.raises(UserError, match=r"bf16.*fp16.*variant"):
    open_weights(tmp_path, "model")


def test_unneeded_shards_may_be_missing(tmp_path):
  shard(tmp_path)
  (tmp_path / "model-00002-of-00002.safetensors").unlink()
  kept = open_weights(tmp_path, "model", keep=lambda n: n == "a.weight")
  assert list(kept) == ["a.weight"]


def test_every_missing_shard_is_named(tmp_path):
  shard(tmp_path)
  for file in tmp_path.glob("*-of-*"):
    file.unlink()
  with pytest.raises(UserError, match=r"00001-of-00002.*00002-of-00002"):
    open_weights(tmp_path, "model")


@pytest.mark.parametrize(
  "name", ["../a.safetensors", "/etc/passwd", "x/y", ".."]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, name):
  index = shard(tmp_path)
  where = json.loads(index.read_text())["weight_map"] | {"a.weight": name}
  index.write_text(json.dumps({"weight_map": where}))
  with pytest.raises(UserError, match="outside the folder"):
    open_weights(tmp_path, "model")


def test_an_index_that_does_not_fit_its_shards_names_the_tensors(tmp_path):
  index = shard(tmp_path)
  where = json.loads(index.read_text())["weight_map"]
  file = where["a.weight"]
  index.write_text(json.dumps({"weight_map": where | {"x": file, "y": file}}))
  with pytest.raises(UserError, match=r"do not hold \(x, y\)"):
    open_weights(tmp_path, "model")


def test_a_shard_cut_short_is_refused(tmp_path):
  shard(tmp_path)
  file = tmp_path / "model-00002-of-00002.safetensors"
  file.write_bytes(file.read_bytes()[:-10])
  with pytest.raises(UserError, match=r"00002-of-00002.*only a part"):
    open_weights(tmp_path, "model")


def test_duplicate_tensors_are_refused(tmp_path):
  for name in "ab":
    safetensors.save(tmp_path / f"{name}.safetensors", TENSORS)
  with pytest.raises(UserError, match="more than one file holds"):
    open_weights(tmp_path, "model")


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
  file = tmp_path / "pytorch_model.bin"
  file.write_bytes(pickle.dumps({}))
  for source in (tmp_path, file):
    with pytest.raises(UserError, match=rf"weights_only=True.*{file}"):
      open_weights(source, "model")


def test_missing_files(tmp_path):
  with pytest.raises(UserError, match="no such file or folder"):
    open_weights(tmp_path / "none", "model")
  with pytest.raises(UserError, match=r"holds no \.safetensors"):
    open_weights(tmp_path, "model")
  with pytest.raises(UserError, match="belongs beside the weights"):
    read_json(tmp_path / "config.json")
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(UserError, match="not a JSON object"):
    read_json(tmp_path / "config.json")


def test_all_differences_are_named():
  given = {"a": np.zeros(2), "b": np.zeros(3), "x": np.zeros(1)}
  check_tensors(given, {"a": (2,), "b": (3,), "x": (1,)}, "weights")
  with pytest.raises(UserError) as caught:
    check_tensors(given, {"a": (2, 2), "b": (4,), "c": (1,), "d": (1,)}, "w")
  told = str(caught.value)
  for part in ("c, d", "unknown (x)", "a (2,) instead of (2, 2)", "b (3,)"):
    assert part in told
