"""Batch sampling: checks, file names, writing; a stand-in makes the videos."""

import contextlib
import errno

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.inference import batch
from lumiere_jax.inference.batch import Output, SampleRequest, run_batch
from lumiere_jax.inference.cascade import Cascade, Progress
from lumiere_jax.inference.prompt_files import PromptLine, read_prompt_file
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.tasks import TASKS
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.video_reader import probe
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.storage import atomic

PROMPT = "a red circle"
FRAMES, SIDE = 8, 16


class StandIn:
  """Remembers what it is asked for; videos are as bright as their seeds."""

  fps = 16.0

  def __init__(self):
    self.asked = []

  def frames(self, how):
    return how["settings"].num_frames or FRAMES

  def resolution(self, settings=None):
    return SIDE, SIDE

  def plan(self, settings):
    if settings.num_frames % 2:
      raise UserError("num_frames", "does not fit")

  def check_negative_prompt(self, negative_prompt, settings):
    Cascade.check_negative_prompt(self, negative_prompt, settings, ["base"])

  def guides(self, name, settings):
    return settings.guidance_scale != 1

  def __getattr__(self, name):
    if name not in TASKS:
      raise AttributeError(name)

    def make(prompt, **how):
      self.asked.append((name, prompt, how))
      if on_progress := how.get("on_progress"):
        canvas = np.zeros((1, FRAMES, SIDE, SIDE, 3))
        on_progress(Progress(stage="base", done=1, total=2, canvas=canvas))
      shape = (len(how["seed"]), FRAMES, SIDE, SIDE, 3)
      seeds = np.asarray(how["seed"]).astype(np.uint8).reshape(-1, 1, 1, 1, 1)
      made = np.broadcast_to(seeds, shape)
      return made[:, 0] if name == "text_to_image" else made

    return make


@pytest.fixture
def made(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  stand_in = StandIn()
  monkeypatch.setattr(
    batch.Pipeline, "from_pretrained", lambda *args, **rest: stand_in
  )
  return stand_in


def ask(task="text_to_video", lines=(PROMPT,), **changes):
  parsed = [
    PromptLine(prompt=line) if isinstance(line, str) else line for line in lines
  ]
  run_batch(
    SampleRequest(models=("m",), task=task, lines=tuple(parsed), **changes)
  )


def test_a_name_is_made_and_nothing_is_written_over(made, tmp_path, capsys):
  ask(seed=7)
  ask(seed=7)
  name = "text_to_video-a-red-circle-seed7"
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {f"{name}.mp4", f"{name}-2.mp4"}
  assert "8 frames of 16x16 at 16 frames a second" in capsys.readouterr().out
  ask(output=Output(out="x.mp4"))
  with pytest.raises(UserError, match=r"x\.mp4: is there already; give over"):
    ask(output=Output(out="x.mp4"))
  ask(output=Output(out="x.mp4", overwrite=True), seed=200)
  assert probe("x.mp4").num_frames == FRAMES
  assert len(made.asked) == 4


def test_several_samples_have_seeds_and_names_of_their_own(made, tmp_path):
  ask(num_samples=5, batch_size=2, seed=3, output=Output(out="some.npy"))
  assert [how["seed"] for _, _, how in made.asked] == [(3, 4), (5, 6), (7,)]
  for number, seed in enumerate(range(3, 8), 1):
    assert np.load(tmp_path / f"some-{number}.npy").max() == seed


def test_a_file_of_prompts_makes_a_folder_of_videos(made, tmp_path):
  file = tmp_path / "prompts.jsonl"
  file.write_text(
    '{"prompt": "one", "seed": 9, "steps": 4, "negative_prompt": "grey"}\n'
    '{"prompt": "two", "guidance_scale": 2.5}\n'
  )
  lines = read_prompt_file(file)
  out = Output(out="videos", format="npy")
  ask(lines=lines, output=out, seed=1, negative_prompt="blur")
  names = {p.name for p in (tmp_path / "videos").iterdir()}
  assert names == {"0001-one-seed9.npy", "0002-two-seed1.npy"}
  (_, first, how), (_, second, other) = made.asked
  assert (first, how["seed"], how["negative_prompt"]) == ("one", (9,), "grey")
  assert how["settings"] == Settings(steps=4)
  assert (second, other["seed"]) == ("two", (1,))
  assert other["negative_prompt"] == "blur"
  assert other["settings"] == Settings(guidance_scale=2.5)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"stepps": "4"}, r"f, line 2: unknown option 'stepps' \(did you mean"),
    ({"steps": "four"}, "f, line 2: steps='four' is not of type int"),
    ({"steps": "0"}, "steps=0 must be at least 1"),
    ({"size": "1,2"}, "f, line 2: size cannot differ by line"),
    ({"uncomposited": "perhaps"}, "is not of type bool"),
  ],
)
def test_options_of_a_line_that_do_not_do(made, options, words):
  line = PromptLine(prompt="x", options=options, where="f, line 2:")
  with pytest.raises(UserError, match=words):
    ask(lines=[line])
  assert not made.asked


def test_an_interruption_keeps_what_is_made(made, tmp_path, capsys):
  class Stopped(StandIn):
    def __getattr__(self, name):
      if len(self.asked) == 2:
        raise KeyboardInterrupt
      return super().__getattr__(name)

  made.__class__ = Stopped
  with pytest.raises(SystemExit) as stopped:
    ask(lines=["a", "b", "c"], output=Output(out="kept"))
  assert stopped.value.code == 130
  assert len([*(tmp_path / "kept").iterdir()]) == 2
  assert "stopped: 2 of 3 are made, and kept" in capsys.readouterr().err


def test_previews_and_sheets(made, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(
    batch, "write_image", lambda path, image: seen.append((str(path), image))
  )
  ask(
    output=Output(out="x.npy", contact_sheet="sheet.png", preview_every=3),
    settings=Settings(steps=6),
  )
  assert [name for name, _ in seen] == ["x-preview.png", "sheet.png"]
  assert made.asked[0][2]["settings"].chunk == 3
  assert (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt])
def test_previews_leave_other_files_alone(made, tmp_path, monkeypatch, stop):
  mine = tmp_path / "x-preview.png"
  mine.write_text("mine")
  if stop:
    monkeypatch.setattr(batch, "_write", lambda *_: (_ for _ in ()).throw(stop))
  output = Output(out="x.npy", preview_every=1)
  with pytest.raises(SystemExit) if stop else contextlib.nullcontext():
    ask(output=output)
  ask(output=Output(out="y.npy")) if not stop else None
  names = {"x-preview.png"} | ({"x.npy", "y.npy"} if not stop else set())
  assert {p.name for p in tmp_path.iterdir()} == names
  assert mine.read_text() == "mine"


def test_files_that_appear_meanwhile_are_kept(made, tmp_path, monkeypatch):
  load = batch.Pipeline.from_pretrained

  def meanwhile(*args, **rest):
    for name in ("x.npy", "s.png"):
      (tmp_path / name).write_text("another's")
    return load(*args, **rest)

  monkeypatch.setattr(batch.Pipeline, "from_pretrained", meanwhile)
  ask(output=Output(out="x.npy", contact_sheet="s.png"))
  for name in ("x.npy", "s.png"):
    assert (tmp_path / name).read_text() == "another's"
  assert np.load("x-2.npy").shape[0] == FRAMES
  assert (tmp_path / "s-2.png").exists()


def test_prompts_of_one_slug_have_names_of_their_own(made, tmp_path):
  ask(lines=["犬が走る", "猫が走る", "a dog", "A dog!"], output=Output())
  assert len([*tmp_path.iterdir()]) == len(made.asked) == 4


@pytest.mark.parametrize(
  ("task", "options", "words"),
  [
    ("text_to_video", {"out": "file/x.mp4"}, "written .Not a directory"),
    ("text_to_video", {"out": "file/new/x.gif"}, "written .Not a directory"),
    ("text_to_video", {"out": "link/x.mp4"}, "written .No such file"),
    ("text_to_image", {"out": "/proc/x.png"}, "/proc/x.png: cannot be written"),
    ("text_to_video", {"out": "/proc/new/x/"}, "/proc/new/x/?: cannot be wri"),
    ("text_to_video", {"out": "x" * 252 + ".mp4"}, "File name too long"),
    ("text_to_video", {"contact_sheet": "file/s.png"}, "file/s.png: cannot be"),
    ("text_to_video", {"contact_sheet": "d.png"}, "d.png: is a folder"),
    ("text_to_image", {"contact_sheet": "s.png"}, "contact_sheet=s.png shows"),
  ],
)
def test_results_that_cannot_be_written(made, tmp_path, task, options, words):
  (tmp_path / "file").touch()
  (tmp_path / "d.png").mkdir()
  (tmp_path / "link").symlink_to("nowhere")
  before = {*tmp_path.iterdir()}
  with pytest.raises(UserError, match=words):
    ask(task, output=Output(**options))
  assert not made.asked
  assert {*tmp_path.iterdir()} == before


def test_long_names_are_written(made, tmp_path):
  name = "é" * 124 + ".npy"  # 252 bytes
  ask(output=Output(out=name))
  assert np.load(tmp_path / name).shape[0] == FRAMES


def test_a_full_disk_is_noticed_first(made, monkeypatch):
  def full(*args, **rest):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(atomic.tempfile, "TemporaryFile", full)
  with pytest.raises(UserError, match=r"x\.mp4: cannot be .*No space"):
    ask(output=Output(out="x.mp4"))
  assert not made.asked


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"seed": 2**32 - 1, "num_samples": 2}, "and the 1 after it are not all"),
    ({"seed": 2**32}, r"seed=4294967296 is not in \[0, 2\^32\)"),
    ({"seed": -1, "num_samples": 3}, "seed=-1 and the 2 after it"),
    ({"output": Output(contact_sheet="s.png"), "num_samples": 2}, "2 videos"),
    (
      {"lines": ("a", "b"), "output": Output(contact_sheet="s.png")},
      "2 videos",
    ),
    (
      {
        "lines": (
          PROMPT,
          PromptLine(prompt="b", options={"num_frames": "7"}, where="f:"),
        )
      },
      "num_frames does not fit",
    ),
    (
      {"negative_prompt": "a", "settings": Settings(guidance_scale=1)},
      "negative_prompt changes nothing at guidance_scale=1; raise guidance",
    ),
  ],
)
def test_what_cannot_work_is_told_before_sampling(made, changes, words):
  with pytest.raises(UserError, match=words):
    ask(**changes)
  assert not made.asked


def test_the_last_seed(made):
  ask(seed=2**32 - 2, num_samples=2, output=Output(out="x.npy"))
  assert [how["seed"] for *_, how in made.asked] == [(2**32 - 2,), (2**32 - 1,)]


def test_inputs_of_every_line_are_read_first(made, files):
  lines = [
    PromptLine(prompt="a", options={"image": "image.png"}),
    PromptLine(prompt="b", options={"image": "gone.png"}, where="f, line 2:"),
  ]
  with pytest.raises(UserError, match=r"gone\.png: missing"):
    ask("image_to_video", lines)
  (files / "cut.mp4").write_bytes((files / "video.mp4").read_bytes()[:100])
  for inputs in ({"video": "cut.mp4"}, {"video": "video.mp4", "box": "1,2"}):
    with pytest.raises(UserError):
      ask("inpaint", inputs={"box": "0,0,8,8"} | inputs)
  with pytest.raises(UserError, match="style=none does not exist"):
    ask("stylize", styles=("none",))
  assert not made.asked


@pytest.fixture
def files(tmp_path, rng):
  video = rng.integers(0, 256, (12, 24, 32, 3), np.uint8)
  write_video(tmp_path / "video.npy", video, 16)
  write_video(tmp_path / "video.mp4", video, 16)
  write_image(tmp_path / "image.png", video[0])
  mask = np.zeros((24, 32, 3), np.uint8)
  mask[:, :16] = 255
  write_image(tmp_path / "mask.png", mask)
  return tmp_path


def test_tasks_read_their_files(made, files):
  video = {"video": "video.mp4"}
  inputs = {"image": "image.png", "last_image": "image.png"}
  ask("image_to_video", inputs=inputs)
  ask("inpaint", inputs=video | {"mask": "mask.png", "feather": 2})
  ask("cinemagraph", inputs={"image": "image.png", "box": "8,0,16,24"})
  ask("outpaint", inputs=video | {"expand": "1,2,3,4"})
  ask("video_to_video", inputs=video | {"strength": 0.4})
  ask("extend", inputs={"video": "video.npy", "times": 3, "context": 4})
  ask("super_resolve", [""], inputs=video)
  ask("panorama", inputs={"width": 64})
  asked = {name: how for name, _, how in made.asked}
  picture = read_image(files / "image.png")
  for name in ("image", "last_image"):
    np.testing.assert_array_equal(asked["image_to_video"][name], picture)
  assert asked["image_to_video"]["composited"]
  how = asked["inpaint"]
  # One frame more, so that truncation is reported.
  assert how["video"].shape == (9, 24, 32, 3)
  # The left half of what is cut at its middle, to half a pixel.
  assert how["mask"].shape == (9, 16, 16)
  assert how["mask"][0, 8, :8].all() and not how["mask"][0, 8, 9:].any()
  assert how["feather"] == 2
  mask = asked["cinemagraph"]["mask"]
  assert mask.shape == (16, 16)
  assert 0 < mask.sum() < mask.size
  assert asked["outpaint"]["expand"] == (1, 2, 3, 4)
  assert asked["video_to_video"]["strength"] == 0.4
  assert len(asked["extend"]["video"]) == 12
  assert asked["extend"]["times"] == 3
  assert asked["panorama"]["width"] == 64
  assert made.asked[-2][:2] == ("super_resolve", "")


@pytest.mark.parametrize(
  "task, inputs, words",
  [
    ("inpaint", {"video": "v"}, "mask or box is missing"),
    (
      "inpaint",
      {"video": "v", "mask": "m", "box": "b"},
      "mask or box is given twice",
    ),
    ("extend", {}, "video is missing: task=extend needs one"),
    ("text_to_video", {"mask": "m"}, "mask is not .* takes the prompt alone"),
    ("outpaint", {"video": "v", "expand": "1,2"}, "not four whole numbers"),
    ("image_to_video", {"image": "gone.png"}, "gone.png: missing"),
    ("video_to_video", {"video": "gone.mp4"}, "gone.mp4: missing"),
    ("text_to_vide", {}, r"did you mean \"text_to_video\""),
    ("stylize", {}, "style is missing: task=stylize needs one"),
    ("extend", {"video": "v", "times": 0}, "times=0 must be at least 1"),
    ("outpaint", {"widht": 3}, "widht is not an input"),
  ],
)
def test_inputs_that_do_not_do(made, files, task, inputs, words):
  if "expand" in inputs:
    inputs = inputs | {"video": str(files / "video.mp4")}
  with pytest.raises(UserError, match=words):
    ask(task, inputs=inputs)
  assert not made.asked


def test_a_picture_is_written_as_one(made, tmp_path):
  ask("text_to_image", seed=5)
  path = tmp_path / "text_to_image-a-red-circle-seed5.png"
  assert read_image(path).max() == 5
  with pytest.raises(UserError, match="cannot write images that end"):
    ask("text_to_image", output=Output(out="x.mp4"))
  with pytest.raises(UserError, match="prompt is empty"):
    ask(lines=[" "])
  with pytest.raises(UserError, match="model is missing"):
    run_batch(SampleRequest(models=(), task="text_to_video", lines=()))
  assert len(made.asked) == 1
