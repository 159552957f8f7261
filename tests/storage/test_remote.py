"""Local and remote folders, on file systems that need no network."""

import errno
import ssl
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


@pytest.fixture(autouse=True)
def waits(monkeypatch):
  """Seconds waited before retries; nothing is waited for."""
  waited = []
  monkeypatch.setattr(remote.time, "sleep", waited.append)
  return waited


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


class StatusError(Exception):
  """File systems keep the HTTP status in different places."""

  def __init__(self, **values):
    super().__init__("from the server")
    vars(self).update(values)


class Status:
  def __init__(self, status_code):
    self.status_code = status_code


def caused_by(error, cause):
  error.__cause__ = cause
  return error


class ContentLengthError(StatusError):
  """Of an answer cut short."""

  __module__ = "aiohttp.http_exceptions"


class NoCredentialsError(Exception):
  pass


PASSING = [
  ConnectionResetError(errno.ECONNRESET, "reset"),
  TimeoutError(),
  OSError("the line is cut"),
  OSError(errno.EBUSY, "slow down"),
  StatusError(),
  StatusError(status=503),
  caused_by(StatusError(), ContentLengthError(code=400)),
  StatusError(code="429"),
  StatusError(status_code=500),
  StatusError(response=Status(502)),
  StatusError(response={"ResponseMetadata": {"HTTPStatusCode": 503}}),
  caused_by(FileNotFoundError("x"), ConnectionRefusedError()),
  caused_by(FileNotFoundError("x"), StatusError(status=504)),
]
PERMANENT = [
  FileNotFoundError("x"),
  PermissionError("x"),
  OSError(errno.ENOSPC, "full"),
  ssl.SSLCertVerificationError("x"),
  ValueError("x"),
  NoCredentialsError(),
  StatusError(status=404),
  StatusError(status=400),
  StatusError(code="403"),
  StatusError(response=Status(401)),
  StatusError(response={"ResponseMetadata": {"HTTPStatusCode": 403}}),
  caused_by(OSError("x"), StatusError(status=403)),
]
OPERATIONS = {
  "info": lambda to: fetch("memory://f/x.mp4", to).read_bytes(),
  "_open": lambda to: fetch("memory://f/x.mp4", to).read_bytes(),
  "find": lambda to: names_in("memory://f"),
  "cat_file": lambda to: place_bytes("memory://f/x.mp4", b"x"),
  "put_file": lambda to: place_bytes("memory://f/y.mp4", b"new"),
  "mv": lambda to: place_bytes("memory://f/y.mp4", b"new"),
}
RESULTS = dict(
  zip(OPERATIONS, (b"x", b"x", ["x.mp4"], False, True, True), strict=True)
)


@pytest.fixture
def fail(memory, monkeypatch):
  """Makes a method of the file system fail a number of times."""
  memory.pipe("/f/x.mp4", b"x")

  def fail(method, times, error):
    original, left = getattr(MemoryFileSystem, method), [error] * times

    def failing(self, *args, **kwargs):
      if left:
        raise left.pop()
      return original(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, method, failing)

  return fail


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("method", OPERATIONS)
def test_transient_errors_are_retried(
  method, times, fail, waits, tmp_path, memory, capsys
):
  fail(method, times, PASSING[0])
  assert OPERATIONS[method](tmp_path) == RESULTS[method]
  assert len(waits) == times
  for wait, longest in zip(waits, (1, 2, 4, 8), strict=False):
    assert longest / 2 <= wait <= longest
  printed = capsys.readouterr().err.splitlines()
  assert len(printed) == times
  assert "reset" in printed[0]
  assert f"retry {times} of 4 in {waits[-1]:.1f} s (" in printed[-1]
  assert printed[-1].endswith("retries so far)")
  assert not [name for name in memory.find("/f") if ".part" in name]


@pytest.mark.parametrize("method", OPERATIONS)
def test_retries_are_bounded(method, fail, waits, tmp_path):
  fail(method, 5, PASSING[0])
  with pytest.raises(UserError, match=r"memory://f.*reset"):
    OPERATIONS[method](tmp_path)
  assert len(waits) == 4
  assert sum(waits) <= 15


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_errors_that_may_pass(error, fail, waits, tmp_path):
  fail("info", 1, error)
  assert fetch("memory://f/x.mp4", tmp_path).read_bytes() == b"x"
  assert len(waits) == 1


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
@pytest.mark.parametrize("method", ["info", "find"])
def test_errors_that_do_not_pass(method, error, fail, waits, tmp_path):
  fail(method, 1, error)
  with pytest.raises(UserError):
    OPERATIONS[method](tmp_path)
  assert waits == []


def test_copies_cut_short_are_made_again(memory, fail, waits, monkeypatch):
  blocks, short = remote._blocks, [b"", b""]

  def cut(url):
    yield from [short.pop()] if short else blocks(url)

  monkeypatch.setattr(remote, "_blocks", cut)
  with local_copy("memory://f") as folder:
    assert folder.local("x.mp4").read_bytes() == b"x"
  assert len(waits) == 2
