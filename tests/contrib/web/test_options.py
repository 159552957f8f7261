"""Options, and the checks before anything is loaded; without Gradio."""

from pathlib import Path
import shutil
import sys
from unittest import mock

import pytest

from lumiere_jax.contrib.web import server
from lumiere_jax.contrib.web.examples import PROMPTS, draw_examples
from lumiere_jax.contrib.web.options import (
  Address,
  Limits,
  Options,
  parse_styles,
)
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.batch import ModelSource
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import probe
from lumiere_jax.storage import bundle
from lumiere_jax.toy_scenes.captions import is_held_out, parse_caption
from lumiere_jax.toy_scenes.scenes import MOTIONS
from tests.conftest import run_command
from tests.inference.test_styles import STYLED, write_bundle

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/inference/golden/format_1"


def test_requirements_pin_the_same_versions():
  def pinned(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(x.split("==") for x in lines if "==" in x)

  base, app = pinned("requirements.txt"), pinned("requirements-app.txt")
  differ = {k for k, version in base.items() if app.get(k) != version}
  assert differ == {"pillow"}


def test_styles():
  styles = parse_styles(["ink=/a", "oil on canvas=/b=c"])
  assert styles == {"ink": "/a", "oil on canvas": "/b=c"}


@pytest.mark.parametrize(
  ("flags", "problem"),
  [
    *(([text], "is not NAME=PATH") for text in ("ink", "=a", "ink=", " =a")),
    (["ink=/a", "ink=/b"], "uses the name ink"),
  ],
)
def test_unusable_styles(flags, problem):
  with pytest.raises(UserError, match=problem) as error:
    parse_styles(flags)
  assert error.value.field == option("style", flags[-1])


@pytest.mark.parametrize(
  ("cls", "name", "value", "problem"),
  [
    *((Limits, name, 0, "must be above 0") for name in vars(Limits())),
    (Options, "queue", 0, "must be at least 1"),
    (Options, "jobs", 0, "must be at least 1"),
    (Address, "root_path", "lumiere", "must begin with /"),
    (Address, "root_path", "/lumiere/", "must begin with /"),
  ],
)
def test_option_ranges(cls, name, value, problem):
  with pytest.raises(UserError, match=problem) as error:
    cls(**{name: value})
  assert error.value.field == option(name, value)


@pytest.fixture
def serve(monkeypatch):
  """Replaces the server by a mock; Gradio is not imported."""
  monkeypatch.setattr(server, "_import_page", lambda: None)
  serve = mock.Mock()
  monkeypatch.setattr(server, "serve", serve)
  return serve


def test_checks_before_loading(tmp_path, serve):
  with pytest.raises(UserError, match="model is missing; give a bundle"):
    server.start(ModelSource(models=()), Options(), Address())
  options = Options(styles={"ink": "/no/such/place"})
  with pytest.raises(UserError, match="style=/no/such/place does not exist"):
    server.start(ModelSource(models=(str(tmp_path),)), options, Address())
  serve.assert_not_called()


def test_bundles_are_secret_wherever_their_names_lead(
  tmp_path, monkeypatch, serve
):
  shipped = tmp_path / "lumiere_jax/assets/demo"
  workdir = tmp_path / "out"
  for folder in (shipped, workdir / "bundle"):
    shutil.copytree(GOLDEN, folder)
  monkeypatch.setattr(bundle.resources, "files", lambda name: tmp_path / name)
  source = ModelSource(models=("demo", str(workdir)), adapters=("base=/a",))
  server.start(source, Options(styles={"ink": f"base={GOLDEN}"}), Address())
  _, options, _ = serve.call_args.args
  secret = {str(shipped), str(workdir), "/a", str(GOLDEN)}
  assert secret <= {*options.secret}


def test_styles_are_tried_when_the_pipeline_is_loaded(tmp_path, serve):
  serve.side_effect = lambda load, *_: load()
  start = lambda style: server.start(
    ModelSource(models=(str(GOLDEN),)),
    Options(styles={"own": style}),
    Address(),
  )
  start(f"base={GOLDEN}")
  with pytest.raises(UserError, match="holds base, ssr"):
    start(str(GOLDEN))
  other = str(write_bundle(tmp_path, t2i=STYLED))
  with pytest.raises(UserError, match=f"style={other} was made with"):
    start(other)


def test_missing_packages(monkeypatch):
  monkeypatch.delitem(sys.modules, "lumiere_jax.contrib.web.page", False)
  monkeypatch.setitem(sys.modules, "fastapi", None)
  with pytest.raises(UserError, match=r"fastapi.*pip install -r requirem"):
    server.start(ModelSource(models=("x",)), Options(), Address())


@pytest.mark.parametrize(
  ("flag", "word"), [("--port=70000", "port"), ("--max_mb=0", "max_mb=0")]
)
def test_wrong_flags_are_reported_in_one_line(flag, word):
  result = run_command("app", "--model=x", flag)
  assert result.returncode == 2
  assert "Traceback" not in result.stderr
  assert word in result.stderr.splitlines()[-1]


def test_examples_are_in_the_training_distribution(tmp_path):
  examples = draw_examples(tmp_path, 16, (24, 32))
  for prompt in [*PROMPTS, *(example.prompt for example in examples)]:
    for sprite in parse_caption(prompt)[0]:
      assert sprite.size
      assert sprite.speed in MOTIONS[sprite.motion].rates
      assert not is_held_out((sprite.colour, sprite.shape, sprite.motion))
  for example in examples:
    assert probe(example.video).num_frames == 16
    small = probe(example.small_video)
    assert (small.num_frames, small.width, small.height) == (16, 32, 24)
    height, width, _ = read_image(example.image).shape
    x0, y0, x1, y1 = map(int, example.box.split(","))
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert (x1 - x0) * (y1 - y0) < 0.9 * width * height  # some is kept
