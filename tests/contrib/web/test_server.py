"""No path of the server can be read through it, nor any address fetched."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")


import io
import json
import os
from pathlib import Path
import shutil
from urllib.parse import quote

import httpx
import numpy as np
from PIL import Image

from lumiere_jax.contrib.web.mask_editor import painted
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.server import serve
from lumiere_jax.contrib.web.tabs import TABS
from lumiere_jax.errors import UserError
from tests.contrib.web.serving import served
from tests.contrib.web.test_uploads import png_header

pytestmark = pytest.mark.app


GOLDEN = Path(__file__).parents[1] / "inference/golden/format_1"


FILE = "/gradio_api/file="


SESSION = "abc123"


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


def upload(site, content: bytes, name: str = "x.png") -> tuple[int, bytes]:
  edge = "edge"
  head = (
    f'--{edge}\r\nContent-Disposition: form-data; name="files"; '
    f'filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
  )
  body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
  headers = {"content-type": f"multipart/form-data; boundary={edge}"}
  return site.ask("/gradio_api/upload", body, headers)


def test_the_page_is_there_and_tells_no_one(site):
  status, page = site.ask("/")
  assert status == 200
  assert TABS["panorama"].title.encode() in page
  config = json.loads(site.ask("/config")[1])
  assert config["analytics_enabled"] is False
  assert os.environ["GRADIO_TEMP_DIR"] == str(site.desk.folder)
  assert site.desk.folder.stat().st_mode & 0o077 == 0


def ways_to(path: str) -> list[str]:
  """The many ways to ask for a file."""
  up = "../" * 12
  own = "/tmp/lumiere_app_x/"
  return [
    f"{FILE}{path}",
    f"{FILE}{quote(path, safe='')}",
    f"{FILE}{path.replace('/', '%2F')}",
    f"{FILE}/{path}",
    f"{FILE}/.{path}",
    f"{FILE}{up}{path}",
    f"{FILE}{own}{up}{path}",
    f"{FILE}{own}{quote(up, safe='')}{path}",
    f"{FILE}{own}{up.replace('.', '%2e')}{path}",
    f"{FILE}{own}{up.replace('.', '%252e')}{path}",
    f"{FILE}file://{path}",
    f"{FILE}{path}%00.png",
    f"/gradio_api/file/{path}",
    f"/gradio_api/file{path}",
    f"/file={path}",
    f"/static/{up}{path}",
    f"/static/{path}",
    f"/assets/{up}{path}",
    f"/assets/{quote(up, safe='')}{path}",
    f"/svelte/{up}{path}",
    f"/gradio_api/proxy=file://{path}",
    f"/gradio_api/custom_component/1/client/component/{up}{path}",
    f"/{up}{path}",
    f"{path}",
  ]


@pytest.mark.parametrize("number", range(len(ways_to(""))))
def test_files_of_the_server_are_refused(site, bundle, number):
  own = str(site.desk.folder)
  files = ["/etc/passwd", str(bundle / "bundle.json"), str(Path(__file__))]
  for file in files:
    way = ways_to(file)[number].replace("/tmp/lumiere_app_x", own)
    status, answer = site.ask(way)
    assert status in (400, 403, 404), way
    assert Path(file).read_bytes()[:40] not in answer


def test_the_bundle_is_refused_even_within_the_folder_that_is_served(
  site, drawing
):
  with served(drawing, Options()) as other:
    inside = other.desk.folder / "bundle.json"
    inside.write_text("{}")
    assert other.ask(f"{FILE}{inside}")[0] == 200  # as an upload would be
    other.page.blocked_paths = [str(inside)]
    assert other.ask(f"{FILE}{inside}")[0] == 403


def test_links_out_of_the_folder_are_refused(site):
  link = site.desk.folder / "link.png"
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
  asked = lambda *args, **kwargs: pytest.fail("it was asked")
  monkeypatch.setattr(httpx.AsyncClient, "send", asked)
  assert site.ask(FILE + address)[0] in (403, 404)
  assert site.ask(f"/gradio_api/proxy={address}")[0] == 404
  assert name_as_picture(site, address)["success"] is False


def name_as_picture(site, path: str, **rest) -> dict:
  """Names a file as the uploaded picture of a tab."""
  data = {"path": path, "meta": {"_type": "gradio.FileData"}} | rest
  return site.call("canvas_cinemagraph", [data], SESSION)


@pytest.mark.parametrize("ending", ["", ".svg", ".png"])
def test_files_of_the_server_cannot_be_named_as_uploads(
  site, tmp_path, ending, picture
):
  secret = tmp_path / f"secret{ending}"
  shutil.copy(picture, secret)
  before = sorted(site.desk.folder.rglob("*"))
  for path in (
    str(secret),
    f"{site.desk.folder}/../{os.path.relpath(secret, '/tmp')}",
    os.path.relpath(secret),
    f"file://{secret}",
  ):
    for rest in ({}, {"orig_name": "x.png"}, {"url": f"file://{secret}"}):
      ended = name_as_picture(site, path, **rest)
      assert ended["success"] is False, path
    assert site.ask(f"{FILE}{path}")[0] in (403, 404)
  # Neither copied to where it would be served, nor allowed from now on.
  assert sorted(site.desk.folder.rglob("*")) == before
  assert site.ask(f"{FILE}{secret}")[0] == 403


def test_a_picture_in_the_request_itself_is_not_looked_at(site):
  data = {"path": "x", "url": "data:image/png;base64,iVBORw0KGgo="}
  ended = name_as_picture(site, **data)
  assert ended["success"] is False


def test_what_was_uploaded_can_be_named(site, picture):
  status, answer = upload(site, Path(picture).read_bytes())
  assert status == 200
  (path,) = json.loads(answer)
  assert path.startswith(f"{site.desk.folder}/")
  ended = name_as_picture(site, path)
  assert ended["success"], ended
  (value,) = ended["output"]["data"]
  background = value["background"]["path"]
  assert background.startswith(f"{site.desk.folder}/")
  assert site.ask(f"{FILE}{background}")[0] == 200


@pytest.mark.parametrize(
  "name", ["../../x.png", "/etc/x.png", "..", "a\\b.png"]
)
def test_names_of_uploads_lead_nowhere_else(site, name):
  status, answer = upload(site, b"0", name)
  if status == 200:
    (path,) = json.loads(answer)
    assert Path(path).resolve().is_relative_to(site.desk.folder)
  else:
    assert status == 400


def test_uploads_are_limited(site):
  before = sorted(site.desk.folder.rglob("*"))
  assert upload(site, bytes(1_100_000))[0] == 413
  assert upload(site, bytes(2_100_000))[0] == 413
  assert sorted(x for x in site.desk.folder.rglob("*") if x.is_file()) == [
    x for x in before if x.is_file()
  ]


def test_paint_is_measured_before_it_is_decoded(site):
  _, answer = upload(site, png_header(60_000, 60_000))
  (path,) = json.loads(answer)
  with pytest.raises(UserError, match="painted mask is no picture"):
    painted([path])


def test_a_taken_port_is_told_before_the_model_is_loaded(site):
  load = lambda: pytest.fail("it was loaded")
  with pytest.raises(UserError, match=f"port={site.port} cannot be listened"):
    serve(load, Options(), port=site.port)
  with pytest.raises(UserError, match=r"host=192\.0\.2\.1 port=0 cannot be"):
    serve(load, Options(), host="192.0.2.1", port=0)


def test_what_the_server_keeps_is_gone_with_it(drawing):
  with served(drawing, Options()) as site:
    folder = site.desk.folder
    assert folder.is_dir()
  assert not folder.exists()


def test_masks_are_what_was_painted():
  assert painted([]) is None
  layer = np.zeros((40, 60, 4), np.uint8)
  layer[3:9, 10:20] = (255, 60, 172, 153)
  files = []
  for k in (0, 1):
    file = io.BytesIO()
    Image.fromarray(np.roll(layer, 20 * k, axis=1)).save(file, "PNG")
    files.append(file)
  mask = painted(files)
  assert mask.sum() == 2 * 60
  assert mask[3:9, 10:20].all()
  assert mask[3:9, 30:40].all()
