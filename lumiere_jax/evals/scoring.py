"""The scored tasks: text, given pixels (Lumiere, section 4.2), edits, windows.

Prompts are captions of procedural scenes; `toy_scenes.reader` reads colour,
shape and motion from the pixels, without a neural network. Where it can be,
each score is shown beside that of real renders of the same scenes at the same
size and length, which is the practical upper bound. `tasks.TASKS` explains the
columns.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.evals.measures import (
  bicubic,
  border_ratio,
  displacement,
  flicker,
  frequency,
  most_changed,
  psnr,
  shrunk,
  step_at,
)
from lumiere_jax.evals.scenes import (
  DISPLACING,
  SPLITS,
  STAYING,
  TaskRun,
  another,
  path_box,
)
from lumiere_jax.evals.verdicts import Verdict, with_all
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.stage_sampler import Program
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.reader import agreement, matches, read
from lumiere_jax.toy_scenes.scenes import Description, Scene
from lumiere_jax.toy_scenes.styles import strength as style_strength
from lumiere_jax.typing import Clip

RHYTHMS = ("blinking", "swinging")
IN_RANGE = (2.7, 4.4)
"""Accepted frequencies in Hz: those of the scenes, 3 to 4, with a tolerance of
10%. Captions name no frequency, so all of these are right."""
FAITHFUL = 26.0
"""Least PSNR in dB of a faithful first frame."""
MOVED = 2.0
"""Least displacement of a moving object, in pixels of a 32x32 frame."""
GIVEN = 16
"""Frames given to `extend`, at most half of a video."""
JUMP = 3.0
"""Largest error of an object's step, in pixels of a 32x32 frame."""
# The region of a cinemagraph moves if in some frame 1% of its pixels differ
# from the picture by more than the faintest object does from its background.
_LEVELS, _SHARE = 28, 0.01
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Interpolation weights of a style, in rising order."""
OVERLAPS = (2, 0)
"""Frames that windows share: the paper's with MultiDiffusion, and none."""


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


def image_to_video(run: TaskRun) -> None:
  """Scores whether videos start with the given picture and move."""
  source = run.scenes()
  for k in range(run.count):
    prompt, clip = source.caption(k), source.clip(k)
    video = run.pipeline.image_to_video(
      prompt, clip[0], composited=False, **run.sampling(k)
    )
    similarity = psnr(video[0], clip[0])
    run.add_real(Verdict(right=_movement(clip, prompt, source.fps)))
    verdict = Verdict(
      right={"faithful": similarity >= FAITHFUL}
      | _movement(video, prompt, source.fps),
      numbers={"first_frame_psnr_db": similarity},
    )
    run.add(k, prompt, video, verdict, source=clip[:1])


def extend(run: TaskRun) -> None:
  """Scores whether videos continue from the first frames of a clip.

  Of scenes whose object stays in the frame. 'no_jump' is a share of the videos
  that show the object in both frames.
  """
  source = run.scenes(motions=STAYING)
  given = min(GIVEN, source.num_frames // 2)
  for k in range(run.count):
    prompt, clip = source.caption(k), source.clip(k)
    judge = functools.partial(
      _continuation,
      given=given,
      real=clip,
      thing=_object(source.scene(k)),
      fps=source.fps,
    )
    video = run.pipeline.extend(
      prompt, clip[:given], context=given, **run.sampling(k)
    )
    run.add_real(judge(clip))
    run.add(k, prompt, video, judge(video), source=clip[:given])


def inpaint(run: TaskRun) -> None:
  """Scores whether another object appears where one is masked out.

  The box around the path of an object is regenerated, after a prompt of
  another colour and shape with the same motion.
  """
  source = run.scenes(motions=STAYING)
  for k in range(run.count):
    clip = source.clip(k)
    scene, other, prompt = another(source, k, "colour", "shape")
    mask, box = path_box(source, k)
    video = run.pipeline.inpaint(prompt, clip, mask, **run.sampling(k))
    judge = functools.partial(
      _inside, box=box, thing=_object(scene), fps=source.fps
    )
    run.add_real(judge(other))
    run.add(k, prompt, video, judge(video), source=clip)


def cinemagraph(run: TaskRun) -> None:
  """Scores whether a picture moves inside its region and nowhere else.

  The region is the box around the path of an object that moves and stays in
  the frame.
  """
  motions = tuple(motion for motion in STAYING if motion != "still")
  source = run.scenes(motions=motions)
  for k in range(run.count):
    prompt, clip = source.caption(k), source.clip(k)
    mask, _ = path_box(source, k)
    video = run.pipeline.cinemagraph(prompt, clip[0], mask, **run.sampling(k))
    away = np.abs(video.astype(np.int16) - clip[0])[:, ~mask].max(initial=0)
    run.add_real(Verdict(right=_moves(clip[:, mask])))
    verdict = Verdict(
      right={"outside_still": bool(away == 0)} | _moves(video[:, mask]),
      numbers={"outside_levels": float(away)},
    )
    run.add(k, prompt, video, verdict, source=clip[:1])


def _object(scene: Scene) -> Description:
  """Colour and shape of a scene's first object."""
  words = scene.sprites[0].description
  return Description(colour=words.colour, shape=words.shape)


def _movement(video: Clip, prompt: str, fps: float) -> dict[str, bool]:
  (thing,), _ = parse_caption(prompt)
  right = {"motion": matches(video, prompt, fps)["motion"]}
  if thing.motion in DISPLACING:
    right["displaced"] = displacement(video) > MOVED
  return right


def _continuation(
  video: Clip, *, given: int, real: Clip, thing: Description, fps: float
) -> Verdict:
  right = dict(agreement(read(video[given:], fps), (thing,)))
  expected, step = step_at(real, given), step_at(video, given)
  if expected is not None:
    error = np.inf if step is None else np.linalg.norm(step - expected)
    right["no_jump"] = bool(error <= JUMP)
  return Verdict(right=with_all(right))


def _inside(
  video: Clip, *, box: tuple[slice, slice], thing: Description, fps: float
) -> Verdict:
  inside = read(video[(slice(None), *box)], fps)
  return Verdict(right=with_all(agreement(inside, (thing,))))


def _moves(region: np.ndarray) -> dict[str, bool]:
  return {"inside_moves": most_changed(region, _LEVELS) >= _SHARE}


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
