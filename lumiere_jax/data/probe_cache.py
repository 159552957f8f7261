"""A cache of probed videos, so that each is decoded to the end only once."""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import sys
import threading

from lumiere_jax.data.filters import Filters, Shot, probe_shots
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.storage.files import user_cache
from lumiere_jax.storage.remote import is_url

_VERSION = 2  # Raise it when probing the same file gives another result.
_Stamp = list[int]
"""Size and modification time of a file."""


class ProbeCache:
  """The shots of videos by file name; a changed file is probed again.

  Each probed video appends a line, so a killed process loses nothing. Errors
  are not cached, because the file may be repaired.
  """

  def __init__(self, folder: str, filters: Filters, cache: str = ""):
    """Reads the cached probes of a folder of videos.

    Each folder has a cache file of its own in `cache`, or the user's cache.
    """
    self._filters = filters
    place = folder if is_url(folder) else os.path.abspath(folder)
    settings = filters.scene_cuts, filters.min_motion > 0
    key = repr((_VERSION, place, settings))
    name = f"{hashlib.sha256(key.encode()).hexdigest()}.jsonl"
    home = Path(cache, "probes") if cache else user_cache("probes")
    self._path = home / name
    self._shots = dict(_read(self._path))
    self._lock, self._warned = threading.Lock(), False

  def probe_shots(self, name: str, path: Path) -> list[Shot]:
    """As `filters.probe_shots`, from the cache if the file has not changed.

    Raises:
      VideoError: the video of this name, at `path`, cannot be used.
    """
    stamp = _stamp(path)
    cached_stamp, shots = self._shots.get(name, (None, []))
    if stamp is None or stamp != cached_stamp:
      shots = probe_shots(path, self._filters)
      self._append([name, stamp, [dataclasses.asdict(s) for s in shots]])
    return shots

  def _append(self, row: list) -> None:
    try:
      with self._lock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
          # Begins with a line break: a killed process may leave half a line.
          file.write(f"\n{json.dumps(row)}")
    except OSError as error:
      if not self._warned:
        self._warned = True
        print(
          f"{self._path}: cannot be written ({error.strerror}), so videos will "
          "be decoded again next time; choose a folder with config.data.cache",
          file=sys.stderr,
        )


def _read(path: Path) -> Iterator[tuple[str, tuple[_Stamp, list[Shot]]]]:
  """The valid lines; the last one for a name counts."""
  try:
    text = path.read_text(errors="replace")
  except OSError:  # It does not exist yet, or is not readable.
    return
  for line in text.splitlines():
    try:
      name, stamp, shots = json.loads(line)
      yield name, (stamp, [_shot(values) for values in shots])
    except (ValueError, TypeError):  # An incomplete line.
      continue


def _shot(values: dict) -> Shot:
  info = VideoInfo(**values["info"] | {"breaks_s": ()})  # a shot has none
  return Shot(**values | {"info": info})


def _stamp(path: Path) -> _Stamp | None:
  """None if the file is missing; probing it raises the better error."""
  try:
    status = path.stat()
  except OSError:
    return None
  return [status.st_size, status.st_mtime_ns]
