"""Metric writers: TensorBoard, Weights & Biases."""

from collections.abc import Iterator, Mapping
import dataclasses
import os
from pathlib import Path
import tempfile
import time
from typing import Any, Protocol
import uuid

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from lumiere_jax.errors import UserError
from lumiere_jax.media.video_writer import write_video

_GIF_MAX_FPS = 50.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewClip:
  """A preview clip.

  Attributes:
    name: the same at every step.
    path: its file.
    video: (t, h, w, 3) uint8.
    fps: frames a second.
  """

  name: str
  path: Path
  video: np.ndarray
  fps: float


class MetricWriter(Protocol):
  """A destination of metrics and clips."""

  def scalars(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes all numbers of a record, nested ones too."""
    ...

  def clip(self, step: int, clip: PreviewClip) -> None:
    """Writes one clip."""
    ...

  def close(self) -> None:
    """Flushes everything."""
    ...


class TensorBoard:
  """Event files in a folder; events of a killed run beyond `start` are void.

  Events are written synchronously: the writer thread of tensorboardX's
  SummaryWriter blocks forever once the disk is full.
  """

  def __init__(self, folder: Path, start: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    session = SessionLog(status=SessionLog.START)
    self._write(Event(step=start, session_log=session))

  def scalars(self, step: int, record: Mapping[str, Any]) -> None:
    values = [
      Summary.Value(tag=name, simple_value=value)
      for name, value in flat_numbers(record)
    ]
    self._write(Event(step=step, summary=Summary(value=values)))

  def clip(self, step: int, clip: PreviewClip) -> None:
    """Writes the clip as an animated GIF among the images."""
    with tempfile.TemporaryDirectory() as folder:
      gif = Path(folder) / "clip.gif"
      write_video(gif, clip.video, min(clip.fps, _GIF_MAX_FPS))
      encoded = gif.read_bytes()
    _, height, width, _ = clip.video.shape
    image = Summary.Image(
      height=height, width=width, colorspace=3, encoded_image_string=encoded
    )
    value = Summary.Value(tag=clip.name, image=image)
    self._write(Event(step=step, summary=Summary(value=[value])))

  def close(self) -> None:
    self._file.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._file.write_event(event)
    self._file.flush()


class WeightsAndBiases:
  """A run on Weights & Biases; a resumed run goes on in the same one."""

  def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
    """Opens the run named in the workdir, or a new one."""
    try:
      import wandb
    except ImportError as error:
      raise UserError(
        f"config.train.wandb={project!r}",
        "needs the wandb package",
        "install it with pip install wandb, or leave the option out",
      ) from error
    self._wandb = wandb
    name = workdir / "wandb_run"
    if not name.exists():
      name.write_text(uuid.uuid4().hex[:8])
    try:
      self._run = wandb.init(
        project=project,
        id=name.read_text(),
        name=workdir.name,
        dir=str(workdir),
        config=dict(config),
        resume="allow",
      )
    except wandb.errors.Error as error:  # no key, no network
      raise UserError(
        f"config.train.wandb={project!r}",
        f"cannot be opened ({error})",
        "log in with `wandb login`, set WANDB_MODE=offline, or leave the "
        "option out",
      ) from error

  def scalars(self, step: int, record: Mapping[str, Any]) -> None:
    self._run.log(dict(flat_numbers(record)), step=step)

  def clip(self, step: int, clip: PreviewClip) -> None:
    kind = (
      self._wandb.Image if clip.path.suffix == ".png" else self._wandb.Video
    )
    self._run.log({clip.name: kind(str(clip.path))}, step=step)

  def close(self) -> None:
    self._run.finish()


def flat_numbers(
  record: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, float]]:
  """Numbers in nested mappings and lists, as ('grad_norms/mid', 0.1)."""
  for name, value in record.items():
    if isinstance(value, Mapping):
      yield from flat_numbers(value, f"{prefix}{name}/")
    elif isinstance(value, list):
      yield from flat_numbers(
        {str(i): x for i, x in enumerate(value)}, f"{prefix}{name}/"
      )
    elif isinstance(value, int | float) and name != "step":
      yield prefix + name, float(value)
