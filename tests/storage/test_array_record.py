from concurrent import futures
import resource

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.remote import Folder


def some(count, seed=0):
  """Records of 0 to 999 bytes."""
  rng = np.random.default_rng(seed)
  return {f"key {k}": rng.bytes(rng.integers(1000)) for k in range(count)}


def write(folder, records, name="clips", **options):
  with RecordWriter(folder, name, **options) as writer:
    for key, value in records.items():
      writer[key] = value


def read_all(folder, name):
  return Records(Folder(folder), name)


def files(folder):
  return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
  records = some(50) | {"": b"", "ключ\n": b"\0"}
  write(tmp_path, records)
  read = read_all(tmp_path, "clips")
  assert dict(read) == records
  assert list(read) == list(records)
  assert "key 3" in read
  assert "key 50" not in read
  with pytest.raises(KeyError):
    read["key 50"]
  assert files(tmp_path) == ["clips-00000.array_record"]


def test_size_of_shards(tmp_path):
  records = {str(k): bytes(100) for k in range(10)}
  write(tmp_path, records, shard_bytes=300)
  assert files(tmp_path) == [f"clips-{k:05d}.array_record" for k in range(4)]
  assert dict(read_all(tmp_path, "clips")) == records


def test_later_shards_win(tmp_path):
  write(tmp_path, {"a": b"1", "b": b"1"})
  write(tmp_path, {"b": b"2", "c": b"2"})
  assert dict(read_all(tmp_path, "clips")) == {"a": b"1", "b": b"2", "c": b"2"}
  for number in (99_999, 100_000):  # as numbers, not as texts
    shard = f"clips-{number:05d}.array_record"
    write(tmp_path / "other", {"a": str(number).encode()})
    (tmp_path / "other/clips-00000.array_record").rename(tmp_path / shard)
  assert read_all(tmp_path, "clips")["a"] == b"100000"
  write(tmp_path, {"a": b"last"})
  assert read_all(tmp_path, "clips")["a"] == b"last"


def test_names_are_separate(tmp_path):
  write(tmp_path, {"a": b"clip"}, name="clips")
  write(tmp_path, {"a": b"text"}, name="text")
  write(tmp_path, {"a": b"other"}, name="text-0123")
  assert read_all(tmp_path, "text")["a"] == b"text"
  assert read_all(tmp_path, "text-0123")["a"] == b"other"
  assert not read_all(tmp_path, "tex")
  write(tmp_path / "below", {"a": b"below"}, name="text")
  assert read_all(tmp_path, "below/text")["a"] == b"below"
  assert read_all(tmp_path, "text")["a"] == b"text"
  with pytest.raises(UserError, match="nowhere: no such folder"):
    read_all(tmp_path / "nowhere", "clips")


def test_ended_writers_leave_whole_shards(tmp_path):
  write(tmp_path / "x", {})
  assert not (tmp_path / "x").exists()
  # Leaving by an exception writes the last records; a kill loses them.
  with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path, "x") as writer:
    writer["a"] = b"1"
    raise KeyboardInterrupt
  assert dict(read_all(tmp_path, "x")) == {"a": b"1"}
  writer = RecordWriter(tmp_path, "y", shard_bytes=3)
  writer["a"] = b"whole"
  writer["b"] = b"no"
  del writer
  assert dict(read_all(tmp_path, "y")) == {"a": b"whole"}
  assert len(files(tmp_path)) == 2


def test_shards_named_by_their_keys_replace_each_other(tmp_path):
  """The same keys give the same file, in any order."""
  records = {str(k): bytes(100) for k in range(6)}
  options = {"shard_bytes": 300, "by_keys": True}
  write(tmp_path, records, **options)
  before = files(tmp_path)
  assert len(before) == 2
  parts = [["5", "3", "4"], ["2", "1", "0"]]
  write(tmp_path, {k: records[k] for part in parts for k in part}, **options)
  assert files(tmp_path) == before
  write(tmp_path, {"6": b"new"}, **options)
  write(tmp_path, {"6": b"newer"})  # numbered on from those
  assert len(files(tmp_path)) == 4
  assert read_all(tmp_path, "clips") == records | {"6": b"newer"}
  write("memory://by_keys", records, **options)
  assert read_all("memory://by_keys", "clips") == records


@pytest.mark.parametrize(
  "damage",
  [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no!"],
)
def test_truncated_shards_are_named(tmp_path, damage):
  write(tmp_path, some(50))
  write(tmp_path, some(2))
  shard = tmp_path / "clips-00001.array_record"
  shard.write_bytes(damage(shard.read_bytes()))
  with pytest.raises(UserError, match=r"clips-00001\.array_record: damaged"):
    read_all(tmp_path, "clips")


def test_flipped_bytes_are_detected(tmp_path):
  write(tmp_path, {"a": b"whole", "b": b"x" * 1000})
  shard = tmp_path / "clips-00000.array_record"
  shard.write_bytes(shard.read_bytes().replace(b"x" * 100, b"y" * 100, 1))
  records = read_all(tmp_path, "clips")
  assert records["a"] == b"whole"
  with pytest.raises(UserError, match=r"clips-00000.*damaged.*hash mismatch"):
    records["b"]


def test_foreign_files(tmp_path):
  for name, last in {"a": b"no json", "b": b"[]"}.items():
    writer = ArrayRecordWriter(
      str(tmp_path / f"{name}-00000.array_record"), "group_size:1"
    )
    writer.write(last)
    writer.close()
    with pytest.raises(UserError, match="did not write it"):
      read_all(tmp_path, name)


def test_full_disk(tmp_path):
  write(tmp_path, {"a": b"1"})
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="cannot be written"):
    write(tmp_path / "file", {"a": b"1"})
  (tmp_path / "file").unlink()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
  try:
    with pytest.raises(UserError, match=r"cannot be written .*too large"):
      write(tmp_path, {"b": bytes(2**21)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert files(tmp_path) == ["clips-00000.array_record"]
  assert dict(read_all(tmp_path, "clips")) == {"a": b"1"}


def test_threads_share_a_reader(tmp_path):
  records = some(40)
  write(tmp_path, records, shard_bytes=2000)
  read = read_all(tmp_path, "clips")

  def work(seed):
    keys = np.random.default_rng(seed).permutation(list(records))
    return [key for key in keys if read[key] != records[key]]

  with futures.ThreadPoolExecutor(8) as pool:
    assert not any(pool.map(work, range(8)))
