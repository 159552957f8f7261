"""Keeps the videos that were judged, for people to judge the verdicts."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from lumiere_jax.io.image import contact_sheet, write_image
from lumiere_jax.io.write import write_video
from lumiere_jax.metrics.judged import ALL, Judged
from lumiere_jax.pipelines.told import Clip
from lumiere_jax.typing import UserError

VERDICTS = "verdicts.jsonl"
_GAP = 2  # Pixels of white between a video and what it was made from.


class Keeper:
  """A folder of judged videos.

  TASK/NUMBER.mp4             the video, to the right of what it was made
                              from
  TASK/NUMBER-not-WHAT.png    frames of one that has something wrong
  verdicts.jsonl              of each the prompt and what was found
  """

  def __init__(self, folder: str | os.PathLike, fps: float):
    """Takes an empty folder, or one that is not there.

    Args:
      folder: to fill.
      fps: frames a second of the videos.

    Raises:
      UserError: something is in it.
    """
    check_keep(folder)
    self._folder, self._fps = Path(folder), fps
    self._count: dict[str, int] = {}

  def keep(self, task: str, judged: Judged) -> None:
    """Writes what there is of one video.

    Raises:
      UserError: it cannot be written.
    """
    number = self._count[task] = self._count.get(task, 0) + 1
    shown = _shown(judged)
    path = self._folder / task / f"{number:04d}.mp4"
    write_video(path, shown, self._fps)
    right = judged.verdict.right
    wrong = [name for name in right if not right[name] and name != ALL]
    if wrong:
      name = f"{number:04d}-not-{'-'.join(wrong)}.png"
      write_image(path.with_name(name), contact_sheet(shown))
    line = {
      "task": task,
      "number": number,
      "row": judged.row,
      "prompt": judged.prompt,
      "seed": judged.seed,
      **dataclasses.asdict(judged.verdict),
    }
    with (self._folder / VERDICTS).open("a") as file:
      file.write(json.dumps(line) + "\n")


def check_keep(folder: str | os.PathLike) -> None:
  """Raises a UserError where a folder has something in it."""
  folder = Path(folder)
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise UserError(f"--keep={folder} is not empty; name a new folder")


def _shown(judged: Judged) -> Clip:
  """The video, and to its left what it was made from."""
  if judged.source is None:
    return judged.video
  source = np.broadcast_to(judged.source, judged.video.shape)
  gap = np.full((*judged.video.shape[:2], _GAP, 3), 255, np.uint8)
  return np.concatenate([source, gap, judged.video], axis=2)
