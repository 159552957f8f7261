"""The examples of the gallery are valid commands; their inputs are drawn."""

from pathlib import Path
import typing

import pytest

from launch.showcase import FRAMES, SHOWS, SIDE, draw_inputs, gallery_page, run
from lumiere_jax.inference.tasks import TASKS, Inputs
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import probe
from lumiere_jax.toy_scenes.captions import parse_caption


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp("inputs")
  draw_inputs(folder)
  return folder


def inputs_of(show, drawn) -> Inputs:
  kinds = typing.get_type_hints(Inputs)
  flags = {}
  for argument in show.command("demo", drawn, drawn):
    name, _, value = argument.removeprefix("--").partition("=")
    if name in kinds:
      flags[name] = kinds[name](value)
  return Inputs(**flags)


@pytest.mark.parametrize("show", SHOWS, ids=lambda show: show.name)
def test_each_is_valid(show, drawn):
  inputs = inputs_of(show, drawn)
  TASKS[show.task].check(show.task, inputs)
  if show.prompt:
    parse_caption(show.prompt)
  for path in (inputs.image, inputs.mask):
    assert not path or read_image(path).shape == (SIDE, SIDE, 3)
  assert not inputs.video or probe(inputs.video).num_frames == FRAMES


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
