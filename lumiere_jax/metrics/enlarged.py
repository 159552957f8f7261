"""Super-resolution: what it adds to bicubic, and whether windows show."""

import dataclasses

from lumiere_jax.data.procedural import ProceduralSource
from lumiere_jax.data.reader import matches
from lumiere_jax.metrics.judged import (
  Hear,
  Judged,
  Sheet,
  Table,
  Verdict,
  ignore,
)
from lumiere_jax.metrics.pixels import bicubic, border_ratio, psnr, shrunk
from lumiere_jax.metrics.scenes import unseen
from lumiere_jax.pipelines.canvas import Windows, plan_windows
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings

OVERLAPS = (2, 0)
"""Frames that windows share: the paper's with MultiDiffusion, and none."""


def ssr(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  hear: Hear = ignore,
) -> Table:
  """PSNR of super-resolved clips over bicubic interpolation.

  Args:
    pipeline: to score.
    count: of the clips: real renders of combinations never trained on, shrunk
      by averaging, with their captions.
    settings: to sample with.
    seed: of scenes and noise.
    hear: is told every video.

  Returns:
    Row 'held_out': 'psnr_db', 'bicubic_psnr_db' and their difference
    'gain_db', means over clips; 'better' is the share that gains. Row
    'of_the_base', of videos that the base makes of the same prompts: the share
    'read' right in all, and that of 'bicubic_read'.

  Raises:
    UserError: there is no super-resolution.
  """
  source = unseen(pipeline, count, settings, seed, split="held_out")
  sheet = Sheet(hear)
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
    sheet.made(
      Judged(
        row="held_out",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=verdict,
        source=enlarged,
      )
    )
  _of_the_base(pipeline, source, settings, seed, sheet)
  return sheet.table()


def _of_the_base(
  pipeline: Pipeline,
  source: ProceduralSource,
  settings: Settings,
  seed: int,
  sheet: Sheet,
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
    sheet.made(
      Judged(
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
  hear: Hear = ignore,
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
    hear: is told every video.

  Returns:
    Rows 'overlap 2' and 'overlap 0': the mean 'border_ratio' over clips.

  Raises:
    UserError: there is no super-resolution.
    ValueError: it sees the whole video at once; see `windows_of`.
  """
  source = unseen(
    pipeline, count, settings, seed, split="held_out", motions=("still",)
  )
  sheet = Sheet(hear)
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
      sheet.made(
        Judged(
          row=f"overlap {overlap}",
          prompt=prompt,
          seed=seed + k,
          video=video,
          verdict=Verdict(numbers={"border_ratio": ratio}),
        )
      )
  return sheet.table()


def windows_of(pipeline: Pipeline, settings: Settings) -> Windows | None:
  """Those in which super-resolution sees videos; None: they are seen whole."""
  if "ssr" not in pipeline.stages:
    return None
  _, layout = pipeline.plan(settings)
  return layout.get("ssr")
