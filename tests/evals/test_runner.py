import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest

from configs import ssr
from lumiere_jax.errors import UserError
from lumiere_jax.evals import runner
from lumiere_jax.evals.runner import EvalRequest, evaluate, score
from lumiere_jax.evals.tasks import TASKS, choose
from lumiere_jax.inference import cascade
from lumiere_jax.inference.settings import Settings
from lumiere_jax.media.images import read_image
from tests.conftest import run_command
from tests.evals.fakes import Right, Whole, WrongColour
from tests.inference.fakes import replace_networks, tiny_pipeline
from tests.test_cli import refused

STAGES = {"base": {"step": 7, "trained_on": "procedural"}}


@pytest.fixture
def request_(tmp_path):
  return EvalRequest(
    metric="alignment",
    models=("tests/inference/golden/format_1",),
    out=str(tmp_path / "scores.json"),
    markdown=str(tmp_path / "scores.md"),
    count=2,
    seed=5,
    two_objects=0.0,
    tasks=("text_to_video", "image_to_video"),
    settings=Settings(steps=3),
  )


def test_scores_are_written_as_json_and_markdown(request_, capsys):
  done = score(WrongColour(frames=16), request_, STAGES)
  content = json.loads(Path(request_.out).read_text())
  assert content["model"] == ["format_1"]  # not its local path
  assert content["stages"] == STAGES
  assert content["settings"]["steps"] == 3
  assert content["sampling"]["base"]["steps"] == 3
  assert (content["count"], content["seed"]) == (2, 5)
  assert list(content["tasks"]) == ["text_to_video", "image_to_video"]
  parts = [task["seconds"] for task in content["tasks"].values()]
  assert content["seconds"] == pytest.approx(sum(parts), abs=0.11)
  scores = content["tasks"]["text_to_video"]["scores"]
  assert list(scores) == [
    "unseen",
    "unseen, real renders",
    "held_out",
    "held_out, real renders",
  ]
  colour = scores["unseen"]["colour"]
  assert (colour["kind"], colour["value"], colour["count"]) == ("share", 0, 2)
  assert colour["low"] == 0
  assert colour["high"] == pytest.approx(0.6576, abs=1e-4)
  own = done["text_to_video"].table["unseen"]["colour"]
  assert colour == dataclasses.asdict(own)
  text = Path(request_.markdown).read_text()
  assert text == capsys.readouterr().out
  assert "| unseen | 0% (0 to 66; n=2) | 100% (34 to 100; n=2) |" in text
  assert "| held out, real renders | 100%" in text
  assert "first frame PSNR (dB) |" in text
  assert "58.92 (58.92 to 58.92; n=2)" in text
  assert "base at step 7" in text
  assert "ddim in 3 steps" in text
  tables = [part for part in text.split("\n\n") if part.startswith("|")]
  assert len(tables) == 2
  for table in tables:
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_videos_and_verdicts_are_kept(request_, tmp_path, capsys):
  folder = tmp_path / "kept"
  asked = dataclasses.replace(request_, keep=str(folder))
  score(WrongColour(frames=16), asked, STAGES)
  assert "100%" in capsys.readouterr().err  # of the progress bar
  lines = (folder / "verdicts.jsonl").read_text().splitlines()
  verdicts = [json.loads(line) for line in lines]
  assert len(verdicts) == 6  # two rows of text_to_video
  first = verdicts[0]
  expected = {"task": "text_to_video", "number": 1, "row": "unseen", "seed": 5}
  assert expected.items() <= first.items()
  assert first["right"]["colour"] is False
  for number in range(1, 5):
    video = folder / f"text_to_video/{number:04d}.mp4"
    with av.open(str(video)) as container:
      frames = list(container.decode(video=0))
    assert (len(frames), frames[0].height, frames[0].width) == (16, 32, 32)
    sheet = video.with_name(f"{number:04d}-not-colour.png")
    assert read_image(sheet).shape[1] > 100  # several frames
  # Beside its source; nothing failed, so there is no contact sheet.
  with av.open(str(folder / "image_to_video/0001.mp4")) as container:
    frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
  assert frame.shape == (32, 66, 3)
  away = np.abs(frame[:, :32].astype(int) - frame[:, 34:]).mean()
  assert away < 8
  assert frame[:, 32:34].min() > 200
  right = [v["right"] for v in verdicts if v["task"] == "image_to_video"]
  wrong = [r for r in right if not all(r.values())]
  assert len(list((folder / "image_to_video").glob("*.png"))) == len(wrong)
  with pytest.raises(UserError, match="not empty"):
    score(Right(), asked, STAGES)


def test_ctrl_c_keeps_the_finished_tasks(request_, capsys):
  class Stopped(Right):
    def image_to_video(self, *_, **__):
      raise KeyboardInterrupt

  with pytest.raises(SystemExit) as stopped:
    score(Stopped(frames=16), request_, STAGES)
  assert stopped.value.code == 130
  assert "1 of 2 tasks are scored, and written to" in capsys.readouterr().err
  tasks = json.loads(Path(request_.out).read_text())["tasks"]
  assert list(tasks) == ["text_to_video"]


def test_a_model_is_scored_on_what_it_can_do(capsys):
  names = lambda fake, wanted=(), style="": list(
    choose(fake, Settings(), wanted, style)
  )
  fake = Right()
  assert names(fake, style="pastel") == list(TASKS)
  with pytest.raises(UserError, match="needs a style of the procedural"):
    names(fake, ("stylize",))
  assert names(fake, ("ssr", "rhythm")) == ["ssr", "rhythm"]
  fake.takes_pixels = False
  del fake.stages["ssr"]
  assert names(fake) == ["text_to_video", "rhythm", "video_to_video"]
  notices = capsys.readouterr().err
  assert "inpaint is skipped: it needs a pixel-conditioned base" in notices
  assert "windows is skipped: it needs a super-resolution stage" in notices
  with pytest.raises(UserError, match="tasks=inpaint needs a pixel-cond"):
    names(fake, ("text_to_video", "inpaint"))
  assert names(Right(frames=1)) == ["text_to_video"]
  with pytest.raises(UserError, match="needs super-resolution in several"):
    names(Whole(), ("windows",))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"models": ()}, ["model is missing"]),
    ({"models": ("/no/such/place",)}, ["/no/such/place", "does not exist"]),
    ({"out": ""}, ["out is missing", ".json"]),
    ({"out": "scores.txt"}, ["out=scores.txt", ".json"]),
    ({"markdown": "tests"}, ["markdown=tests is a folder"]),
    ({"markdown": "README.md"}, ["README.md: is there already", "overwrite"]),
    ({"keep": "tests"}, ["keep=tests is not empty"]),
    ({"keep": "README.md"}, ["keep=README.md"]),
    ({"keep": "README.md/x"}, ["README.md/x", "Not a directory"]),
    ({"out": "/proc/x.json"}, ["/proc/x.json: cannot be written"]),
    ({"markdown": "README.md/x.md"}, ["README.md/x.md", "Not a directory"]),
    ({"markdown": "x.json", "out": "./x.json"}, ["markdown=x.json is out too"]),
    ({"seed": 2**32 - 1}, ["seed=4294967295 and the 1 seeds after it"]),
    ({"tasks": ("text_to_vidio",)}, ["tasks=", '"text_to_video"']),
    ({"count": 1}, ["count=1 must be at least 2"]),
    ({"seed": -1}, ["seed=-1"]),
    ({"batch_size": 0}, ["batch_size=0"]),
    ({"two_objects": 1.5}, ["two_objects=1.5"]),
    ({"strength": 0.0}, ["strength=0"]),
    ({"tasks": ("inpaint",)}, ["tasks=inpaint", "'conditional'"]),
    ({"tasks": ("windows",)}, ["tasks=windows", "num_frames"]),
  ],
  ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_mistakes_are_found_before_sampling(
  changes, words, request_, monkeypatch
):
  def sampled(*_, **__):
    raise AssertionError("sampled")

  monkeypatch.setattr(cascade, "sample_stage", sampled)
  with pytest.raises(UserError) as error:
    evaluate(dataclasses.replace(request_, **changes))
  for word in words:
    assert word in str(error.value)
  assert "\n" not in str(error.value)


def test_stages_are_described_by_the_bundle(request_, monkeypatch):
  calls = []
  monkeypatch.setattr(runner, "score", lambda *args: calls.append(args))
  evaluate(request_)
  [(pipeline, _, stages)] = calls
  assert stages["base"]["step"] == 4
  assert set(stages) == {"base", "ssr"}
  assert pipeline.resolution() == (16, 16)


def test_existing_files_are_replaced_on_request(request_, monkeypatch):
  monkeypatch.setattr(runner, "score", lambda *_: None)
  Path(request_.out).touch()
  with pytest.raises(UserError, match="is there already"):
    evaluate(request_)
  evaluate(dataclasses.replace(request_, overwrite=True))


def test_a_real_pipeline_can_be_scored(request_, monkeypatch):
  """All but the networks, replaced by a grey that grows brighter."""
  replace_networks(monkeypatch)
  # Two windows of super-resolution.
  frames = 2 * ssr.TINY.data.num_frames
  own = dataclasses.replace(
    request_,
    tasks=(),
    batch_size=2,
    settings=Settings(steps=2, num_frames=frames),
  )
  done = score(tiny_pipeline(), own, {})
  assert list(done) == [t for t in TASKS if t != "stylize"]
  text = Path(own.out).read_text()
  tasks = json.loads(text, parse_constant=pytest.fail)["tasks"]  # all finite
  for task in tasks.values():
    assert task["scores"]
    for row in task["scores"].values():
      for score_ in row.values():
        assert score_["low"] <= score_["value"] <= score_["high"]
  value = lambda task, row, name: done[task].table[row][name].value
  assert value("text_to_video", "unseen", "all") == 0
  assert value("image_to_video", "unseen", "faithful") == 0
  assert value("cinemagraph", "unseen", "outside_still") == 1
  assert value("cinemagraph", "unseen", "inside_moves") == 1
  assert value("ssr", "held_out", "gain_db") < 0
  for row in ("overlap 2", "overlap 0"):
    # A steady ramp has equal steps, up to rounding to bytes.
    assert value("windows", row, "border_ratio") == pytest.approx(1, abs=0.2)


def test_the_command_reports_mistakes_in_one_line(tmp_path):
  out = f"--out={tmp_path / 'scores.json'}"
  line = refused(run_command("evaluate", "--metric=aligment", out))
  assert "--metric='aligment' is not one of" in line
  assert 'did you mean "alignment"' in line
  assert not list(tmp_path.iterdir())
