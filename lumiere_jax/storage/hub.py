"""Downloads repositories from the Hugging Face hub."""

import os
from pathlib import Path
import re

from lumiere_jax.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(name: str | os.PathLike) -> bool:
  """Whether `name` can be `owner/name[@revision]` rather than a local path.

  If its first folder exists, it is taken for a misspelt path.
  """
  name = str(name)
  return bool(_NAME.fullmatch(name)) and not Path(name.split("/")[0]).exists()


def fetch(name: str, patterns: tuple[str, ...]) -> Path:
  """The local folder of a repository, downloaded on first use.

  Args:
    name: `owner/name`, or `owner/name@revision`.
    patterns: globs of the files to download.
  """
  import huggingface_hub  # slow to import and rarely needed

  owner_and_name, _, revision = name.partition("@")
  try:
    return Path(
      huggingface_hub.snapshot_download(
        owner_and_name, revision=revision or None, allow_patterns=list(patterns)
      )
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      name,
      "is no local folder and could not be downloaded from the Hugging Face "
      f"hub ({reason})",
      "check the name, your access and the network",
    ) from error
