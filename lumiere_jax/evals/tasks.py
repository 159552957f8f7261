"""What of a model can be scored by reading what it makes."""

from collections.abc import Callable, Sequence
import dataclasses

from lumiere_jax.errors import UserError, notice, option
from lumiere_jax.evals.change_tasks import (
  OVERLAPS,
  ssr,
  stylize,
  video_to_video,
  windows,
  windows_of,
)
from lumiere_jax.evals.pixel_tasks import (
  cinemagraph,
  extend,
  image_to_video,
  inpaint,
)
from lumiere_jax.evals.scenes import SPLITS
from lumiere_jax.evals.text_tasks import rhythm, text_to_video
from lumiere_jax.evals.verdicts import OnResult, Table, ignore
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings
from lumiere_jax.toy_scenes.styles import strength

_CONDITIONAL = "a base that is told pixels (a 'conditional' stage)"


_SSR = "a super-resolution stage"


_WINDOWS = (
  f"super-resolution in windows, of a longer video ({option('num_frames')})"
)


_VIDEO = "a model of videos"


_STYLE = f"a style of the procedural scenes ({option('style')})"


ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of a style is blended in, one after the other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTask:
  """One of `TASKS`.

  Attributes:
    score: (pipeline, count, settings, seed, on_result=..., options) -> table.
    about: what its columns are, for people.
    needs: what a model must have for it.
    options: further arguments of `score`, which requests have by their names.
    videos: made for each one counted.
  """

  score: Callable[..., Table]
  about: str
  needs: tuple[str, ...] = (_VIDEO,)
  options: tuple[str, ...] = ()
  videos: int = 1


def _stylize(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  style: str,
  on_result: OnResult = ignore,
) -> Table:
  pipelines = {alpha: pipeline.styled(style, alpha) for alpha in ALPHAS}
  return stylize(
    pipelines, strength, count, settings, seed, on_result=on_result
  )


TASKS: dict[str, EvalTask] = {
  "text_to_video": EvalTask(
    score=text_to_video,
    about="Colour, shape and motion of all objects as the prompt says, read "
    "from the pixels; unseen: new scenes of combinations that were trained "
    "on; held out: of combinations that never were. Flicker: standard "
    "deviation over time of the background, in levels of 255.",
    needs=(),
    options=("batch_size", "two_objects"),
    videos=len(SPLITS),
  ),
  "rhythm": EvalTask(
    score=rhythm,
    about="In range: the dominant frequency is 2.7 to 4.4 Hz, 10% around "
    "that of the scenes.",
    options=("batch_size",),
  ),
  "image_to_video": EvalTask(
    score=image_to_video,
    about="First frame as the model made it, against the given one; faithful: "
    "at least 26 dB. Displaced: of prompts whose motion takes the object "
    "elsewhere, it is more than 2 of 32 pixels from its first place, on "
    "average over time. Motion: read as the prompt says.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "extend": EvalTask(
    score=extend,
    about="Colour and shape of the object of a clip, read in the frames that "
    "go on with it; no jump: from the last given frame to the first new one it "
    "moves within 3 of 32 pixels of how the real one does.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "inpaint": EvalTask(
    score=inpaint,
    about="Another colour and shape, read in the box around the path of the "
    "object that was there.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "cinemagraph": EvalTask(
    score=cinemagraph,
    about="Outside still: no byte outside the region changes. Outside "
    "levels: the largest change there, of 255. Inside moves: in some frame a "
    "hundredth of its pixels differs from the picture.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "video_to_video": EvalTask(
    score=video_to_video,
    about="Made over after a prompt that differs in colour alone.",
    options=("strength",),
  ),
  "stylize": EvalTask(
    score=_stylize,
    about="Strength: how much of the style shows in the colours, 0 to 1; "
    "rising: of the prompts whose strength never falls as alpha grows, and "
    "grows in all. Motion kept: read as the prompt says.",
    needs=(_VIDEO, _STYLE),
    options=("style",),
    videos=len(ALPHAS),
  ),
  "ssr": EvalTask(
    score=ssr,
    about="Held out: real renders shrunk, super-resolved and compared, beside "
    "bicubic interpolation. Of the base: its own videos, colour, shape and "
    "motion all read right in what is made of them, and of bicubic's.",
    needs=(_VIDEO, _SSR),
    videos=2,
  ),
  "windows": EvalTask(
    score=windows,
    about="Border ratio: change from frame to frame at window borders over "
    "that elsewhere, of objects that stand still; 1 has no seam. Overlap 2 is "
    "MultiDiffusion, 0 is without it.",
    needs=(_VIDEO, _SSR, _WINDOWS),
    videos=len(OVERLAPS),
  ),
}
"""In the order that they are scored in."""


def choose(
  pipeline: Pipeline,
  settings: Settings,
  wanted: Sequence[str],
  style: str = "",
) -> dict[str, EvalTask]:
  """The tasks that are wanted.

  Args:
    pipeline: that does them.
    settings: it will sample with.
    wanted: names of `TASKS`; none is all that it can do, and a notice of the
      others.
    style: to blend in; '' is none.

  Raises:
    UserError: it cannot do one of those that are named.
  """
  has = {
    _VIDEO: pipeline.frames(SampleOptions(settings=settings)) > 1,
    _CONDITIONAL: pipeline.takes_pixels,
    _STYLE: bool(style),
    _SSR: "ssr" in pipeline.stages,
    _WINDOWS: windows_of(pipeline, settings) is not None,
  }
  chosen = {}
  for name, task in TASKS.items():
    lacking = [need for need in task.needs if not has[need]]
    if not lacking:
      chosen[name] = task
    elif name in wanted:
      raise UserError(
        option("tasks", name),
        f"needs {lacking[0]}, and there is none",
        "leave it out, or name one too",
      )
    elif not wanted:
      notice(f"{name} is left out: it needs {lacking[0]}")
  return {name: chosen[name] for name in wanted or chosen}
