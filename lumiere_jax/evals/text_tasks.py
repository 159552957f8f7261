"""Scores of videos of prompts alone: colour, shape, motion, rhythm.

Prompts are captions of procedural scenes; `toy_scenes.reader` reads colour,
shape and motion from the pixels, without a neural network. Each score is shown
beside the reader's score on real renders of the same scenes at the same size
and length, which is the practical upper bound.
"""

from collections.abc import Callable

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.evals.measures import flicker, frequency
from lumiere_jax.evals.scenes import SPLITS, TaskRun
from lumiere_jax.evals.verdicts import Verdict, with_all
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.reader import matches
from lumiere_jax.typing import Clip

RHYTHMS = ("blinking", "swinging")
IN_RANGE = (2.7, 4.4)
"""Accepted frequencies in Hz: those of the scenes, 3 to 4, with a tolerance of
10%. Captions name no frequency, so all of these are right."""


def text_to_video(
  run: TaskRun, *, batch_size: int = 1, two_objects: float = 0.1
) -> None:
  """Scores colour, shape, motion and flicker; see `TASKS` for the columns.

  `two_objects` is the share of prompts with two objects.
  """
  for row, split in SPLITS.items():
    source = run.scenes(split=split, two_objects=two_objects)
    _score_source(run, row, source, _alignment, batch_size)


def rhythm(run: TaskRun, *, batch_size: int = 1) -> None:
  """Scores the frequency of blinking and swinging objects.

  Each is in half of the prompts. The mean frequency is of the videos that have
  one.
  """
  for motion in RHYTHMS:
    source = run.scenes(count=-(-run.count // 2), motions=(motion,))
    _score_source(run, motion, source, _frequency, batch_size)


def _alignment(video: Clip, prompt: str, fps: float) -> Verdict:
  numbers = {"flicker_levels": flicker(video)} if len(video) > 1 else {}
  return Verdict(right=with_all(matches(video, prompt, fps)), numbers=numbers)


def _frequency(video: Clip, prompt: str, fps: float) -> Verdict:
  (thing,), _ = parse_caption(prompt)
  rate = frequency(video, thing.motion or "still", fps)
  if rate is None:
    return Verdict(right={"in_range": False})
  low, high = IN_RANGE
  return Verdict(
    right={"in_range": low <= rate <= high}, numbers={"frequency_hz": rate}
  )


def _score_source(
  run: TaskRun,
  row: str,
  source: ProceduralSource,
  judge: Callable[[Clip, str, float], Verdict],
  batch_size: int,
) -> None:
  """Samples a video of every caption; judges it and the real render."""
  for first in range(0, len(source), batch_size):
    batch = range(first, min(first + batch_size, len(source)))
    prompts = [source.caption(k) for k in batch]
    videos = run.pipeline.text_to_video(
      prompts, seed=[run.seed + k for k in batch], settings=run.settings
    )
    for k, prompt, video in zip(batch, prompts, videos, strict=True):
      run.add_real(judge(source.clip(k), prompt, source.fps), row)
      run.add(k, prompt, video, judge(video, prompt, source.fps), row=row)
