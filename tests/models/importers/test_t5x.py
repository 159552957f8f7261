"""T5X checkpoints: every form, laziness, and malformed files."""

import pathlib

from flax import serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
import tensorstore

from lumiere_jax.errors import UserError
from lumiere_jax.models.importers.t5x import open_t5x
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5Config, T5Encoder, init_params
from lumiere_jax.models.text_encoder import open_t5
from tests.references.t5 import (
  load_t5,
  params_to_hf,
  t5x_name,
  write_hf,
  write_t5x,
)

TINY = (
  pathlib.Path(__file__).parents[2] / "../shared/assets/t5x/tiny.checkpoint_0"
)

CONFIG = T5Config(
  vocab_size=50,
  d_model=12,
  d_ff=20,
  num_heads=3,
  d_kv=8,
  num_layers=2,
  num_buckets=16,
)

FLAT = flatten(init_params(CONFIG, seed=5))
KERNEL = "layers_1/mlp/wo/kernel"


def _tree(flat=FLAT):
  """The tree that T5X saves: encoder, decoder and optimizer state."""
  target = {t5x_name(path): value for path, value in flat.items()}
  target["decoder/logits_dense/kernel"] = np.ones((12, 50), np.float32)
  state = {f"param_states/{k}/v": np.ones((2, 3)) for k in target}
  flat = {f"target/{k}": v for k, v in target.items()}
  flat |= {f"state/{k}": v for k, v in state.items()}
  flat["state/step"] = np.int32(7)
  return {"version": 3, "optimizer": unflatten(flat)}


def _write_zarr(folder, value, chunks=None):
  spec = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": str(folder)},
    "metadata": {
      "shape": value.shape,
      "chunks": chunks or value.shape,
      "dtype": "bfloat16"
      if value.dtype == ml_dtypes.bfloat16
      else value.dtype.str,
      "compressor": {"id": "gzip", "level": 1},
    },
  }
  store = tensorstore.open(spec, create=True, delete_existing=True).result()
  store.write(value).result()


def _write_file(folder, flat=FLAT):
  path = folder / "checkpoint_10"
  path.write_bytes(serialization.msgpack_serialize(_tree(flat)))
  return path


def _write_folder(folder, flat=FLAT, as_spec=False):
  """A checkpoint of zarr folders; norms stay in the msgpack file."""
  inside = {}
  for path, value in flat.items():
    name = f"target.{t5x_name(path).replace('/', '.')}"
    if path.endswith("scale"):
      inside[path] = value
      continue
    _write_zarr(folder / name, value, [-(-n // 2) for n in value.shape])
    inside[path] = (
      {
        "driver": "zarr",
        "kvstore": {"driver": "gfile", "path": name},
        "metadata": {"shape": list(value.shape)},
      }
      if as_spec
      else f"PLACEHOLDER://{name}"
    )
  index = serialization.msgpack_serialize(_tree(inside))
  (folder / "checkpoint").write_bytes(index)
  return folder


FORMS = {
  "msgpack": _write_file,
  "zarr": _write_folder,
  "zarr by spec": lambda folder, flat=FLAT: _write_folder(folder, flat, True),
}

every_form = pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)


@every_form
def test_every_form_holds_the_same_leaves(tmp_path, write):
  source = write(tmp_path)
  config, params = load_t5(source)
  assert config == CONFIG
  flat = flatten(params)
  assert flat.keys() == FLAT.keys()
  for path, value in FLAT.items():
    np.testing.assert_array_equal(flat[path], value)


def test_features_are_those_of_the_hugging_face_form(tmp_path):
  params, ids = unflatten(FLAT), np.arange(30)[None]
  results = []
  for source in (
    write_hf(tmp_path / "hf", CONFIG, params_to_hf(params)),
    write_t5x(tmp_path / "t5x", params),
  ):
    config, loaded = load_t5(source)
    results.append(T5Encoder(config).apply({"params": loaded}, ids, ids >= 0))
  np.testing.assert_array_equal(*results)


@every_form
def test_arrays_become_the_dtype_asked_for(tmp_path, write):
  stored = {k: v.astype(ml_dtypes.bfloat16) for k, v in FLAT.items()}
  config, leaves = open_t5x(write(tmp_path, stored), "bfloat16")
  assert config.dtype == "bfloat16"
  for path, leaf in leaves.items():
    exact = path.endswith(("scale", "rel_embedding"))
    dtype = np.float32 if exact else ml_dtypes.bfloat16
    assert leaf.dtype == np.asarray(leaf).dtype == dtype, path
    np.testing.assert_array_equal(np.asarray(leaf), stored[path].astype(dtype))


def test_chunked_arrays_are_joined(tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
  path = _write_file(tmp_path)
  assert b"__msgpack_chunked_array__" in path.read_bytes()
  for name, value in flatten(load_t5(path)[1]).items():
    np.testing.assert_array_equal(value, FLAT[name])


def test_roots_of_the_tree(tmp_path):
  tree, path = _tree()["optimizer"]["target"], tmp_path / "x"
  for root in ({"target": tree}, tree):
    path.write_bytes(serialization.msgpack_serialize(root))
    assert open_t5x(path)[0] == CONFIG
  path.write_bytes(serialization.msgpack_serialize({"params": tree}))
  with pytest.raises(UserError, match="holds no T5 encoder"):
    open_t5x(path)


@pytest.mark.skipif(not TINY.exists(), reason="T5X's checkpoint not at hand")
def test_genuine_checkpoint():
  config, leaves = open_t5(TINY)
  assert config == T5Config(
    d_model=8, d_ff=16, num_heads=4, d_kv=3, num_layers=2
  )
  saved = serialization.msgpack_restore(TINY.read_bytes())
  target = flatten(saved["optimizer"]["target"])
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(np.asarray(leaf), target[t5x_name(path)])
  ids = np.arange(100)[None] * 300
  tree = unflatten({k: np.asarray(v) for k, v in leaves.items()})
  out = T5Encoder(config).apply({"params": tree}, ids, ids >= 0)
  assert np.isfinite(out).all()


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
  _, leaves = open_t5x(_write_folder(tmp_path))
  lost = tmp_path / f"target.encoder.{KERNEL.replace('/', '.')}"
  (lost / "0.0").unlink()
  np.asarray(leaves["layers_0/mlp/wo/kernel"])
  # A chunk that was not fetched must not be read as zeros.
  with pytest.raises(UserError, match=r"wo\.kernel: .*0\.0.*missing"):
    np.asarray(leaves[KERNEL])


def test_misfits_are_all_named(tmp_path):
  flat = dict(FLAT)
  del flat["layers_0/mlp/wi_1/kernel"], flat["encoder_norm/scale"]
  flat["layers_1/mlp/wi_2/kernel"] = flat[KERNEL]
  flat[KERNEL] = flat[KERNEL].T
  with pytest.raises(UserError) as error:
    open_t5x(_write_file(tmp_path, flat))
  for words in (
    "2 tensors are missing (encoder_norm/scale, layers_0/mlp/wi_1/kernel)",
    "1 tensor is unknown (layers_1/mlp/wi_2/kernel)",
    f"({KERNEL} (12, 20) instead of (20, 12))",
    "d_model 12, 2 layers",
  ):
    assert words in str(error.value)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda f: f | {"layers_0/mlp/wi/kernel": f["layers_0/mlp/wi_0/kernel"]},
      "holds T5 1.0, without gated",
    ),
    (
      lambda f: {k: v for k, v in f.items() if "layers_0" not in k},
      "layers_0/attention/query/kernel, layers_0/mlp/wi_0/kernel are missing",
    ),
    (
      lambda f: f | {"relpos_bias/rel_embedding": np.ones(3, np.float32)},
      "rel_embedding .3,. must have two axes",
    ),
    (lambda f: f | {KERNEL: 3}, "wo/kernel is neither an array nor the name"),
    (lambda f: f | {KERNEL: {"a": 3}}, "wo/kernel is neither an array"),
    (lambda f: f | {KERNEL: {"kvstore": "file:///x"}}, "not the msgpack"),
    (lambda f: f | {KERNEL: np.ones(3, np.int32)}, "an array is of type int32"),
    (lambda f: f | {KERNEL: "PLACEHOLDER://none"}, "none: not a zarr array"),
  ],
)
def test_other_checkpoints_are_refused(tmp_path, change, words):
  with pytest.raises(UserError, match=words):
    open_t5x(_write_file(tmp_path, change(dict(FLAT))))


@pytest.mark.parametrize("name", ["../far", "/far", ".", "", "link"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
  folder = tmp_path / "checkpoint_1"
  folder.mkdir()
  name = f"{tmp_path}/far" if name == "/far" else name
  _write_zarr(tmp_path / "far", FLAT[KERNEL])
  (folder / "link").symlink_to(tmp_path / "far")
  spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": name}}
  for value in (f"PLACEHOLDER://{name}", spec):
    path = _write_file(folder, FLAT | {KERNEL: value})
    with pytest.raises(UserError, match="outside its folder"):
      open_t5x(path)


def _with_bad_array(shape, name, values):
  data = msgpack.packb((shape, name, values))
  leaf = msgpack.ExtType(1, data)
  return msgpack.packb({"target": {"token_embedder": {"embedding": leaf}}})


@pytest.mark.parametrize(
  "content",
  [
    b"\x81",
    b"\x81\xa1a\xc1",
    b"\xde",
    _with_bad_array((2, 2), "float32", b"123"),
    _with_bad_array((1,), "object", b"12345678"),
    _with_bad_array(3, 3, 3),
    _with_bad_array((-1, -2), "float32", b"12345678"),
  ],
)
def test_broken_files(tmp_path, content):
  path = tmp_path / "x"
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"x: (not the msgpack|holds no T5)"):
    open_t5(path)


def test_truncated_files(tmp_path):
  path = _write_file(tmp_path)
  content = path.read_bytes()
  for length in range(1, len(content), 997):
    path.write_bytes(content[:length])
    with pytest.raises(UserError, match=r"checkpoint_10: "):
      open_t5(path)


@pytest.mark.parametrize(
  "damage",
  [
    lambda folder: _write_zarr(folder, np.ones((20, 12), np.int32)),
    lambda folder: (folder / ".zarray").write_text("{"),
    lambda folder: (folder / ".zarray").unlink(),
    lambda folder: (folder / "0.0").write_bytes(b"no gzip"),
    lambda folder: (folder / "0.0").write_bytes(b""),
    lambda folder: (folder / ".zarray").write_text(
      (folder / ".zarray").read_text().replace('"gzip"', '"other"')
    ),
  ],
)
def test_broken_arrays(tmp_path, damage):
  damage(_write_folder(tmp_path) / f"target.encoder.{KERNEL.replace('/', '.')}")
  with pytest.raises(UserError, match=r"wo\.kernel: not a zarr array"):
    load_t5(tmp_path)


def test_other_files_are_not_taken_for_checkpoints(tmp_path):
  for name, content in {
    "x.bin": b"\x80\x02}q\x00.",
    "y": b"PK\x03\x04",
    "z": b"",
  }.items():
    (tmp_path / "config.json").write_text('{"feed_forward_proj": "x"}')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="feed_forward_proj is 'x'"):
      open_t5(tmp_path / name)
  with pytest.raises(UserError, match="nowhere: no such file or folder"):
    open_t5(tmp_path / "nowhere")
