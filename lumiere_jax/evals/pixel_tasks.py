"""Scores of the pixel-conditioned tasks (Lumiere, section 4.2)."""

import functools

import numpy as np

from lumiere_jax.evals.measures import displacement, most_changed, psnr, step_at
from lumiere_jax.evals.scenes import (
  DISPLACING,
  STAYING,
  TaskRun,
  another,
  path_box,
)
from lumiere_jax.evals.verdicts import Verdict, with_all
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.reader import agreement, matches, read
from lumiere_jax.toy_scenes.scenes import Description, Scene
from lumiere_jax.typing import Clip

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
