"""Whether videos show what their prompts say: colour, shape, motion, rhythm.

Prompts are captions of procedural scenes; `data.reader` reads the videos, with
no neural network. How often it is right on real renders of the same scenes, at
the same size and length, stands beside every score: the model can hardly reach
more.
"""

from collections.abc import Callable

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.evals.measures import flicker, frequency
from lumiere_jax.evals.scenes import SPLITS, unseen
from lumiere_jax.evals.verdicts import (
  OnResult,
  Result,
  Results,
  Table,
  Verdict,
  ignore,
  with_all,
)
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.reader import matches
from lumiere_jax.typing import Clip

RHYTHMS = ("blinking", "swinging")


IN_RANGE = (2.7, 4.4)
"""Cycles a second, 10% around those of the scenes, 3 to 4: captions name no
frequency, so all of these are right."""


Judge = Callable[[Clip, str, float], Verdict]
"""(video, prompt, frames a second) -> verdict."""


def text_to_video(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  batch_size: int = 1,
  two_objects: float = 0.1,
  on_result: OnResult = ignore,
) -> Table:
  """Shares of videos of which colour, shape, motion and all three are right.

  Each for all objects of a scene; and 'flicker_levels' of the background, see
  `pixels.flicker`.

  Args:
    pipeline: to score.
    count: of prompts of each of `SPLITS`.
    settings: to sample with.
    seed: of prompts and noise.
    batch_size: videos sampled at once.
    two_objects: share of prompts with two of them.
    on_result: called with every video's result.

  Returns:
    Rows 'unseen' and 'held_out', each with one of real renders.
  """
  results = Results(on_result)
  for row, split in SPLITS.items():
    source = unseen(
      pipeline, count, settings, seed, split=split, two_objects=two_objects
    )
    _judge_all(
      row, pipeline, source, _aligned, settings, seed, batch_size, results
    )
  return results.table()


def rhythm(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  batch_size: int = 1,
  on_result: OnResult = ignore,
) -> Table:
  """Shares of blinking and swinging videos with a frequency of the scenes'.

  Args:
    pipeline: to score.
    count: of prompts, half of them blinking and half swinging.
    settings: to sample with.
    seed: of prompts and noise.
    batch_size: videos sampled at once.
    on_result: called with every video's result.

  Returns:
    Rows 'blinking' and 'swinging', each with one of real renders: the share
    'in_range', and the mean 'frequency_hz' of those that have one.
  """
  results = Results(on_result)
  for motion in RHYTHMS:
    source = unseen(pipeline, -(-count // 2), settings, seed, motions=(motion,))
    _judge_all(
      motion, pipeline, source, _in_time, settings, seed, batch_size, results
    )
  return results.table()


def _aligned(video: Clip, prompt: str, fps: float) -> Verdict:
  numbers = {"flicker_levels": flicker(video)} if len(video) > 1 else {}
  return Verdict(right=with_all(matches(video, prompt, fps)), numbers=numbers)


def _in_time(video: Clip, prompt: str, fps: float) -> Verdict:
  (thing,), _ = parse_caption(prompt)
  rate = frequency(video, thing.motion, fps)
  if rate is None:
    return Verdict(right={"in_range": False})
  low, high = IN_RANGE
  return Verdict(
    right={"in_range": low <= rate <= high}, numbers={"frequency_hz": rate}
  )


def _judge_all(
  row: str,
  pipeline: Pipeline,
  source: ProceduralSource,
  judge: Judge,
  settings: Settings,
  seed: int,
  batch_size: int,
  results: Results,
) -> None:
  """Makes a video of every caption of a source; judges it and the real one."""
  for first in range(0, len(source), batch_size):
    batch = range(first, min(first + batch_size, len(source)))
    prompts = [source.caption(k) for k in batch]
    seeds = [seed + k for k in batch]
    videos = pipeline.text_to_video(prompts, seed=seeds, settings=settings)
    for k, prompt, own, video in zip(
      batch, prompts, seeds, videos, strict=True
    ):
      results.real(row, judge(source.clip(k), prompt, source.fps))
      results.made(
        Result(
          row=row,
          prompt=prompt,
          seed=own,
          video=video,
          verdict=judge(video, prompt, source.fps),
        )
      )
