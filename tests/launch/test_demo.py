"""The page of `make demo`, with commands that are recorded but not run."""

import html

import pytest

from launch import demo
from launch.showcase import SHOWS, command_line
from lumiere_jax.errors import UserError
from lumiere_jax.stages.config import PARENTS
from lumiere_jax.training.run_report import RunSummary


@pytest.mark.parametrize(
  "held_out, about",
  [([], "those of the first and last batch"), ([(4, 0.25)], "fixed noise")],
)
def test_the_page_shows_every_task_and_every_stage(
  tmp_path, monkeypatch, held_out, about
):
  ran = []

  def run(command, log=None, **environment):
    assert environment["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))
    ran.append(command)
    return command_line(command)

  def read(workdir, **what):
    assert any(f"--workdir={workdir}" in command for command in ran)
    return RunSummary(
      **what,
      parameters={"trainable": 1, "frozen": 2},
      losses=[(1, 0.5)],
      held_out=held_out,
      frame_by_frame=None,
    )

  monkeypatch.setattr(demo, "run", run)
  monkeypatch.setattr(RunSummary, "read", read)
  demo.take_tour(tmp_path, "demo")
  assert len(ran) == len(SHOWS) + len(PARENTS)
  (tmp_path / "mine").touch()
  demo.take_tour(tmp_path, "demo")  # replaces its own results
  (tmp_path / ".lumiere_jax_demo").unlink()
  with pytest.raises(UserError, match="holds files of other programs"):
    demo.take_tour(tmp_path, "demo")
  page = html.unescape((tmp_path / "index.html").read_text())
  for command in ran:
    assert command_line(command) in page
  assert about in page
  for show in SHOWS:
    assert f'src="{show.name}{show.ending}"' in page
  for stage in PARENTS:
    assert f"<td>{stage}</td>" in page
