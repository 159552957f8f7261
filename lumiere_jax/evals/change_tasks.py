"""Scores of what changes a video or a model: video-to-video, styles, SSR."""

from collections.abc import Callable, Mapping
import dataclasses

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.evals.measures import bicubic, border_ratio, psnr, shrunk
from lumiere_jax.evals.scenes import another, unseen
from lumiere_jax.evals.verdicts import (
  OnResult,
  Result,
  Results,
  Table,
  Verdict,
  ignore,
  share,
  with_all,
)
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.windowing import Windows, plan_windows
from lumiere_jax.toy_scenes.reader import matches
from lumiere_jax.typing import Clip


def video_to_video(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  strength: float | None = None,
  on_result: OnResult = ignore,
) -> Table:
  """Whether a video takes the colour of a prompt and keeps all else.

  Args:
    pipeline: to score.
    count: of the videos: unseen scenes, and their captions with another
      colour.
    settings: to sample with.
    seed: of scenes and noise.
    strength: in (0, 1], how much is made over; None: the pipeline's default.
    on_result: called with every video's result.

  Returns:
    Rows 'unseen' and real renders in the other colour: shares
    'colour_changed' to the prompt's, 'motion_kept', 'shape_kept' and all.

  Raises:
    UserError: the strength is outside.
  """
  source = unseen(pipeline, count, settings, seed)
  options = {} if strength is None else {"strength": strength}
  results = Results(on_result)
  for k in range(count):
    clip = source.clip(k)
    _, other, prompt = another(source, k, "colour")
    video = pipeline.video_to_video(
      prompt, clip, seed=seed + k, settings=settings, **options
    )
    results.real("unseen", _made_over(other, prompt, source.fps))
    results.made(
      Result(
        row="unseen",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=_made_over(video, prompt, source.fps),
        source=clip,
      )
    )
  return results.table()


def _made_over(video: Clip, prompt: str, fps: float) -> Verdict:
  found = matches(video, prompt, fps)
  return Verdict(
    right=with_all(
      {
        "colour_changed": found["colour"],
        "motion_kept": found["motion"],
        "shape_kept": found["shape"],
      }
    )
  )


RISING = "rising"
"""Row and column of the share of prompts that take on the style steadily."""


def stylize(
  pipelines: Mapping[float, Pipeline],
  strength: Callable[[Clip], float],
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """Strength of a style by alpha, and whether the motion outlives it.

  Args:
    pipelines: alpha -> the pipeline with so much of the style; prompts and
      noise are the same for all.
    strength: of the style in a video, uint8 (t, h, w, 3); more is stronger.
    count: of the prompts.
    settings: to sample with.
    seed: of prompts and noise.
    on_result: called with every video's result.

  Returns:
    A row 'alpha A' for each, in rising order: the mean 'strength' and the
    share 'motion_kept' that is read as the prompt says; beside the first,
    that of real renders. Of several, row 'rising': the share of prompts whose
    strength never falls from one alpha to the next, and is greater at the
    last than at the first.

  Raises:
    ValueError: there is no pipeline.
  """
  if not pipelines:
    raise ValueError("no pipeline to score")
  alphas = sorted(pipelines)
  source = unseen(pipelines[alphas[0]], count, settings, seed)
  motion = lambda video, prompt: {
    "motion_kept": matches(video, prompt, source.fps)["motion"]
  }
  results, rising = Results(on_result), []
  for k in range(count):
    prompt, found = source.caption(k), []
    results.real(_row(alphas[0]), Verdict(right=motion(source.clip(k), prompt)))
    for alpha in alphas:
      video = pipelines[alpha].text_to_video(
        prompt, seed=seed + k, settings=settings
      )
      found.append(strength(video))
      verdict = Verdict(
        right=motion(video, prompt), numbers={"strength": found[-1]}
      )
      results.made(
        Result(
          row=_row(alpha),
          prompt=prompt,
          seed=seed + k,
          video=video,
          verdict=verdict,
        )
      )
    rising.append(found == sorted(found) and found[0] < found[-1])
  table = results.table()
  if len(alphas) > 1:
    table[RISING] = {RISING: share(rising)}
  return table


def _row(alpha: float) -> str:
  return f"alpha {alpha:g}"


OVERLAPS = (2, 0)
"""Frames that windows share: the paper's with MultiDiffusion, and none."""


def ssr(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """PSNR of super-resolved clips over bicubic interpolation.

  Args:
    pipeline: to score.
    count: of the clips: real renders of combinations never trained on, shrunk
      by averaging, with their captions.
    settings: to sample with.
    seed: of scenes and noise.
    on_result: called with every video's result.

  Returns:
    Row 'held_out': 'psnr_db', 'bicubic_psnr_db' and their difference
    'gain_db', means over clips; 'better' is the share that gains. Row
    'of_the_base', of videos that the base makes of the same prompts: the share
    'read' right in all, and that of 'bicubic_read'.

  Raises:
    UserError: there is no super-resolution.
  """
  source = unseen(pipeline, count, settings, seed, split="held_out")
  results = Results(on_result)
  for k in range(count):
    prompt, clip = source.caption(k), source.clip(k)
    low = shrunk(clip, pipeline.upscale)
    video = pipeline.super_resolve(
      low, prompt=prompt, seed=seed + k, settings=settings
    )
    enlarged = bicubic(low, pipeline.upscale)
    ours, theirs = psnr(video, clip), psnr(enlarged, clip)
    verdict = Verdict(
      right={"better": ours > theirs},
      numbers={
        "psnr_db": ours,
        "bicubic_psnr_db": theirs,
        "gain_db": ours - theirs,
      },
    )
    results.made(
      Result(
        row="held_out",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=verdict,
        source=enlarged,
      )
    )
  _of_the_base(pipeline, source, settings, seed, results)
  return results.table()


def _of_the_base(
  pipeline: Pipeline,
  source: ProceduralSource,
  settings: Settings,
  seed: int,
  results: Results,
) -> None:
  """Whether super-resolution keeps what can be read in the base's videos."""
  base = pipeline.base_alone
  for k in range(len(source)):
    prompt = source.caption(k)
    low = base.text_to_video(prompt, seed=seed + k, settings=settings)
    video = pipeline.super_resolve(
      low, prompt=prompt, seed=seed + k, settings=settings
    )
    enlarged = bicubic(low, pipeline.upscale)
    right = {
      name: all(matches(clip, prompt, source.fps).values())
      for name, clip in (("read", video), ("bicubic_read", enlarged))
    }
    results.made(
      Result(
        row="of_the_base",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=Verdict(right=right),
        source=enlarged,
      )
    )


def windows(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """How much more videos change at window borders than elsewhere (Fig. 14).

  Measured on objects that stand still: all that changes there is the model's
  own. 1 is without a seam.

  Args:
    pipeline: to score.
    count: of the clips: real renders of combinations never trained on, shrunk
      by averaging, each super-resolved with all of `OVERLAPS`.
    settings: to sample with, but for the overlap.
    seed: of scenes and noise.
    on_result: called with every video's result.

  Returns:
    Rows 'overlap 2' and 'overlap 0': the mean 'border_ratio' over clips.

  Raises:
    UserError: there is no super-resolution.
    ValueError: it sees the whole video at once; see `windows_of`.
  """
  source = unseen(
    pipeline, count, settings, seed, split="held_out", motions=("still",)
  )
  results = Results(on_result)
  for overlap in OVERLAPS:
    own = dataclasses.replace(settings, overlap=overlap)
    layout = windows_of(pipeline, own)
    if layout is None:
      raise ValueError("there is one window alone")
    config = pipeline.stages["ssr"].config
    starts = plan_windows(config, layout, source.num_frames)
    for k in range(count):
      prompt = source.caption(k)
      video = pipeline.super_resolve(
        shrunk(source.clip(k), pipeline.upscale),
        prompt=prompt,
        seed=seed + k,
        settings=own,
      )
      ratio = border_ratio(video, starts, layout.size)
      results.made(
        Result(
          row=f"overlap {overlap}",
          prompt=prompt,
          seed=seed + k,
          video=video,
          verdict=Verdict(numbers={"border_ratio": ratio}),
        )
      )
  return results.table()


def windows_of(pipeline: Pipeline, settings: Settings) -> Windows | None:
  """Those in which super-resolution sees videos; None: they are seen whole."""
  if "ssr" not in pipeline.stages:
    return None
  _, layout = pipeline.plan(settings)
  return layout.get("ssr")
