"""How much of a style shows as more of it is mixed in (Lumiere, section 4.1).

Styles are weights of the spatial layers, and a share alpha says how much of
them goes in. What a style looks like is for its own measure to say.
"""

from collections.abc import Callable, Mapping

from lumiere_jax.data.reader import matches
from lumiere_jax.metrics.intervals import share
from lumiere_jax.metrics.judged import (
  Hear,
  Judged,
  Sheet,
  Table,
  Verdict,
  ignore,
)
from lumiere_jax.metrics.scenes import unseen
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings
from lumiere_jax.pipelines.told import Clip

RISING = "rising"
"""Row and column of the share of prompts that take on the style steadily."""


def stylize(
  pipelines: Mapping[float, Pipeline],
  strength: Callable[[Clip], float],
  count: int,
  settings: Settings,
  seed: int,
  *,
  hear: Hear = ignore,
) -> Table:
  """Strength of a style by alpha, and whether the motion outlives it.

  Args:
    pipelines: alpha -> the pipeline with so much of the style; prompts and
      noise are the same for all.
    strength: of the style in a video, uint8 (t, h, w, 3); more is stronger.
    count: of the prompts.
    settings: to sample with.
    seed: of prompts and noise.
    hear: is told every video.

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
  sheet, rising = Sheet(hear), []
  for k in range(count):
    prompt, found = source.caption(k), []
    sheet.real(_row(alphas[0]), Verdict(right=motion(source.clip(k), prompt)))
    for alpha in alphas:
      video = pipelines[alpha].text_to_video(
        prompt, seed=seed + k, settings=settings
      )
      found.append(strength(video))
      verdict = Verdict(
        right=motion(video, prompt), numbers={"strength": found[-1]}
      )
      sheet.made(
        Judged(
          row=_row(alpha),
          prompt=prompt,
          seed=seed + k,
          video=video,
          verdict=verdict,
        )
      )
    rising.append(found == sorted(found) and found[0] < found[-1])
  table = sheet.table()
  if len(alphas) > 1:
    table[RISING] = {RISING: share(rising)}
  return table


def _row(alpha: float) -> str:
  return f"alpha {alpha:g}"
