"""What `sample` is asked for, checked, done and written."""

import dataclasses

from lumiere_jax.io.image import (
  check_image_output,
  contact_sheet,
  write_image,
)
from lumiere_jax.io.write import check_output, write_video
from lumiere_jax.parallel.agree import is_first
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.pipelines.cascade import Pipeline
from lumiere_jax.pipelines.settings import Settings
from lumiere_jax.typing import UserError, check_choice

TASKS = {"text_to_video": "video.mp4", "text_to_image": "image.png"}
"""What can be made, and where it is written to unless one says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One video or picture to make.

  Attributes:
    models: bundles or workdirs; each adds the stages the others lack.
    task: one of `TASKS`.
    prompt: what to show.
    negative_prompt: what to steer away from.
    seed: one seed gives one video.
    out: file or folder to write; '' is the one in `TASKS`.
    contact_sheet: picture of frames to write; '' is none.
    settings: how to sample.
    adapters: low-rank adapters to merge into the stages they belong to.
    adapter_scale: how much of them.
    mesh: how the devices share the work; None: one does it.
  """

  models: tuple[str, ...]
  task: str
  prompt: str
  negative_prompt: str
  seed: int
  out: str
  contact_sheet: str
  settings: Settings
  adapters: tuple[str, ...] = ()
  adapter_scale: float = 1.0
  mesh: MeshConfig | None = None


def fulfil(request: Request) -> None:
  """Makes it and writes it; what cannot work fails before sampling.

  Raises:
    UserError: a flag or a bundle cannot be used.
  """
  if not request.models:
    raise UserError(
      "--model is missing; give a bundle, or the workdir of a training run"
    )
  check_choice("--task", request.task, TASKS)
  out = request.out or TASKS[request.task]
  picture = request.task == "text_to_image"
  (check_image_output if picture else check_output)(out)
  if request.contact_sheet:
    check_image_output(request.contact_sheet)
  pipeline = Pipeline.from_pretrained(
    *request.models,
    adapters=request.adapters,
    adapter_scale=request.adapter_scale,
    mesh=request.mesh,
  )
  make = pipeline.text_to_image if picture else pipeline.text_to_video
  made = make(
    [request.prompt],
    seeds=[request.seed],
    negative_prompt=request.negative_prompt,
    settings=request.settings,
  )[0]
  if not is_first():
    return
  size = f"{made.shape[-2]}x{made.shape[-3]}"
  if picture:
    write_image(out, made)
    print(f"{out}: {size}")
    return
  write_video(out, made, pipeline.fps)
  print(
    f"{out}: {len(made)} frames of {size} at {pipeline.fps:g} frames a second"
  )
  if request.contact_sheet:
    write_image(request.contact_sheet, contact_sheet(made))
    print(request.contact_sheet)
