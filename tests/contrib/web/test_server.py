"""No file of the server can be read through it, and no address is fetched."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")


import json
import os
from pathlib import Path
import shutil
from urllib.parse import quote

import httpx

from lumiere_jax.contrib.web.options import Address, Limits, Options
from lumiere_jax.contrib.web.server import serve
from lumiere_jax.contrib.web.tabs import TABS
from lumiere_jax.errors import UserError
from tests.contrib.web.serving import FILE, SESSION, served
from tests.contrib.web.test_options import GOLDEN

pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def site(drawing, tmp_path_factory):
  bundle = tmp_path_factory.mktemp("models") / "bundle"
  shutil.copytree(GOLDEN, bundle)
  options = Options(limits=Limits(max_mb=1.0), secret=(str(bundle),))
  with served(drawing, options) as site:
    yield site


@pytest.fixture
def bundle(site):
  return Path(site.page.blocked_paths[0])


def files(site) -> list[Path]:
  return sorted(x for x in site.queue.folder.rglob("*") if x.is_file())


def upload(site, content: bytes, name: str = "x.png") -> tuple[int, bytes]:
  edge = "edge"
  head = (
    f'--{edge}\r\nContent-Disposition: form-data; name="files"; '
    f'filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
  )
  body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
  headers = {"content-type": f"multipart/form-data; boundary={edge}"}
  return site.ask("/gradio_api/upload", body, headers)


def name_as_picture(site, path: str, **rest) -> dict:
  """Names a file as the uploaded picture of a tab."""
  data = {"path": path, "meta": {"_type": "gradio.FileData"}} | rest
  return site.call("canvas_cinemagraph", [data], SESSION)


def test_the_page_is_served_without_analytics(site):
  status, page = site.ask("/")
  assert status == 200
  assert TABS["panorama"].title.encode() in page
  assert site.config["analytics_enabled"] is False
  assert os.environ["GRADIO_TEMP_DIR"] == str(site.queue.folder)
  assert site.queue.folder.stat().st_mode & 0o077 == 0


def paths_to(file: str) -> list[str]:
  """Paths that might reach a file of the server."""
  up = "../" * 12
  own = "/tmp/lumiere_app_x/"
  return [
    f"{FILE}{file}",
    f"{FILE}{quote(file, safe='')}",
    f"{FILE}{file.replace('/', '%2F')}",
    f"{FILE}/{file}",
    f"{FILE}/.{file}",
    f"{FILE}{up}{file}",
    f"{FILE}{own}{up}{file}",
    f"{FILE}{own}{quote(up, safe='')}{file}",
    f"{FILE}{own}{up.replace('.', '%2e')}{file}",
    f"{FILE}{own}{up.replace('.', '%252e')}{file}",
    f"{FILE}file://{file}",
    f"{FILE}{file}%00.png",
    f"/gradio_api/file/{file}",
    f"/gradio_api/file{file}",
    f"/file={file}",
    f"/static/{up}{file}",
    f"/static/{file}",
    f"/assets/{up}{file}",
    f"/assets/{quote(up, safe='')}{file}",
    f"/svelte/{up}{file}",
    f"/gradio_api/proxy=file://{file}",
    f"/gradio_api/custom_component/1/client/component/{up}{file}",
    f"/{up}{file}",
    f"{file}",
  ]


@pytest.mark.parametrize("number", range(len(paths_to(""))))
def test_files_of_the_server(site, bundle, number):
  own = str(site.queue.folder)
  for file in ("/etc/passwd", str(bundle / "bundle.json"), __file__):
    path = paths_to(file)[number].replace("/tmp/lumiere_app_x", own)
    status, answer = site.ask(path)
    assert status in (400, 403, 404), path
    assert Path(file).read_bytes()[:40] not in answer


def test_secret_files_in_the_served_folder(site, drawing):
  with served(drawing, Options()) as other:
    inside = other.queue.folder / "bundle.json"
    inside.write_text("{}")
    assert other.ask(f"{FILE}{inside}")[0] == 200  # as an upload would be
    other.page.blocked_paths = [str(inside)]
    assert other.ask(f"{FILE}{inside}")[0] == 403


def test_links_out_of_the_served_folder(site):
  link = site.queue.folder / "link.png"
  link.symlink_to("/etc/passwd")
  status, answer = site.ask(f"{FILE}{link}")
  link.unlink()
  assert status == 403
  assert b"root" not in answer


@pytest.mark.parametrize(
  "address",
  [
    "https://example.org/x.png",
    "http://127.0.0.1:1/x.png",
    "http%3A%2F%2F127.0.0.1:1%2Fx.png",
    "ftp://example.org/x",
  ],
)
def test_no_address_is_fetched(site, address, monkeypatch):
  send = lambda *args, **kwargs: pytest.fail("it was fetched")
  monkeypatch.setattr(httpx.AsyncClient, "send", send)
  assert site.ask(FILE + address)[0] in (403, 404)
  assert site.ask(f"/gradio_api/proxy={address}")[0] == 404
  assert name_as_picture(site, address)["success"] is False


@pytest.mark.parametrize("ending", ["", ".svg", ".png"])
def test_files_of_the_server_as_uploads(site, tmp_path, ending, picture):
  secret = tmp_path / f"secret{ending}"
  shutil.copy(picture, secret)
  before = files(site)
  for path in (
    str(secret),
    f"{site.queue.folder}/../{os.path.relpath(secret, '/tmp')}",
    os.path.relpath(secret),
    f"file://{secret}",
  ):
    for rest in ({}, {"orig_name": "x.png"}, {"url": f"file://{secret}"}):
      assert name_as_picture(site, path, **rest)["success"] is False, path
    assert site.ask(f"{FILE}{path}")[0] in (403, 404)
  # Neither copied to where it would be served, nor allowed from now on.
  assert files(site) == before
  assert site.ask(f"{FILE}{secret}")[0] == 403


def test_data_urls_as_uploads(site):
  url = "data:image/png;base64,iVBORw0KGgo="
  assert name_as_picture(site, "x", url=url)["success"] is False


def test_uploads_can_be_named(site, picture):
  status, answer = upload(site, Path(picture).read_bytes())
  assert status == 200
  (path,) = json.loads(answer)
  assert path.startswith(f"{site.queue.folder}/")
  done = name_as_picture(site, path)
  assert done["success"], done
  (value,) = done["output"]["data"]
  background = value["background"]["path"]
  assert background.startswith(f"{site.queue.folder}/")
  assert site.ask(f"{FILE}{background}")[0] == 200


@pytest.mark.parametrize(
  "name", ["../../x.png", "/etc/x.png", "..", "a\\b.png"]
)
def test_names_of_uploads_stay_in_the_folder(site, name):
  status, answer = upload(site, b"0", name)
  if status == 200:
    (path,) = json.loads(answer)
    assert Path(path).resolve().is_relative_to(site.queue.folder)
  else:
    assert status == 400


@pytest.mark.parametrize("size", [1_100_000, 2_100_000])
def test_large_uploads(site, size):
  before = files(site)
  assert upload(site, bytes(size))[0] == 413
  assert files(site) == before


def test_a_port_in_use_is_reported_before_the_pipeline_is_loaded(site):
  load = lambda: pytest.fail("it was loaded")
  with pytest.raises(UserError, match=f"port={site.port} cannot be used"):
    serve(load, Options(), Address(port=site.port))
  with pytest.raises(UserError, match=r"host=192\.0\.2\.1 port=0 cannot be"):
    serve(load, Options(), Address(host="192.0.2.1", port=0))


def test_the_folder_is_removed_with_the_server(drawing):
  with served(drawing, Options()) as site:
    folder = site.queue.folder
    assert folder.is_dir()
  assert not folder.exists()
