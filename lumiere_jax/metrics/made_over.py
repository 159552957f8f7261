"""Videos made over after a prompt: SDEdit (Lumiere, section 4.3)."""

from lumiere_jax.data.reader import matches
from lumiere_jax.metrics.judged import (
  Hear,
  Judged,
  Sheet,
  Table,
  Verdict,
  ignore,
  with_all,
)
from lumiere_jax.metrics.scenes import another, unseen
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings
from lumiere_jax.pipelines.told import Clip


def video_to_video(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  strength: float | None = None,
  hear: Hear = ignore,
) -> Table:
  """Whether a video takes the colour of a prompt and keeps all else.

  Args:
    pipeline: to score.
    count: of the videos: unseen scenes, and their captions with another
      colour.
    settings: to sample with.
    seed: of scenes and noise.
    strength: in (0, 1], how much is made over; None: the pipeline's default.
    hear: is told every video.

  Returns:
    Rows 'unseen' and real renders in the other colour: shares
    'colour_changed' to the prompt's, 'motion_kept', 'shape_kept' and all.

  Raises:
    UserError: the strength is outside.
  """
  source = unseen(pipeline, count, settings, seed)
  options = {} if strength is None else {"strength": strength}
  sheet = Sheet(hear)
  for k in range(count):
    clip = source.clip(k)
    _, other, prompt = another(source, k, "colour")
    video = pipeline.video_to_video(
      prompt, clip, seed=seed + k, settings=settings, **options
    )
    sheet.real("unseen", _made_over(other, prompt, source.fps))
    sheet.made(
      Judged(
        row="unseen",
        prompt=prompt,
        seed=seed + k,
        video=video,
        verdict=_made_over(video, prompt, source.fps),
        source=clip,
      )
    )
  return sheet.table()


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
