"""Repositories on the Hugging Face hub, as folders of this machine."""

import os
from pathlib import Path
import re

from lumiere_jax.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(name: str | os.PathLike) -> bool:
  """Whether it can be `owner/name[@revision]` and not a path of this machine.

  A path whose first folder exists is taken for a misspelt one.
  """
  name = str(name)
  return bool(_NAME.fullmatch(name)) and not Path(name.split("/")[0]).exists()


def fetch(name: str, patterns: tuple[str, ...]) -> Path:
  """The folder of a repository, downloaded unless it is here already.

  Args:
    name: `owner/name`, or `owner/name@revision`.
    patterns: globs of the files that are wanted.

  Raises:
    UserError: it does not exist, may not be read, or the hub is out of reach.
  """
  import huggingface_hub  # slow to import, and seldom needed

  owner_and_name, _, revision = name.partition("@")
  try:
    return Path(
      huggingface_hub.snapshot_download(
        owner_and_name,
        revision=revision or None,
        allow_patterns=list(patterns),
      )
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      name,
      "is no folder here, and could not be fetched from the Hugging "
      f"Face hub ({reason})",
      "check the name, your access and the network",
    ) from error
