"""Publishing on the hub: the card, the files, and a stand-in for the hub."""

import base64
import http.server
import json
import threading

import numpy as np
import pytest
import yaml

from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage.card import write_card

SCORE = {"kind": "share", "value": 0.5, "low": 0.1, "high": 0.9, "count": 6}
SCORES = {
  "seed": 3,
  "tasks": {"inpaint": {"scores": {"unseen": {"all": SCORE}}}},
}


def publish(out, **options):
  options = {
    "target": "hub",
    "repo": "someone/tiny",
    "src": ("demo",),
  } | options
  convert(Conversion(source="bundle", out=str(out), **options))
  return out


def header(folder):
  return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_dry_run_lists_what_would_be_sent(tmp_path, capsys):
  clip = tmp_path / "a=b.png"
  write_image(clip, np.zeros((4, 4, 3), np.uint8))
  scores = tmp_path / "scores.json"
  scores.write_text(json.dumps(SCORES))
  out = tmp_path / "out"
  out.mkdir()
  (out / "secret.txt").write_text("not part of the bundle")
  prompt = 'a "red" fox: 🦊 \x7f = #'
  publish(
    out, scores=str(scores), clips=(f"{clip}={prompt}",), datasets=("a/b",)
  )
  printed = capsys.readouterr().out
  assert "not sent to someone/tiny" in printed and "secret" not in printed
  for file in ("README.md", "bundle.json", "clips/a=b.png"):
    assert f"{(out / file).stat().st_size:,}  {file}\n" in printed
  assert header(out) == {
    "license": "apache-2.0",
    "library_name": "lumiere_jax",
    "pipeline_tag": "text-to-video",
    "datasets": ["a/b"],
    "tags": ["lumiere", "jax", "diffusion", "conditional", "ssr"],
    "widget": [{"text": prompt, "output": {"url": "clips/a=b.png"}}],
  }
  card = (out / "README.md").read_text()
  assert "| inpaint | unseen | all | 50% | 10% to 90% | 6 |" in card
  assert "--model=someone/tiny" in card


@pytest.mark.parametrize(
  ("stated", "given", "expected"),
  [
    (["MIT", "MIT"], "", {"license": "mit"}),
    (["cc-by-nc-sa-4.0", "not stated"], "", {"license": "cc-by-nc-sa-4.0"}),
    (["not stated", "not stated"], "", {}),
    (["not stated", "not stated"], "openrail++", {"license": "openrail++"}),
    (
      ["My own: no (c)", "MIT"],
      "",
      {"license": "other", "license_name": "mit-my-own-no-c"},
    ),
  ],
)
def test_licences_are_as_the_hub_names_them(tmp_path, stated, given, expected):
  video = {"num_frames": 1, "resolution": [8, 8], "fps": 1.0}
  parts = {
    f"s{k}": bundles.Part(meta={"video": video, "licence": x}, tensors=())
    for k, x in enumerate(stated)
  }
  bundle = bundles.Bundle(folder=tmp_path, parts=parts, about={})
  assert write_card(bundle, licence=given)
  found = header(tmp_path)
  assert {k: v for k, v in found.items() if "license" in k} == expected
  assert found["pipeline_tag"] == "text-to-image"


def test_local_folders_are_not_published(tmp_path):
  out = tmp_path / "out"
  convert(Conversion(source="bundle", src=("demo",), out=str(out)))
  index = json.loads((out / "bundle.json").read_text())
  index["parts"]["ssr"]["meta"]["trained_on"] = "/home/someone/cats"
  (out / "bundle.json").write_text(json.dumps(index))
  publish(tmp_path / "hub", src=(str(out),))
  for file in ("bundle.json", "README.md"):
    text = (tmp_path / "hub" / file).read_text()
    assert "cats" in text and "/home" not in text


def test_own_card_is_kept(tmp_path, capsys):
  out = tmp_path / "out"
  out.mkdir()
  (out / "README.md").write_text("my own words")
  publish(out)
  assert (out / "README.md").read_text() == "my own words"
  assert "left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"repo": ""}, "repo is missing"),
    ({"repo": "lumiere"}, "has no owner"),
    ({"repo": "a/b/c"}, "repo=a/b/c"),
    ({"repo": "me/x..y"}, "repo=me/x..y"),
    ({"datasets": ("a b",)}, "dataset=a b"),
    ({"scores": "none.json"}, "scores=none.json is not an"),
    ({"scores": "list.json"}, "scores=list.json is not an"),
    ({"clips": ("list.json=a fox",)}, "clip=list.json is not one of"),
    ({"clips": ("none.mp4=a fox",)}, "is not a file and its prompt"),
    ({"clips": ("list.json",)}, "is not a file and its prompt"),
    ({"upload": True}, "upload needs a login"),
    ({"target": "bundle"}, "repo is for the hub; give to=hub too"),
  ],
)
def test_everything_is_checked_first(tmp_path, monkeypatch, options, words):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
  (tmp_path / "list.json").write_text("[1]")
  with pytest.raises(UserError) as error:
    publish(tmp_path / "out", **options)
  assert words in str(error.value)
  assert not (tmp_path / "out").exists()


class Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub as an upload needs; everything is a regular file."""

  def do_POST(self):
    sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
    server = self.server
    server.tokens.add(self.headers["Authorization"])
    url = f"http://{self.headers['Host']}/someone/tiny"
    if server.refusal:
      return self.answer({"error": server.refusal}, 403)
    if self.path == "/api/repos/create":
      return self.answer({"url": url})
    if self.path == "/api/validate-yaml":
      return self.answer({"errors": [], "warnings": []})
    if self.path == "/api/models/someone/tiny/preupload/main":
      files = json.loads(sent)["files"]
      modes = {"uploadMode": "regular", "shouldIgnore": False}
      return self.answer(
        {"files": [{"path": f["path"], **modes} for f in files]}
      )
    assert self.path == "/api/models/someone/tiny/commit/main"
    for line in map(json.loads, sent.splitlines()):
      if line["key"] == "file":
        content = base64.b64decode(line["value"]["content"])
        server.files[line["value"]["path"]] = content
    return self.answer({"commitUrl": f"{url}/commit/1", "commitOid": "1"})

  def answer(self, content, status=200):
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.end_headers()
    self.wfile.write(json.dumps(content).encode())

  def log_message(self, *args):
    pass


@pytest.fixture
def hub(monkeypatch):
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    server.files, server.tokens, server.refusal = {}, set(), ""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    yield server
    server.shutdown()
    thread.join()


def test_upload_sends_the_bundle(hub, tmp_path, capsys):
  out = publish(tmp_path / "out", upload=True)
  assert "/someone/tiny/commit/1" in capsys.readouterr().out
  bundle = bundles.open_bundle(out)
  named = {f for p in bundle.parts.values() for f in p.tensors}
  assert hub.files.keys() > named | {"README.md", "bundle.json"}
  assert hub.files == {f: (out / f).read_bytes() for f in hub.files}
  assert hub.tokens == {"Bearer hf_token"}


def test_a_refused_upload_says_why(hub, tmp_path):
  hub.refusal = "no write access"
  with pytest.raises(UserError, match=r"someone/tiny could not.*hf auth log"):
    publish(tmp_path / "out", upload=True)
