"""The examples of the gallery are valid commands; their inputs are drawn."""

from pathlib import Path

import pytest

from launch.gallery import gallery_page
from launch.showcase import FRAMES, SHOWS, SIDE, draw_inputs, run
from lumiere_jax.inference.tasks import DEFAULTS, TASKS, make_task
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import probe
from lumiere_jax.toy_scenes.captions import parse_caption


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp("inputs")
  draw_inputs(folder)
  return folder


@pytest.mark.parametrize("show", SHOWS, ids=lambda show: show.name)
def test_each_can_be_asked_for(show, drawn):
  inputs = {}
  for argument in show.command("demo", drawn, drawn):
    name, _, value = argument.removeprefix("--").partition("=")
    if name in DEFAULTS:
      inputs[name] = type(DEFAULTS[name])(value)
  task = make_task(show.task, inputs)
  task.check()
  if show.prompt:
    parse_caption(show.prompt)
  for name in ("image", "mask"):
    path = getattr(task, name, "")
    assert not path or read_image(path).shape == (SIDE, SIDE, 3)
  video = getattr(task, "video", "")
  assert not video or probe(video).num_frames == FRAMES


def test_every_task_is_shown():
  assert TASKS.keys() == {show.task for show in SHOWS}
  assert len({show.name for show in SHOWS}) == len(SHOWS)


def test_the_page_shows_each_with_its_command():
  out = Path("docs/gallery")
  text = gallery_page("demo", out / "inputs", out, Path("docs"))
  for show in SHOWS:
    assert f"](gallery/{show.name}." in text
    assert f"--task={show.task}" in text


def test_the_log_of_a_failure_is_printed(tmp_path, capsys):
  log = tmp_path / "sample.log"
  with pytest.raises(SystemExit) as ended:
    run(["lumiere_jax.sample", "--task=nothing"], log=log)
  assert ended.value.code not in (0, None)
  shown = capsys.readouterr()
  assert shown.out == "\n$ python -m lumiere_jax.sample --task=nothing\n"
  assert "--model is missing" in shown.err
  assert shown.err.strip() == log.read_text().strip()
