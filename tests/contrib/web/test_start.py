"""What is said in one line before anything is served."""

from pathlib import Path
import shutil
import sys
from unittest import mock

import pytest

from lumiere_jax.contrib.web import start as starting
from lumiere_jax.contrib.web.examples import PROMPTS, draw
from lumiere_jax.contrib.web.options import Limits, Options, parse_styles
from lumiere_jax.contrib.web.start import start
from lumiere_jax.errors import UserError, listening, notice
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import probe
from lumiere_jax.storage import bundle
from lumiere_jax.toy_scenes.captions import is_held_out, parse_caption
from lumiere_jax.toy_scenes.scenes import MOTIONS
from tests.conftest import run_command
from tests.inference.test_styles import STYLED, write_bundle

ROOT = Path(__file__).parents[2]


GOLDEN = ROOT / "tests/inference/golden/format_1"


def test_its_packages_are_those_of_the_rest_but_for_one():
  def pinned(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(x.split("==") for x in lines if "==" in x)

  rest, app = pinned("requirements.txt"), pinned("requirements-app.txt")
  differ = {k for k, version in rest.items() if app.get(k) != version}
  assert differ == {"pillow"}


def test_styles():
  styles = parse_styles(["ink=/a", "oil on canvas=/b=c"])
  assert styles == {"ink": "/a", "oil on canvas": "/b=c"}
  for wrong in ("ink", "=path", "ink=", " =path"):
    with pytest.raises(UserError, match=f"style={wrong} is not NAME=PATH"):
      parse_styles([wrong])
  with pytest.raises(UserError, match="ink is there twice"):
    parse_styles(["ink=/a", "ink=/b"])


def test_limits_are_above_zero():
  for name in vars(Limits()):
    with pytest.raises(UserError, match=f"--{name}=0 must be above 0"):
      Limits(**{name: 0})
  with pytest.raises(UserError, match="queue=0 must be at least 1"):
    Options(queue=0)


def test_what_cannot_work_is_said_before_anything_is_loaded(tmp_path):
  there = ModelSource(models=(str(tmp_path),))
  where = {"host": "127.0.0.1", "port": 0}
  with pytest.raises(UserError, match="model is missing; give a bundle"):
    start(ModelSource(models=()), Options(), **where)
  options = Options(styles={"ink": "/no/such/place"})
  with pytest.raises(UserError, match="style=/no/such/place does not exist"):
    start(there, options, **where)
  for root_path in ("lumiere", "/lumiere/"):
    with pytest.raises(UserError, match="must begin with / and not end with"):
      start(there, Options(), **where, root_path=root_path)


def test_bundles_are_secret_wherever_their_names_lead(tmp_path, monkeypatch):
  shipped = tmp_path / "lumiere_jax/assets/demo"
  workdir = tmp_path / "out"
  for folder in (shipped, workdir / "bundle"):
    shutil.copytree(GOLDEN, folder)
  monkeypatch.setattr(bundle.resources, "files", lambda name: tmp_path / name)
  served = mock.Mock()
  monkeypatch.setattr(starting, "_server", lambda: served)
  source = ModelSource(models=("demo", str(workdir)), adapters=("base=/a",))
  styles = {"ink": f"base={GOLDEN}"}
  start(source, Options(styles=styles), host="", port=0)
  _, options = served.call_args.args
  secret = {str(shipped), str(workdir), "/a", str(GOLDEN)}
  assert secret <= {*options.secret}


def test_a_style_that_does_not_fit_is_told_at_the_start(tmp_path, monkeypatch):
  monkeypatch.setattr(
    starting, "_server", lambda: lambda load, *_, **__: load()
  )
  source = ModelSource(models=(str(GOLDEN),))
  start(source, Options(styles={"own": f"base={GOLDEN}"}), host="", port=0)
  with pytest.raises(UserError, match="holds base, ssr; say whose style"):
    start(source, Options(styles={"own": str(GOLDEN)}), host="", port=0)
  other = str(write_bundle(tmp_path, t2i=STYLED))
  with pytest.raises(UserError, match=f"style={other} was made with"):
    start(source, Options(styles={"other": other}), host="", port=0)


def test_without_its_packages_the_page_names_the_file_of_them(monkeypatch):
  for name in list(sys.modules):
    if name.startswith("lumiere_jax.contrib.web.server"):
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "fastapi", None)
  with pytest.raises(UserError, match="pip install -r requirements-app"):
    start(ModelSource(models=("x",)), Options(), host="127.0.0.1", port=0)


def test_mistakes_in_flags_end_in_one_line():
  for flag, word in (("--port=70000", "port"), ("--max_mb=0", "max_mb=0")):
    result = run_command("app", "--model=x", flag)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert word in result.stderr.splitlines()[-1]


def test_examples_are_what_a_model_was_told_in_training(tmp_path):
  drawn = draw(tmp_path, 16, (24, 32))
  for prompt in [*PROMPTS, *(example.prompt for example in drawn)]:
    sprites, _ = parse_caption(prompt)
    for said in sprites:
      assert said.size
      assert said.speed in MOTIONS[said.motion].rates
      assert not is_held_out((said.colour, said.shape, said.motion))
  for example in drawn:
    assert probe(example.video).num_frames == 16
    small = probe(example.small_video)
    assert (small.num_frames, small.width, small.height) == (16, 32, 24)
    height, width, _ = read_image(example.image).shape
    x0, y0, x1, y1 = map(int, example.box.split(","))
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert (x1 - x0) * (y1 - y0) < 0.9 * width * height  # some is kept


def test_notices_go_to_who_listens(capsys):
  heard = []
  with listening(heard.append):
    notice("one\n line")
  notice("another")
  assert heard == ["one line"]
  assert capsys.readouterr().err == "notice: another\n"
