from concurrent import futures
import errno
import json
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as reference

from lumiere_jax.errors import UserError
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import writing


def _flat():
  rng = np.random.default_rng(0)
  return {
    "b/kernel": rng.normal(size=(3, 5)).astype(np.float32),
    "a/half": rng.normal(size=(4,)).astype(np.float16),
    "a/brain": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
    "flag": np.array([True, False, True]),
    "step": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
    "bytes": np.arange(5, dtype=np.uint8),
  }


def _same(a, b):
  assert a.keys() == b.keys()
  for name, value in a.items():
    assert value.dtype == b[name].dtype, name
    assert value.shape == b[name].shape, name
    assert value.tobytes() == b[name].tobytes(), name


@pytest.fixture
def saved(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.save(path, _flat())
  return path


def test_round_trip_keeps_every_dtype_and_shape(tmp_path):
  path = tmp_path / "new" / "x.safetensors"
  safetensors.save(path, _flat(), {"format": "pt"})
  _same(_flat(), safetensors.load(path))
  assert safetensors.load_metadata(path) == {"format": "pt"}
  assert os.listdir(path.parent) == [path.name]


def test_agrees_with_the_library_in_both_directions(saved):
  _same(_flat(), reference.load_file(saved))
  assert safetensors.load_metadata(saved) == {}
  reference.save_file(_flat(), saved)
  _same(_flat(), safetensors.load(saved))


def test_tensors_are_aligned_to_their_items(saved):
  content = saved.read_bytes()
  size = int.from_bytes(content[:8], "little")
  assert size % 8 == 0
  for name, entry in json.loads(content[8 : 8 + size]).items():
    assert entry["data_offsets"][0] % _flat()[name].dtype.itemsize == 0


def test_layout_in_memory_does_not_matter(tmp_path):
  path = tmp_path / "x.safetensors"
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  views = {
    "t": x.T,
    "s": x[:, ::2],
    "big": x.astype(">f4"),
    "jax": jnp.array(x),
  }
  safetensors.save(path, views)
  for name, value in safetensors.load(path).items():
    np.testing.assert_array_equal(value, np.asarray(views[name]))


def test_bytes_do_not_depend_on_order(tmp_path):
  meta = {c: c for c in "qwertyuiop"}
  flat = _flat()
  safetensors.save(tmp_path / "a", flat, meta)
  backwards = dict(reversed(flat.items()))
  safetensors.save(tmp_path / "b", backwards, dict(reversed(meta.items())))
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
  assert safetensors.content_hash(flat) == safetensors.content_hash(backwards)


def test_hash_depends_on_names_shapes_dtypes_and_values():
  x = np.arange(6, dtype=np.int32)
  variants = [
    {"x": x},
    {"y": x},
    {"x": x.reshape(2, 3)},
    {"x": x.reshape(3, 2)},
    {"x": x.view(np.float32)},
    {"x": x.view(np.uint32)},
    {"x": x[:3], "y": x[3:]},
    {"x": x[::-1]},
    {"x": x, "y": np.zeros(0, np.int32)},
    {},
  ]
  assert len({safetensors.content_hash(v) for v in variants}) == len(variants)
  for same in (jnp.asarray(x), x.astype(">i4")):
    hashes = [safetensors.content_hash({"x": x}) for x in (x, same)]
    assert hashes[0] == hashes[1]


def test_load_selects_by_name(saved):
  kept = safetensors.load(saved, lambda name: name.startswith("a/"))
  assert sorted(kept) == ["a/brain", "a/half"]


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_file_is_refused(saved, keep):
  saved.write_bytes(saved.read_bytes()[:keep])
  for read in (safetensors.load, safetensors.load_metadata):
    with pytest.raises(UserError, match=f"{saved}.*not a safetensors file"):
      read(saved)


def test_foreign_missing_files_and_folders(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(b"\x80\x04pickle or anything else" * 9)
  with pytest.raises(UserError, match=str(path)):
    safetensors.load(path)
  with pytest.raises(UserError, match=r"none.*no such file"):
    safetensors.load(tmp_path / "none")
  with pytest.raises(UserError, match="cannot be read"):
    safetensors.load(tmp_path)


def test_failed_writes_keep_the_old_file(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.save(path, {"x": np.ones(3)})
  before = path.read_bytes()
  with (
    pytest.raises(UserError, match=f"{path}.*No space left"),
    writing(path) as file,
  ):
    file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with pytest.raises(ZeroDivisionError), writing(path) as file:
    file.write(b"%d" % (1 // 0))
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == [path.name]


def test_concurrent_writers_leave_one_whole_file(tmp_path):
  path = tmp_path / "x.safetensors"
  write = lambda i: [
    safetensors.save(path, {"x": np.full(1000, i)}) for _ in range(10)
  ]
  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(write, range(4)))
  assert len(set(safetensors.load(path)["x"].tolist())) == 1
  assert os.listdir(tmp_path) == [path.name]
  with pytest.raises(UserError, match=r"safetensors/x: cannot be written"):
    safetensors.save(path / "x", {"x": np.ones(3)})


def test_unsupported_dtypes_and_names(tmp_path):
  with pytest.raises(ValueError, match="complex64"):
    safetensors.save(tmp_path / "x", {"x": np.ones(3, np.complex64)})
  with pytest.raises(ValueError, match="__metadata__"):
    safetensors.save(tmp_path / "x", {"__metadata__": np.ones(3)})


def test_files_in_memory(saved):
  data = safetensors.dumps(_flat())
  assert data == saved.read_bytes()
  _same(_flat(), safetensors.loads(data, "x"))
  with pytest.raises(UserError, match="shelf 3: not safetensors"):
    safetensors.loads(data[:-1], "shelf 3")


def test_unwritable_place_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match=r"x\.safetensors: cannot be written"):
    safetensors.save(tmp_path / "file" / "x.safetensors", {"x": np.ones(3)})
