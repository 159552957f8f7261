"""Captions by the user's own command, which is run once for each clip."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import BinaryIO

from tqdm import tqdm

from lumiere_jax.data.dataset_report import Report, Row
from lumiere_jax.data.manifest import CLIPS, StoredClip
from lumiere_jax.errors import UserError, VideoError, option
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.storage.array_record import Records
from lumiere_jax.storage.remote import Folder

CAPTIONS = "clip_captions.jsonl"
"""In a prepared folder: the captions that commands have printed."""

_PLACES = "{clip}", "{file}"
_MOST_BYTES = 20_000  # Of a caption.
_LAST_BYTES = 2000  # That are read of stderr.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_Processes = set[subprocess.Popen[bytes]]


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionCommand:
  """A command that prints the caption of a clip."""

  caption_command: str = setting(
    "",
    "Command that prints the caption of a clip, for files without one. {clip} "
    "stands for the prepared clip (mp4 or png); {file}, {start_s} and "
    "{seconds} for its part of the source file. No shell is used. Names of "
    "sub-folders are then not used as captions.",
  )
  caption_timeout: float = setting(
    300.0, "Seconds after which the command is ended.", above=0
  )
  caption_workers: int = setting(
    1, "Number of commands that run at the same time.", least=1
  )

  def __post_init__(self):
    check_values(self)
    field = option("caption_command", self.caption_command)
    words = self.words
    if not words:
      return
    if not any(place in word for word in words for place in _PLACES):
      raise UserError(field, "has no {clip}", "write {clip} for the clip")
    if not shutil.which(words[0]):
      raise UserError(
        field,
        f"no program {words[0]!r} is found",
        "install it, or give its path; a shell is 'sh -c COMMAND'",
      )

  @property
  def words(self) -> list[str]:
    """The command and its arguments."""
    try:
      return shlex.split(self.caption_command)
    except ValueError as error:
      raise UserError(
        option("caption_command", self.caption_command),
        f"cannot be split into words ({error})",
        "close the quotes",
      ) from error

  def run(self, running: _Processes, **values: object) -> str:
    """The caption of a clip, whose `values` replace the {names}.

    Its process is in the set `running` while it runs.

    Raises:
      VideoError: the command failed, took too long, or printed no caption.
    """
    words = self.words
    for name, value in values.items():
      words = [word.replace(f"{{{name}}}", str(value)) for word in words]
    with tempfile.TemporaryFile() as stderr:
      try:
        # A group of its own, so that what the command starts ends with it.
        process = subprocess.Popen(
          words,
          stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE,
          stderr=stderr,
          start_new_session=True,
        )
      except OSError as error:
        raise _failed(f"cannot be started ({error.strerror})") from error
      running.add(process)
      output, late = self._wait(process)
      running.discard(process)
      if late:
        raise _failed(f"took over {self.caption_timeout:g} s, and was ended")
      if len(output) > _MOST_BYTES:
        raise _failed(f"printed more than {_MOST_BYTES:,} bytes")
      if status := process.returncode:
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise _failed(f"{how}{_last_line(stderr)}")
      try:
        caption = " ".join(output.decode("utf-8-sig").split())
      except UnicodeDecodeError as error:
        raise _failed("printed other than UTF-8") from error
      if _CONTROL.search(caption):
        raise _failed(f"printed control characters: {caption[:60]!r}")
      if not caption:
        raise _failed(f"printed nothing{_last_line(stderr)}")
      return caption

  def _wait(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
    """The output, a little over the limit at most, and if time ran out."""
    late = threading.Event()

    def end() -> None:
      late.set()
      _kill(process)

    timer = threading.Timer(self.caption_timeout, end)
    timer.daemon = True
    timer.start()
    try:
      assert process.stdout is not None
      with process.stdout as stdout:
        output = stdout.read(_MOST_BYTES + 1)
      if len(output) > _MOST_BYTES:
        _kill(process)
      process.wait()
    finally:
      timer.cancel()
      _kill(process)
    return output, late.is_set()


def _kill(process: subprocess.Popen[bytes]) -> None:
  with contextlib.suppress(OSError):  # All of them have ended.
    os.killpg(process.pid, signal.SIGKILL)


def _failed(what: str) -> VideoError:
  return VideoError("", f"caption command: {what}")


def _last_line(stderr: BinaryIO) -> str:
  stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _LAST_BYTES))
  lines = stderr.read().decode(errors="replace").split("\n")
  last = next((line for line in reversed(lines) if line.strip()), "")
  text = _CONTROL.sub(" ", last).strip()
  return f": {text[-200:]}" if text else ""


def caption_clips(
  clips: Sequence[StoredClip],
  command: CaptionCommand,
  out: Path,
  local_path: Callable[[str], Path],
  report: Report,
) -> list[StoredClip]:
  """The clips, with captions for those whose caption is empty.

  Captions are kept in `out`, so that a second run does only what is missing.
  Clips for which the command fails are left out and reported.
  """
  kept = dict(_read_kept(out / CAPTIONS, command.caption_command))
  todo = {c.key: c for c in clips if not any(c.captions) and c.key not in kept}
  records = Records(Folder(out), CLIPS)
  failures: dict[str, str] = {}
  processes: _Processes = set()

  def work(clip: StoredClip) -> str | VideoError:
    try:
      return _caption(clip, records[clip.key], command, local_path, processes)
    except VideoError as error:
      return error

  bar = tqdm(total=len(todo), desc="captions", disable=None if todo else True)
  pool = futures.ThreadPoolExecutor(command.caption_workers)
  running = {pool.submit(work, clip): clip.key for clip in todo.values()}
  try:
    with bar, open(out / CAPTIONS, "a", encoding="utf-8") as file:
      for future in futures.as_completed(running):
        key, caption = running[future], future.result()
        if isinstance(caption, VideoError):
          failures[key] = caption.reason
        else:
          kept[key] = caption
          # Begins with a line break: a killed run may leave half a line.
          row = {"key": key, "by": command.caption_command, "caption": caption}
          file.write(f"\n{json.dumps(row, ensure_ascii=False)}")
          file.flush()
        bar.update()
  except OSError as error:
    raise UserError(
      f"{out / CAPTIONS}:",
      f"captions cannot be written ({error.strerror})",
      "make room, and run it again: the captions so far are kept",
    ) from error
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    while not all(future.done() for future in running):  # After Ctrl-C.
      for process in list(processes):
        _kill(process)
      time.sleep(0.05)
  if todo:
    print(
      f"prepared: {len(todo) - len(failures)} captions by "
      f"{command.words[0]}, {len(failures)} failures",
      file=sys.stderr,
    )
  return _captioned(clips, kept, failures, report)


def _captioned(
  clips: Sequence[StoredClip],
  kept: Mapping[str, str],
  failures: Mapping[str, str],
  report: Report,
) -> list[StoredClip]:
  """The clips with a caption; reports the others."""
  captioned = []
  for clip in clips:
    if any(clip.captions):
      captioned.append(clip)
    elif clip.key in kept:
      captioned.append(dataclasses.replace(clip, captions=(kept[clip.key],)))
    else:
      report.add(
        Row(
          file=clip.file,
          used=False,
          reason=failures[clip.key],
          start_s=round(clip.start_s, 3),
          end_s=round(clip.start_s + clip.seconds, 3),
        )
      )
  return captioned


def _caption(
  clip: StoredClip,
  content: bytes,
  command: CaptionCommand,
  local_path: Callable[[str], Path],
  processes: _Processes,
) -> str:
  ending = ".mp4" if clip.seconds else ".png"
  with tempfile.NamedTemporaryFile(suffix=ending) as file:
    file.write(content)
    file.flush()
    return command.run(
      processes,
      clip=file.name,
      start_s=clip.start_s,
      seconds=clip.seconds,
      file=os.path.abspath(local_path(clip.file)),
    )


def _read_kept(path: Path, command: str) -> Iterator[tuple[str, str]]:
  """Captions by this command; incomplete lines are skipped."""
  if not path.exists():
    return
  for line in path.read_text("utf-8", "replace").split("\n"):
    try:
      row = json.loads(line)
      if row["by"] == command:
        yield row["key"], row["caption"]
    except (ValueError, KeyError, TypeError):
      continue
