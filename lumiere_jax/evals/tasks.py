"""The tasks that a model can be scored on, and what each of them needs."""

from collections.abc import Callable, Sequence
import dataclasses

from lumiere_jax.errors import UserError, notice, option
from lumiere_jax.evals import scoring
from lumiere_jax.evals.scenes import SPLITS
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings

_VIDEO = "a video model"
_CONDITIONAL = "a pixel-conditioned base (stage 'conditional')"
_SSR = "a super-resolution stage"
_WINDOWS = (
  "super-resolution in several windows, so a longer video "
  f"({option('num_frames')})"
)
_STYLE = f"a style of the procedural scenes ({option('style')})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTask:
  """One of `TASKS`.

  Attributes:
    score: (run, **options): adds all results to the `TaskRun`.
    about: explains the columns of its table.
    needs: what the model must have.
    options: keyword arguments of `score`, fields of `EvalRequest`.
    videos: number of videos per counted scene.
  """

  score: Callable[..., None]
  about: str
  needs: tuple[str, ...] = (_VIDEO,)
  options: tuple[str, ...] = ()
  videos: int = 1


TASKS: dict[str, EvalTask] = {
  "text_to_video": EvalTask(
    score=scoring.text_to_video,
    about="Colour, shape and motion of all objects as prompted, read from the "
    "pixels. Unseen: new scenes of trained combinations; held out: of "
    "combinations that were never trained on. Flicker: standard deviation over "
    "time of the background, in levels of 255.",
    needs=(),
    options=("batch_size", "two_objects"),
    videos=len(SPLITS),
  ),
  "rhythm": EvalTask(
    score=scoring.rhythm,
    about="In range: the dominant frequency is 2.7 to 4.4 Hz, that of the "
    "scenes within 10%.",
    options=("batch_size",),
  ),
  "image_to_video": EvalTask(
    score=scoring.image_to_video,
    about="First frame as generated, against the given one; faithful: at "
    "least 26 dB. Displaced: among prompts with displacing motions, the mean "
    "distance from the first position is more than 2 of 32 pixels. Motion: "
    "read as prompted.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "extend": EvalTask(
    score=scoring.extend,
    about="Colour and shape of a clip's object, read in the frames that "
    "continue it; no jump: its step from the last given frame to the first new "
    "one is within 3 of 32 pixels of the real one.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "inpaint": EvalTask(
    score=scoring.inpaint,
    about="Another colour and shape, read in the box around the path of the "
    "original object.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "cinemagraph": EvalTask(
    score=scoring.cinemagraph,
    about="Outside still: no byte outside the region changes. Outside "
    "levels: the largest change there, of 255. Inside moves: in some frame 1% "
    "of the region's pixels differ from the picture.",
    needs=(_VIDEO, _CONDITIONAL),
  ),
  "video_to_video": EvalTask(
    score=scoring.video_to_video,
    about="Edited with a prompt that differs only in colour.",
    options=("strength",),
  ),
  "stylize": EvalTask(
    score=scoring.stylize,
    about="Strength: how much of the style shows in the colours, 0 to 1; "
    "rising: share of prompts whose strength never falls as alpha grows, and "
    "is greater at the end. Motion kept: read as prompted.",
    needs=(_VIDEO, _STYLE),
    options=("style",),
    videos=len(scoring.ALPHAS),
  ),
  "ssr": EvalTask(
    score=scoring.ssr,
    about="Held out: real renders shrunk, super-resolved and compared, beside "
    "bicubic interpolation. Of the base: colour, shape and motion of the "
    "base's own videos all read right after super-resolution, and after "
    "bicubic interpolation.",
    needs=(_VIDEO, _SSR),
    videos=2,
  ),
  "windows": EvalTask(
    score=scoring.windows,
    about="Border ratio: change between frames at window borders over that "
    "elsewhere, of still objects; 1 has no seam. Overlap 2 is MultiDiffusion, "
    "overlap 0 is without it.",
    needs=(_VIDEO, _SSR, _WINDOWS),
    videos=len(scoring.OVERLAPS),
  ),
}
"""In the order in which they are scored."""


def choose(
  pipeline: Pipeline, settings: Settings, wanted: Sequence[str], style: str = ""
) -> dict[str, EvalTask]:
  """The tasks to score.

  Those that are `wanted`, by name; or all that the model can do, with a notice
  about the others. `style` is the one to interpolate; '' is none.
  """
  has = {
    _VIDEO: pipeline.frames(SampleOptions(settings=settings)) > 1,
    _CONDITIONAL: pipeline.takes_pixels,
    _STYLE: bool(style),
    _SSR: "ssr" in pipeline.stages,
    _WINDOWS: scoring.windows_of(pipeline, settings) is not None,
  }
  chosen = {}
  for name, task in TASKS.items():
    unmet = [need for need in task.needs if not has[need]]
    if not unmet:
      chosen[name] = task
    elif name in wanted:
      raise UserError(
        option("tasks", name),
        f"needs {unmet[0]}, which is missing",
        "provide it, or leave the task out",
      )
    elif not wanted:
      notice(f"{name} is skipped: it needs {unmet[0]}")
  return {name: chosen[name] for name in wanted or chosen}
