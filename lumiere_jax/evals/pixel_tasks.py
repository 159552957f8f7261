"""What the conditional model makes of given pixels (Lumiere, section 4.2)."""

import functools

import numpy as np

from lumiere_jax.evals.measures import displacement, most_changed, psnr, step_at
from lumiere_jax.evals.scenes import (
  DISPLACING,
  STAYING,
  another,
  path_box,
  unseen,
)
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
from lumiere_jax.toy_scenes.reader import agreement, matches, read
from lumiere_jax.toy_scenes.scenes import Description
from lumiere_jax.typing import Clip

FAITHFUL = 26.0
"""dB of PSNR from which on a first frame is the given one."""


MOVED = 2.0
"""Pixels of a frame of 32x32 by which an object has moved."""


GIVEN = 16
"""Frames of a clip that `extend` goes on from, at most half of a video."""


JUMP = 3.0
"""Pixels of a frame of 32x32 by which an object may miss its place."""


# Of the region of a cinemagraph: it moves if in some frame one pixel in a
# hundred differs from the picture by more than the faintest object does from
# its background.
_LEVELS, _SHARE = 28, 0.01


def image_to_video(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """Whether videos begin with the given picture, and move.

  Args:
    pipeline: to score.
    count: of the pictures: first frames of unseen scenes, with their captions.
    settings: to sample with.
    seed: of scenes and noise.
    on_result: called with every video's result.

  Returns:
    Rows 'unseen' and, of what can be said of them, real renders.
    'first_frame_psnr_db' compares the first frame as the model made it with
    the given one; 'faithful' is the share of at least `FAITHFUL`. 'displaced'
    is, of prompts whose motion takes the object elsewhere (`DISPLACING`), the
    share of a `movement.displacement` above `MOVED`; 'motion' that of all
    whose motion is read as the prompt's.

  Raises:
    UserError: there is no conditional base.
  """
  source = unseen(pipeline, count, settings, seed)
  results = Results(on_result)
  for k in range(count):
    prompt, clip = source.caption(k), source.clip(k)
    video = pipeline.image_to_video(
      prompt, clip[0], composited=False, seed=seed + k, settings=settings
    )
    alike = psnr(video[0], clip[0])
    results.real("unseen", Verdict(right=_as_asked(clip, prompt, source.fps)))
    verdict = Verdict(
      right={"faithful": alike >= FAITHFUL}
      | _as_asked(video, prompt, source.fps),
      numbers={"first_frame_psnr_db": alike},
    )
    results.made(
      Result(
        row="unseen",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=verdict,
        source=clip[:1],
      )
    )
  return results.table()


def extend(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """Whether the object of a clip stays what it is when the clip goes on.

  Args:
    pipeline: to score.
    count: of the clips: the first `GIVEN` frames of unseen scenes whose object
      stays in the frame.
    settings: to sample with.
    seed: of scenes and noise.
    on_result: called with every video's result.

  Returns:
    Rows 'unseen' and real renders: of the new frames, shares with the object's
    'colour' and 'shape'; 'no_jump' is the share whose object moves from the
    last given frame to the first new one as the real one does, but for `JUMP`
    (of those where both show the real one), and 'all' of all three.

  Raises:
    UserError: there is no conditional base.
  """
  source = unseen(pipeline, count, settings, seed, motions=STAYING)
  given = min(GIVEN, source.num_frames // 2)
  results = Results(on_result)
  for k in range(count):
    prompt, clip = source.caption(k), source.clip(k)
    words = source.scene(k).sprites[0].description
    thing = Description(colour=words.colour, shape=words.shape)
    goes_on = functools.partial(
      _goes_on, given=given, real=clip, thing=thing, fps=source.fps
    )
    video = pipeline.extend(
      prompt, clip[:given], context=given, seed=seed + k, settings=settings
    )
    results.real("unseen", goes_on(clip))
    results.made(
      Result(
        row="unseen",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=goes_on(video),
        source=clip[:given],
      )
    )
  return results.table()


def inpaint(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """Whether another object appears where one is taken out.

  The box around the path of an object is made anew, after a prompt of another
  colour and shape with the same motion.

  Args:
    pipeline: to score.
    count: of the videos, unseen scenes whose object stays in the frame.
    settings: to sample with.
    seed: of scenes and noise.
    on_result: called with every video's result.

  Returns:
    Rows 'unseen' and real renders of the other object: shares of videos with
    the prompt's 'colour', its 'shape' and both read in the box.

  Raises:
    UserError: there is no conditional base.
  """
  source = unseen(pipeline, count, settings, seed, motions=STAYING)
  results = Results(on_result)
  for k in range(count):
    clip = source.clip(k)
    scene, other, prompt = another(source, k, "colour", "shape")
    mask, box = path_box(source, k)
    video = pipeline.inpaint(
      prompt, clip, mask, seed=seed + k, settings=settings
    )
    words = scene.sprites[0].description
    thing = Description(colour=words.colour, shape=words.shape)
    results.real("unseen", _shows(other, box, thing, source.fps))
    verdict = _shows(video, box, thing, source.fps)
    results.made(
      Result(
        row="unseen",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=verdict,
        source=clip,
      )
    )
  return results.table()


def cinemagraph(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  on_result: OnResult = ignore,
) -> Table:
  """Whether a picture moves in its region, and nowhere else.

  The region is the box around the path of an object.

  Args:
    pipeline: to score.
    count: of the pictures: first frames of unseen scenes whose object moves
      and stays in the frame.
    settings: to sample with.
    seed: of scenes and noise.
    on_result: called with every video's result.

  Returns:
    Row 'unseen': 'outside_still' is the share of videos without any change
    outside, 'outside_levels' the largest one in grey levels, averaged over
    videos; 'inside_moves' is the share with a region that changes. Real
    renders have the latter alone.

  Raises:
    UserError: there is no conditional base.
  """
  motions = tuple(motion for motion in STAYING if motion != "still")
  source = unseen(pipeline, count, settings, seed, motions=motions)
  results = Results(on_result)
  for k in range(count):
    prompt, clip = source.caption(k), source.clip(k)
    mask, _ = path_box(source, k)
    video = pipeline.cinemagraph(
      prompt, clip[0], mask, seed=seed + k, settings=settings
    )
    away = np.abs(video.astype(np.int16) - clip[0])[:, ~mask].max(initial=0)
    results.real("unseen", Verdict(right=_moves(clip[:, mask])))
    verdict = Verdict(
      right={"outside_still": bool(away == 0)} | _moves(video[:, mask]),
      numbers={"outside_levels": float(away)},
    )
    results.made(
      Result(
        row="unseen",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=verdict,
        source=clip[:1],
      )
    )
  return results.table()


def _as_asked(video: Clip, prompt: str, fps: float) -> dict[str, bool]:
  (thing,), _ = parse_caption(prompt)
  right = {"motion": matches(video, prompt, fps)["motion"]}
  if thing.motion in DISPLACING:
    right["displaced"] = displacement(video) > MOVED
  return right


def _goes_on(
  video: Clip, *, given: int, real: Clip, thing: Description, fps: float
) -> Verdict:
  right = dict(agreement(read(video[given:], fps), (thing,)))
  there, step = step_at(real, given), step_at(video, given)
  if there is not None:
    missed = np.inf if step is None else np.linalg.norm(step - there)
    right["no_jump"] = bool(missed <= JUMP)
  return Verdict(right=with_all(right))


def _shows(
  video: Clip, box: tuple[slice, slice], thing: Description, fps: float
) -> Verdict:
  inside = read(video[(slice(None), *box)], fps)
  return Verdict(right=with_all(agreement(inside, (thing,))))


def _moves(region: np.ndarray) -> dict[str, bool]:
  return {"inside_moves": most_changed(region, _LEVELS) >= _SHARE}
