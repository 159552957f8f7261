"""Local and remote folders, on file systems that need no network."""

import sys

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import pytest

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage import remote
from lumiere_jax.storage.remote import (
  Folder,
  atomic_upload,
  default_cache,
  fetch,
  is_url,
  local_copy,
  names_in,
  place_bytes,
  remove,
  require_writable,
)


@pytest.fixture
def memory():
  system = fsspec.filesystem("memory")
  system.store.clear()
  yield system
  system.store.clear()
  system.pseudo_dirs[:] = [""]


@pytest.fixture(params=["", "file://", "local://", "memory:/"])
def place(request, memory, tmp_path):
  """Addresses of a folder that does not exist yet."""
  return f"{request.param}{tmp_path}/made/deep"


def files(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


def test_urls():
  for url in ("gs://b/x", "s3://b", "https://h/x.mp4", "memory://x"):
    assert is_url(url)
  for name in ("x.mp4", "a/b", "/a/b", "a:b.mp4", "c:\\x", "x://y", "http:x"):
    assert not is_url(name)


def test_default_cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert default_cache() == tmp_path / "lumiere_jax" / "remote"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert default_cache() == tmp_path / "home/.cache/lumiere_jax/remote"


def test_copies_each_version_once(memory, tmp_path, monkeypatch):
  memory.pipe("/f/x.mp4", b"one")
  copy = fetch("memory://f/x.mp4", tmp_path)
  assert copy.read_bytes() == b"one"
  assert copy.suffix == ".mp4"
  with monkeypatch.context() as patch:
    patch.setattr(remote, "_blocks", None)  # a second copy would fail
    assert fetch("memory://f/x.mp4", tmp_path) == copy
  memory.pipe("/f/x.mp4", b"two")
  assert fetch("memory://f/x.mp4", tmp_path).read_bytes() == b"two"
  assert files(tmp_path) == sorted([copy, fetch("memory://f/x.mp4", tmp_path)])
  # Endings are short.
  memory.pipe("/f/a.longer than an ending", b"\0\1" * 5000)
  copy = fetch("memory://f/a.longer than an ending", tmp_path / "c")
  assert copy.read_bytes() == b"\0\1" * 5000
  assert copy.suffix == ""


def test_unreadable_remote_files(memory, tmp_path, monkeypatch):
  memory.pipe("/f/x.mp4", b"x" * 100)
  for url, reason in {
    "memory://f/gone.mp4": "^memory://f/gone.mp4: missing: ",
    "memory://f": "not a file",
  }.items():
    with pytest.raises(VideoError, match=reason):
      fetch(url, tmp_path)
  with pytest.raises(UserError, match="memory://g: no files; give the URL"):
    _ = Folder("memory://g").names
  with pytest.raises(UserError, match="Protocol not known: fox"):
    fetch("fox://f/x.mp4", tmp_path)
  info = memory.info
  with monkeypatch.context() as patch:
    longer = lambda self, path: info(path) | {"size": 200}
    patch.setattr(type(memory), "info", longer)
    with pytest.raises(VideoError, match="cut short: 100 of 200 bytes"):
      fetch("memory://f/x.mp4", tmp_path)

  class HttpError(Exception):
    """File systems such as gcsfs have errors of their own."""

  def fail(self, path, *args, **kwargs):
    raise HttpError("reset\nby the other side")

  monkeypatch.setattr(type(memory), "open", fail)
  with pytest.raises(VideoError, match="cannot be reached: reset by the other"):
    fetch("memory://f/x.mp4", tmp_path)
  assert files(tmp_path) == []  # incomplete copies are removed
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="cannot be written") as caught:
    fetch("memory://f/x.mp4", tmp_path / "file")
  assert not isinstance(caught.value, VideoError)


@pytest.mark.parametrize(
  ("protocol", "module", "install"),
  [
    ("s3", "s3fs", "pip install s3fs"),
    ("gs", "gcsfs", "pip install gcsfs"),
    ("https", "aiohttp", r"pip install 'fsspec\[http\]'"),
  ],
)
def test_missing_packages(tmp_path, monkeypatch, protocol, module, install):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError, match=f"{protocol}://.*{install}$") as caught:
    fetch(f"{protocol}://bucket/x.mp4", tmp_path)
  assert not isinstance(caught.value, VideoError)
  assert "\n" not in str(caught.value)


def test_remote_folders(memory, tmp_path):
  for name in ("b.mp4", "a/x y.mp4", ".hidden/x.mp4", "a/.part"):
    memory.pipe(f"/f/{name}", name.encode())
  memory.pipe("/g/z.mp4", b"elsewhere")
  for root in ("memory://f", "memory://f/", "memory:///f"):
    folder = Folder(root, tmp_path)
    assert folder.names == ["a/x y.mp4", "b.mp4"]
    for name in folder.names:
      assert folder.local(name).read_bytes() == name.encode()
  assert folder.local("memory://g/z.mp4").read_bytes() == b"elsewhere"
  copy = folder.local("b.mp4")
  memory.rm("/f/b.mp4")
  assert folder.local("b.mp4") == copy  # is not checked again
  copy.unlink()
  with pytest.raises(VideoError, match=r"memory:///f/b\.mp4: missing"):
    folder.local("b.mp4")


def test_local_files_are_not_copied(tmp_path):
  (tmp_path / "x.mp4").touch()
  for root in (tmp_path, f"file://{tmp_path}"):
    folder = Folder(root, tmp_path / "cache")
    assert folder.names == ["x.mp4"]
    for name in ("x.mp4", f"file://{tmp_path}/x.mp4", f"{tmp_path}/x.mp4"):
      assert folder.local(name) == tmp_path / "x.mp4"
  assert not (tmp_path / "cache").exists()


def test_cyclic_links(tmp_path):
  root = tmp_path / "root"
  (root / "a").mkdir(parents=True)
  (tmp_path / "elsewhere").mkdir()
  for name in ("root/a/x.mp4", "root/.hidden", "elsewhere/y.mp4"):
    (tmp_path / name).touch()
  (root / "a" / "up").symlink_to(root)
  (root / "b").symlink_to(root / "b")
  (root / "linked").symlink_to(tmp_path / "elsewhere")
  (root / "twice").symlink_to(tmp_path / "elsewhere")
  (root / "loop.mp4").symlink_to("loop.mp4")
  names = Folder(root).names
  # Broken links are listed: whoever opens them reports it.
  assert names == ["a/x.mp4", "b", "linked/y.mp4", "loop.mp4"]


def test_unreadable_folders(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="gone: no such folder"):
    _ = Folder(tmp_path / "gone").names
  (tmp_path / "x").touch()
  with pytest.raises(UserError, match="no such folder"):
    _ = Folder(tmp_path / "x").names

  def refuse(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr("os.scandir", refuse)
  with pytest.raises(UserError, match=r"cannot be read \(Permission denied"):
    _ = Folder(tmp_path).names


def test_place_bytes(place):
  assert names_in(place) == []
  assert place_bytes(f"{place}/x.json", b"1")
  assert not place_bytes(f"{place}/x.json", b"1")
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


def test_failed_writes_leave_nothing(place):
  with pytest.raises(RuntimeError), atomic_upload(f"{place}/x") as temporary:
    temporary.write_bytes(b"half")
    assert names_in(place) == []
    raise RuntimeError
  assert names_in(place) == []


def test_failed_uploads_keep_the_old_file(memory, monkeypatch):
  place_bytes("memory://out/x", b"old")

  def fail(self, source, target, **options):
    raise OSError("the line is cut")

  monkeypatch.setattr(MemoryFileSystem, "mv", fail)
  with pytest.raises(UserError, match=r"memory://out/x: .*the line is cut"):
    place_bytes("memory://out/x", b"new")
  assert memory.find("/out") == ["/out/x"]
  assert memory.cat_file("/out/x") == b"old"


def test_require_writable(place, tmp_path):
  require_writable(place)
  assert names_in(place) == []
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"file/x.*cannot be .*written"):
    require_writable(f"{tmp_path}/file/x")
  with pytest.raises(UserError, match=r"^no://x: .*Protocol not known"):
    require_writable("no://x/")


def test_file_urls_and_names_without_ending(tmp_path):
  (tmp_path / "a.longer than an ending").write_bytes(b"\0\1" * 5000)
  copy = fetch(f"file://{tmp_path}/a.longer than an ending", tmp_path / "c")
  assert copy.read_bytes() == b"\0\1" * 5000
  assert copy.suffix == ""


def test_incomplete_copies_are_removed(memory, tmp_path, monkeypatch):
  memory.pipe("/f/x.mp4", b"x" * 100)
  info = memory.info
  monkeypatch.setattr(
    type(memory), "info", lambda self, path: info(path) | {"size": 200}
  )
  with pytest.raises(VideoError, match="cut short: 100 of 200 bytes"):
    fetch("memory://f/x.mp4", tmp_path)
  assert files(tmp_path) == []


def test_unwritable_cache(memory, tmp_path):
  memory.pipe("/f/x.mp4", b"x")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="cannot be written") as caught:
    fetch("memory://f/x.mp4", tmp_path / "file")
  assert not isinstance(caught.value, VideoError)
