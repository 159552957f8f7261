"""Publishes a bundle on the Hugging Face hub, with its model card."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

from lumiere_jax.errors import (
  UserError,
  foreign_errors,
  format_message,
  notice,
  option,
)
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.card import CARD, NOT_STATED, licences_of, write_card

CLIPS = "clips"
"""The folder of the clips in a repository."""

_SHOWN = (".mp4", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp")
_LOG_IN = "run `hf auth login` or set HF_TOKEN; check the name and the network"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
  """What becomes of a bundle on the hub; see `read` for the arguments."""

  repo: str
  upload: bool
  licence: str
  datasets: Sequence[str]
  scores: Mapping[str, Any] | None
  clips: Mapping[Path, str]


def read(
  repo: str,
  upload: bool,
  licence: str,
  datasets: Sequence[str],
  scores: str,
  clips: Sequence[str],
) -> Publication:
  """Reads and checks everything that can be, before weights are converted.

  Args:
    repo: OWNER/NAME.
    upload: whether to send the files, not only list them.
    licence: of stages that state none.
    datasets: names of repositories on the hub.
    scores: JSON file of the evaluation, or ''.
    clips: FILE=PROMPT each.
  """
  from huggingface_hub import get_token

  _check_name(option("repo", repo), repo)
  for name in datasets:
    _check_name(option("dataset", name), name)
  if "/" not in repo:
    raise UserError(option("repo", repo), "has no owner", "give OWNER/NAME")
  if upload and not get_token():
    raise UserError(option("upload"), "needs a login to the hub", _LOG_IN)
  return Publication(
    repo=repo,
    upload=upload,
    licence=licence,
    datasets=datasets,
    scores=_read_scores(scores) if scores else None,
    clips=dict(map(_parse_clip, clips)),
  )


def _check_name(what: str, name: str) -> None:
  from huggingface_hub.utils import validate_repo_id

  with foreign_errors(lambda why: UserError(what, why, "give OWNER/NAME")):
    validate_repo_id(name)


def _read_scores(path: str) -> dict[str, Any]:
  def error(reason: str) -> UserError:
    return UserError(
      option("scores", path),
      f"is not an evaluation's result ({reason})",
      f"give the JSON file of the evaluate command's {option('out')}",
    )

  with foreign_errors(error):
    scores = json.loads(Path(path).read_text())
    if not isinstance(scores["tasks"], dict):
      raise ValueError("no tasks")
  return scores


def _parse_clip(text: str) -> tuple[Path, str]:
  """The file and the prompt; '=' may be in both."""
  ends = [i for i, character in enumerate(text) if character == "="]
  for end in reversed(ends):
    path, prompt = Path(text[:end]), text[end + 1 :].strip()
    if path.is_file() and prompt:
      break
  else:
    raise UserError(
      option("clip", text),
      "is not a file and its prompt",
      'give FILE="PROMPT", such as fox.mp4="a red fox"',
    )
  if path.suffix.lower() not in _SHOWN:
    raise UserError(
      option("clip", path),
      f"is not one of {', '.join(_SHOWN)}",
      "convert it to one that the hub shows",
    )
  return path, prompt


def publish(bundle: bundles.Bundle, job: Publication) -> list[str]:
  """Writes the card and clips into the bundle, and uploads it if asked.

  Other files of the folder are not sent.

  Returns:
    Lines that list the files.
  """
  folder = bundle.folder
  with locked(folder):
    bundle = _without_local_paths(bundle)
    (folder / CLIPS).mkdir(exist_ok=True)
    clips = {
      f"{CLIPS}/{bundles.link(path.resolve(), folder / CLIPS)}": prompt
      for path, prompt in job.clips.items()
    }
    licences = licences_of(bundle, job.licence)
    if NOT_STATED in licences.values():
      notice(f"the card states no licence: give {option('licence')}")
    if not write_card(
      bundle,
      name=job.repo,
      licence=job.licence,
      datasets=job.datasets,
      scores=job.scores,
      clips=clips,
    ):
      notice(f"{folder / CARD} is your own and left as it is")
    named = [bundles.INDEX, CARD, *clips]
    for part in bundle.parts.values():
      named += [*part.tensors, *part.files.values()]
    sizes = {name: (folder / name).stat().st_size for name in sorted({*named})}
    done = _upload(folder, job.repo, [*sizes]) if job.upload else ""
  lines = [f"{size:>15,}  {name}" for name, size in sizes.items()]
  lines.append(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
  if done:
    return [*lines, f"uploaded to {done}"]
  hint = f"not sent to {job.repo}; {option('upload')} sends them"
  return [*lines, f"{folder}: {format_message(hint)}"]


def _without_local_paths(bundle: bundles.Bundle) -> bundles.Bundle:
  """The bundle, rewritten so that no stage names a folder of this machine."""
  parts = dict(bundle.parts)
  for name, part in parts.items():
    data = Path(str(part.meta.get("trained_on", "")))
    if data.is_absolute():
      meta = {**part.meta, "trained_on": data.name}
      parts[name] = dataclasses.replace(part, meta=meta)
  if parts != bundle.parts:
    bundles.write(bundle.folder, parts, bundle.about)
  return dataclasses.replace(bundle, parts=parts)


def _upload(folder: Path, repo: str, names: Sequence[str]) -> str:
  """Sends files in one commit; returns its address."""
  from huggingface_hub import CommitOperationAdd, HfApi

  with foreign_errors(
    lambda why: UserError(
      option("repo", repo), f"could not be uploaded ({why})", _LOG_IN
    )
  ):
    api = HfApi()
    api.create_repo(repo, exist_ok=True)
    commit = api.create_commit(
      repo,
      [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
        for name in names
      ],
      commit_message="Upload with lumiere_jax",
    )
  return str(commit.commit_url)
