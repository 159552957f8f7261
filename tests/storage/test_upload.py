"""Files put in place on this machine and elsewhere: whole, or not there."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage.remote import (
  atomic_upload,
  local_copy,
  names_in,
  place_bytes,
  remove,
  require_writable,
)


@pytest.fixture(params=["", "file://", "local://", "memory:/"])
def place(request, tmp_path):
  """A folder that is not there yet, in ways to write to one."""
  fsspec.filesystem("memory").store.clear()
  return f"{request.param}{tmp_path}/made/deep"


def test_a_file_is_put_in_place(place):
  assert names_in(place) == []
  assert place_bytes(f"{place}/x.json", b"1")
  assert not place_bytes(f"{place}/x.json", b"1")  # it is there
  assert place_bytes(f"{place}/x.json", b"2")
  assert place_bytes(f"{place}/below/y", b"")
  assert names_in(place) == ["below/y", "x.json"]
  with local_copy(place) as folder:
    copy = folder.local("x.json")
    assert copy.read_bytes() == b"2"
  assert copy.exists() == copy.is_relative_to(place.removeprefix("file://"))
  remove(f"{place}/x.json")
  remove(f"{place}/x.json")
  assert names_in(place) == ["below/y"]


def test_nothing_is_there_before_the_end(place):
  with pytest.raises(RuntimeError), atomic_upload(f"{place}/x") as temporary:
    temporary.write_bytes(b"half")
    assert names_in(place) == []
    raise RuntimeError
  assert names_in(place) == []


def test_an_upload_that_fails_leaves_the_old_file(monkeypatch):
  system = fsspec.filesystem("memory")
  system.store.clear()
  place_bytes("memory://out/x", b"old")

  def fail(self, source, target, **options):
    raise OSError("the line is cut")

  monkeypatch.setattr(MemoryFileSystem, "mv", fail)
  with pytest.raises(UserError, match=r"memory://out/x: .*the line is cut"):
    place_bytes("memory://out/x", b"new")
  assert system.find("/out") == ["/out/x"]
  assert system.cat_file("/out/x") == b"old"


def test_whether_one_may_write(place, tmp_path):
  require_writable(place)
  assert names_in(place) == []
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"file/x.*cannot be .*written"):
    require_writable(f"{tmp_path}/file/x")
  with pytest.raises(UserError, match=r"^no://x: .*Protocol not known"):
    require_writable("no://x/")
