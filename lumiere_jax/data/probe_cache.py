"""What the videos of a folder hold: decoded to the end once, then remembered.

So that a run that is resumed, or the next stage, begins at once.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import sys
import threading

from lumiere_jax.data.filters import Filters, Stretch, stretches
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.storage.files import user_cache
from lumiere_jax.storage.remote import is_url

_VERSION = 1  # Raise it where the same file would be found to hold another.


_Stamp = list[int]
"""Size and time of change of a file, by which it is known again."""


class ProbeCache:
  """Stretches of videos by name; a file that has changed is decoded anew.

  A line is added as each video is decoded, so that nothing is lost where the
  process is killed. What cannot be used is not remembered: it may be mended.
  """

  def __init__(self, folder: str, filters: Filters, cache: str = ""):
    """Reads what was found before.

    Args:
      folder: that the videos are in; its name tells memories apart.
      filters: what the videos are looked at for.
      cache: folder of the memory; '' is one in the user's cache.
    """
    self._filters = filters
    looks = filters.scene_cuts, filters.min_motion > 0
    place = folder if is_url(folder) else os.path.abspath(folder)
    known = repr((_VERSION, place, looks))
    name = f"{hashlib.sha256(known.encode()).hexdigest()}.jsonl"
    home = Path(cache, "probes") if cache else user_cache("probes")
    self._path = home / name
    self._found = dict(_read(self._path))
    self._lock, self._told = threading.Lock(), False

  def stretches(self, name: str, path: Path) -> list[Stretch]:
    """As `filters.stretches`.

    Args:
      name: of the video in the folder.
      path: of its file, on this machine.

    Raises:
      VideoError: it cannot be used.
    """
    stamp = _stamp(path)
    before, found = self._found.get(name, (None, []))
    if stamp is None or stamp != before:
      found = stretches(path, self._filters)
      self._note(name, stamp, found)
    return found

  def _note(
    self, name: str, stamp: _Stamp | None, found: list[Stretch]
  ) -> None:
    line = json.dumps([name, stamp, [dataclasses.asdict(s) for s in found]])
    try:
      with self._lock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
          file.write(f"\n{line}")  # after a line that a killed process tore
    except OSError as error:
      self._tell(error)

  def _tell(self, error: OSError) -> None:
    """Training can do without: said once, and no reason to stop."""
    if not self._told:
      self._told = True
      print(
        f"{self._path}: cannot be written ({error.strerror}), so videos will "
        "be decoded again the next time; name a folder with config.data.cache",
        file=sys.stderr,
      )


def _read(path: Path) -> Iterator[tuple[str, tuple[_Stamp, list[Stretch]]]]:
  """What whole lines say; the last one of a name counts."""
  try:
    text = path.read_text(errors="replace")
  except OSError:  # none yet, or not ours to read
    return
  for line in text.splitlines():
    try:
      name, stamp, found = json.loads(line)
      yield name, (stamp, [_stretch(values) for values in found])
    except (ValueError, TypeError):  # torn
      continue


def _stretch(values: dict) -> Stretch:
  return Stretch(**values | {"info": VideoInfo(**values["info"])})


def _stamp(path: Path) -> _Stamp | None:
  """None: there is no such file, which probing it says better."""
  try:
    status = path.stat()
  except OSError:
    return None
  return [status.st_size, status.st_mtime_ns]
