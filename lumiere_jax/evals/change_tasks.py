"""Scores of editing and enlarging: video-to-video, styles, super-resolution."""

import dataclasses
import functools

from lumiere_jax.evals.measures import bicubic, border_ratio, psnr, shrunk
from lumiere_jax.evals.scenes import TaskRun, another
from lumiere_jax.evals.verdicts import Verdict, with_all
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.stage_sampler import Program
from lumiere_jax.toy_scenes.reader import matches
from lumiere_jax.toy_scenes.styles import strength as style_strength
from lumiere_jax.typing import Clip

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Interpolation weights of a style, in rising order."""
OVERLAPS = (2, 0)
"""Frames that windows share: the paper's with MultiDiffusion, and none."""


def video_to_video(run: TaskRun, *, strength: float | None = None) -> None:
  """Scores whether a video takes a prompt's colour and keeps the rest.

  `strength` is that of the edit, in (0, 1]; None: the pipeline's default.
  """
  source = run.scenes()
  edit = run.pipeline.video_to_video
  if strength is not None:
    edit = functools.partial(edit, strength=strength)
  for k in range(run.count):
    clip = source.clip(k)
    _, other, prompt = another(source, k, "colour")
    video = edit(prompt, clip, **run.sampling(k))
    run.add_real(_recoloured(other, prompt, source.fps))
    verdict = _recoloured(video, prompt, source.fps)
    run.add(k, prompt, video, verdict, source=clip)


def _recoloured(video: Clip, prompt: str, fps: float) -> Verdict:
  found = matches(video, prompt, fps)
  right = {
    "colour_changed": found["colour"],
    "motion_kept": found["motion"],
    "shape_kept": found["shape"],
  }
  return Verdict(right=with_all(right))


def stylize(run: TaskRun, *, style: str) -> None:
  """Scores how strongly a style shows, and whether the motion is kept.

  The rows, one for each of `ALPHAS`, are of the same prompts and noise.
  """
  pipelines = {alpha: run.pipeline.styled(style, alpha) for alpha in ALPHAS}
  source = run.scenes()
  motion = lambda video, prompt: {
    "motion_kept": matches(video, prompt, source.fps)["motion"]
  }
  row = "alpha {:g}".format
  for k in range(run.count):
    prompt, strengths = source.caption(k), []
    run.add_real(Verdict(right=motion(source.clip(k), prompt)), row(ALPHAS[0]))
    for alpha, pipeline in pipelines.items():
      video = pipeline.text_to_video(prompt, **run.sampling(k))
      strengths.append(style_strength(video))
      verdict = Verdict(
        right=motion(video, prompt), numbers={"strength": strengths[-1]}
      )
      run.add(k, prompt, video, verdict, row=row(alpha))
    rises = strengths == sorted(strengths) and strengths[0] < strengths[-1]
    run.summary["rising"].append(Verdict(right={"rising": rises}))


def ssr(run: TaskRun) -> None:
  """Scores super-resolution against bicubic interpolation.

  Of real renders of combinations never trained on, shrunk by averaging; and of
  videos that the base samples from the same prompts.
  """
  pipeline = run.pipeline
  source = run.scenes(split="held_out")
  for k in range(run.count):
    prompt, clip = source.caption(k), source.clip(k)
    video, enlarged = _enlarged(run, k, prompt, shrunk(clip, pipeline.upscale))
    ours, theirs = psnr(video, clip), psnr(enlarged, clip)
    verdict = Verdict(
      right={"better": ours > theirs},
      numbers={
        "psnr_db": ours,
        "bicubic_psnr_db": theirs,
        "gain_db": ours - theirs,
      },
    )
    run.add(k, prompt, video, verdict, row="held_out", source=enlarged)
  base = pipeline.base_alone
  for k in range(run.count):
    prompt = source.caption(k)
    low = base.text_to_video(prompt, **run.sampling(k))
    video, enlarged = _enlarged(run, k, prompt, low)
    right = {
      name: all(matches(clip, prompt, source.fps).values())
      for name, clip in (("read", video), ("bicubic_read", enlarged))
    }
    verdict = Verdict(right=right)
    run.add(k, prompt, video, verdict, row="of_the_base", source=enlarged)


def _enlarged(
  run: TaskRun, index: int, prompt: str, low: Clip
) -> tuple[Clip, Clip]:
  """A clip enlarged by the model, and by bicubic interpolation."""
  video = run.pipeline.super_resolve(low, prompt=prompt, **run.sampling(index))
  return video, bicubic(low, run.pipeline.upscale)


def windows(run: TaskRun) -> None:
  """Compares change at window borders with change elsewhere (Fig. 14).

  Of still objects, where all change comes from the model. Clips are real
  renders of combinations never trained on, shrunk by averaging.
  """
  source = run.scenes(split="held_out", motions=("still",))
  for overlap in OVERLAPS:
    settings = dataclasses.replace(run.settings, overlap=overlap)
    program = windows_of(run.pipeline, settings)
    if program is None or program.windows is None:
      raise ValueError("there is only one window")
    for k in range(run.count):
      prompt = source.caption(k)
      video = run.pipeline.super_resolve(
        shrunk(source.clip(k), run.pipeline.upscale),
        prompt=prompt,
        seed=run.seed + k,
        settings=settings,
      )
      ratio = border_ratio(video, program.starts(), program.windows.size)
      verdict = Verdict(numbers={"border_ratio": ratio})
      run.add(k, prompt, video, verdict, row=f"overlap {overlap}")


def windows_of(pipeline: Pipeline, settings: Settings) -> Program | None:
  """Super-resolution in windows; None: whole videos, or no such stage."""
  if "ssr" not in pipeline.stages:
    return None
  program = pipeline.plan(settings)["ssr"].program
  return program if program.windows else None
