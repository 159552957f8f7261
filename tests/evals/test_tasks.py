"""Scores of fake pipelines that are right, or wrong in one way alone."""

import numpy as np
import pytest

from lumiere_jax.evals import scoring
from lumiere_jax.evals.measures import bicubic, shrunk
from lumiere_jax.evals.scenes import TaskRun
from lumiere_jax.evals.scoring import (
  cinemagraph,
  extend,
  image_to_video,
  inpaint,
  rhythm,
  ssr,
  stylize,
  text_to_video,
  video_to_video,
  windows,
)
from lumiere_jax.inference.settings import Settings
from tests.evals.fakes import (
  Leaking,
  Noise,
  Right,
  Standing,
  Whole,
  WrongColour,
  unseen,
)

COUNT, SEED = 6, 3
SETTINGS = Settings(steps=2)
PLAIN = {text_to_video: {"two_objects": 0.0}}
READ = (text_to_video, rhythm, extend, inpaint, video_to_video)


def scored(task, pipeline, *, count=COUNT, results=None, **options):
  """row -> column -> value."""
  run = TaskRun(
    pipeline=pipeline,
    count=count,
    settings=SETTINGS,
    seed=SEED,
    on_result=lambda result: results is None or results.append(result),
  )
  task(run, **PLAIN.get(task, {}) | options)
  return {
    row: {name: score.value for name, score in scores.items()}
    for row, scores in run.table().items()
  }


@pytest.mark.parametrize("task", [*READ, image_to_video, cinemagraph])
def test_right_videos_score_as_real_renders_do(task):
  table = scored(task, Right())
  real = {row: table.pop(row) for row in list(table) if "real" in row}
  assert real.keys() == {f"{row}, real renders" for row in table}
  for row, scores in table.items():
    shares = [name for name in scores if name[-3:] not in ("_db", "_hz", "els")]
    assert [scores[name] for name in shares] == [1] * len(shares), row
  for row, scores in real.items():
    numbers = ("frequency_hz", "flicker_levels")
    shares = [v for name, v in scores.items() if name not in numbers]
    assert min(shares) >= 5 / 6, row
    assert scores.get("flicker_levels", 0) == 0


@pytest.mark.parametrize("task", [*READ, image_to_video, cinemagraph])
def test_noise_scores_nothing(task):
  table = scored(task, Noise())
  for row, scores in table.items():
    if "real" in row:
      continue
    # Noise moves, and by chance a name may be right.
    for name in scores.keys() & {"all", "in_range", "faithful"}:
      assert scores[name] == 0, (row, name)
    if "outside_still" in scores:
      assert scores["outside_still"] == 0
      assert scores["outside_levels"] > 200
    if "first_frame_psnr_db" in scores:
      assert scores["first_frame_psnr_db"] < 12


def test_a_wrong_colour_is_all_that_is_wrong():
  for row, scores in scored(text_to_video, WrongColour()).items():
    made = "real" not in row
    assert scores["colour"] == scores["all"] == (0 if made else 1)
    assert scores["shape"] == scores["motion"] == 1
  made = scored(video_to_video, WrongColour())["unseen"]
  assert made["colour_changed"] == made["all"] == 0
  assert made["motion_kept"] == made["shape_kept"] == 1
  made = scored(inpaint, WrongColour())["unseen"]
  assert (made["colour"], made["shape"], made["all"]) == (0, 1, 0)


def test_still_videos_have_no_motion_and_no_rhythm():
  for row, scores in scored(text_to_video, Standing()).items():
    if "real" not in row:
      assert scores["motion"] <= 1 / 6  # "standing still" may be among them
      assert scores["colour"] == scores["shape"] == 1
  table = scored(rhythm, Standing())
  assert table["blinking"] == table["swinging"] == {"in_range": 0}
  made = scored(image_to_video, Standing())["unseen"]
  assert (made["faithful"], made["displaced"]) == (1, 0)
  made = scored(cinemagraph, Standing())["unseen"]
  assert (made["outside_still"], made["inside_moves"]) == (1, 0)
  made = scored(video_to_video, Standing())["unseen"]
  assert made["motion_kept"] <= 1 / 6
  assert made["colour_changed"] == 1


def test_rhythm_out_of_range_is_wrong():
  class Slow(Right):
    def draw(self, scene):
      return super().draw(scene)[np.arange(self.length) // 2]

  table = scored(rhythm, Slow())
  for motion in ("blinking", "swinging"):
    assert table[motion]["in_range"] == 0
    assert table[motion]["frequency_hz"] == pytest.approx(1.75, abs=0.2)


def test_one_byte_outside_the_region_is_found():
  made = scored(cinemagraph, Leaking())["unseen"]
  assert (made["outside_still"], made["outside_levels"]) == (0, 1)
  assert made["inside_moves"] == 1


def test_faithful_is_26_db():
  class Off(Right):
    """The picture with an error of a known PSNR."""

    levels = 0

    def image_to_video(self, prompt, image, **how):
      low = np.minimum(image, 255 - self.levels) + np.uint8(self.levels)
      off = np.where(image > 255 - self.levels, image - self.levels, low)
      return np.repeat(off[None], self.length, 0).astype(np.uint8)

  for levels, faithful in ((12, 1), (13, 0)):  # 26.5 and 25.9 dB
    Off.levels = levels
    made = scored(image_to_video, Off())["unseen"]
    expected = 20 * np.log10(255 / levels)
    assert made["first_frame_psnr_db"] == pytest.approx(expected)
    assert made["faithful"] == faithful


def test_an_unchanged_object_is_not_inpainted():
  class Lazy(Right):
    def inpaint(self, prompt, video, mask, **how):
      return video

  made = scored(inpaint, Lazy())["unseen"]
  assert made == {"colour": 0, "shape": 0, "all": 0}


def test_a_jump_or_a_change_is_no_continuation():
  class Jumping(Right):
    def extend(self, prompt, video, **how):
      made = super().extend(prompt, video, **how)
      made[len(video) :] = np.roll(made[len(video) :], self.side // 4, axis=2)
      return made

  made = scored(extend, Jumping())["unseen"]
  assert (made["colour"], made["no_jump"]) == (1, 0)

  class Changing(Right):
    def extend(self, prompt, video, **how):
      made = super().extend(prompt, video, **how)
      made[len(video) :] = made[len(video) :, ..., ::-1]
      return made

  made = scored(extend, Changing())["unseen"]
  assert made["all"] <= made["colour"] < 1


def test_super_resolution_of_videos_of_the_base():
  class Spoiling(Right):
    def super_resolve(self, video, **how):
      return 255 - super().super_resolve(video, **how)

  made = scored(ssr, Right(side=128))["of_the_base"]
  assert made["read"] == made["bicubic_read"] >= 5 / 6
  spoilt = scored(ssr, Spoiling(side=128))["of_the_base"]
  assert (spoilt["read"], spoilt["bicubic_read"]) == (0, made["bicubic_read"])


class Knowing(Right):
  """Super-resolution that returns the original of a shrunk clip."""

  def __init__(self, motions=None):
    super().__init__()
    kinds = {} if motions is None else {"motions": motions}
    source = unseen(self, COUNT, SEED, SETTINGS, split="held_out", **kinds)
    clips = [source.clip(k) for k in range(COUNT)]
    self.known = {shrunk(clip, 4).tobytes(): clip for clip in clips}

  def super_resolve(self, video, *, prompt, seed, settings):
    known = self.known.get(video.tobytes())
    return bicubic(video, self.upscale) if known is None else known


def test_gain_is_over_bicubic():
  same = scored(ssr, Right())["held_out"]
  assert (same["gain_db"], same["better"]) == (0, 0)
  assert same["psnr_db"] == same["bicubic_psnr_db"]
  best = scored(ssr, Knowing())["held_out"]
  assert best["psnr_db"] == pytest.approx(58.92, abs=0.01)
  assert best["bicubic_psnr_db"] == same["bicubic_psnr_db"]
  assert best["gain_db"] == pytest.approx(58.92 - same["psnr_db"], abs=0.01)
  assert best["better"] == 1


class Seamed(Right):
  """Each window has another brightness; overlaps are averaged."""

  def super_resolve(self, video, *, prompt, seed, settings):
    flat = np.full((self.length, self.side, self.side, 3), 100.0)
    size, overlap = self.length // 4, settings.overlap
    step, last = size - overlap, self.length - size
    starts = [*range(0, last, step), last]
    total, count = np.zeros(self.length), np.zeros(self.length)
    for k, start in enumerate(starts):
      total[start : start + size] += 20 * (k % 2)
      count[start : start + size] += 1
    rng = np.random.default_rng(seed)
    flat += (total / count)[:, None, None, None] + rng.uniform(
      -3, 3, flat.shape
    )
    return np.rint(flat).astype(np.uint8)


def test_seams_show_at_the_borders_of_windows():
  table = scored(windows, Seamed())
  assert list(table) == ["overlap 2", "overlap 0"]
  # 20 levels at once, or 10 and 10; noise within: the mean distance of two
  # even draws from an interval of 6 is 2.
  assert table["overlap 0"]["border_ratio"] == pytest.approx(10, rel=0.1)
  assert table["overlap 2"]["border_ratio"] == pytest.approx(5, rel=0.1)
  smooth = scored(windows, Knowing(motions=("still",)))
  assert [row["border_ratio"] for row in smooth.values()] == [1, 1]


def test_batches_and_seeds_are_as_requested():
  results = []
  one, four = Right(), Right()
  alone = scored(text_to_video, one)
  assert alone == scored(text_to_video, four, batch_size=4, results=results)
  prompts = lambda fake: [text for call in fake.calls for text in call[1]]
  assert prompts(one) == prompts(four)
  assert [call[2] for call in four.calls] == [[3, 4, 5, 6], [7, 8]] * 2
  assert {call[3] for call in four.calls} == {SETTINGS}
  assert [result.seed for result in results] == [3, 4, 5, 6, 7, 8] * 2
  assert [r.row for r in results] == ["unseen"] * 6 + ["held_out"] * 6


def test_both_of_two_objects_must_be_right():
  class Recalling(Right):
    def text_to_video(self, prompt, *, seed, settings):
      return np.stack([self.known[text] for text in prompt])

  fake = Recalling(frames=16)
  sources = [
    unseen(fake, COUNT, SEED, SETTINGS, split=split, two_objects=1.0)
    for split in ("train", "held_out")
  ]
  fake.known = {s.caption(k): s.clip(k) for s in sources for k in range(COUNT)}
  table = scored(text_to_video, fake, two_objects=1.0)
  assert table["unseen"] == table["unseen, real renders"]
  assert table["unseen"]["all"] >= 5 / 6
  half = lambda clip: np.where(
    np.arange(32)[:, None] < 16, clip, clip[:, :1, :1]
  )
  fake.known = {k: half(clip) for k, clip in fake.known.items()}
  table = scored(text_to_video, fake, two_objects=1.0)
  assert table["unseen"]["all"] <= 1 / 6


def test_pictures_are_scored_without_their_motion():
  table = scored(text_to_video, Right(side=64, frames=1))
  assert set(table["unseen"]) == {"colour", "shape", "all"}


def test_strength_defaults_to_that_of_the_pipeline():
  fake = Right()
  scored(video_to_video, fake)
  scored(video_to_video, fake, strength=0.4)
  assert [call[3] for call in fake.calls] == [0.7] * COUNT + [0.4] * COUNT


class Styled(Right):
  """Darker with more style."""

  alpha = 0.0

  def styled(self, style, alpha):
    assert style == "dark"
    fake = type(self)()
    fake.alpha = alpha
    return fake

  def text_to_video(self, prompt, *, seed, settings):
    video = super().text_to_video(prompt, seed=seed, settings=settings)
    return np.rint(video * (1 - self.alpha / 2)).astype(np.uint8)


class Unstyled(Right):
  def styled(self, style, alpha):
    return self


def test_styles_are_measured_by_alpha(monkeypatch):
  dark, results = lambda video: 255 - float(video.mean()), []
  score = lambda fake: scored(
    stylize, fake, count=3, style="dark", results=results
  )
  monkeypatch.setattr(scoring, "style_strength", dark)
  table = score(Styled())
  assert list(table) == [
    *("alpha 0", "alpha 0, real renders", "alpha 0.25", "alpha 0.5"),
    *("alpha 0.75", "alpha 1", "rising"),
  ]
  assert len(results) == 15
  means = [
    table[f"alpha {a}"]["strength"] for a in ("0", "0.25", "0.5", "0.75", "1")
  ]
  assert means == sorted(set(means))
  assert 255 - means[-1] == pytest.approx((255 - means[0]) / 2, abs=1)
  assert table["alpha 0"]["motion_kept"] == 1
  assert table["rising"]["rising"] == 1
  assert score(Unstyled())["rising"]["rising"] == 0
  monkeypatch.setattr(scoring, "style_strength", lambda v: -dark(v))
  assert score(Styled())["rising"]["rising"] == 0


def test_a_single_window_has_no_borders():
  fake = Whole()
  with pytest.raises(ValueError, match="one window"):
    scored(windows, fake)
  del fake.stages["ssr"]
  with pytest.raises(ValueError, match="one window"):
    scored(windows, fake)
