"""Config files: flags for them, where they are found, and --help_config.

configs/ is a folder of the repository and is not installed as a package. A
wheel contains a copy as lumiere_jax/assets/configs; in a checkout that is a
link to the folder.
"""

from collections.abc import Mapping
from pathlib import Path
import runpy
import sys
import textwrap
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from lumiere_jax.errors import UserError
from lumiere_jax.options import describe

ASSETS = Path(__file__).parent / "assets"

flags.disclaim_key_flags()  # --help lists the flag under the entry module.


def define_config(name: str, default: str | None, text: str):
  """Defines a flag for a config file, such as configs/base.py:tiny.

  Like `config_flags.DEFINE_config_file`, but the file is found by `locate`.
  """
  holder = config_flags.DEFINE_config_file(name, None, text)
  flags.FLAGS[name].parser = _Parser(name)
  if default is not None:
    flags.FLAGS.set_default(name, default)
  return holder


def read_config(path: str) -> ConfigDict:
  """Reads a config file in Python, as flags do: configs/base.py:tiny.

  Values can be set as with flags, then `Experiment.from_config` takes it:

    config = read_config("configs/base.py:tiny")
    config.train.steps = 4
    experiment = Experiment.from_config(config.to_dict())
  """
  file, colon, size = locate(path).partition(":")
  if not Path(file).is_file():
    raise UserError(file, "does not exist", "give configs/base.py or a path")
  get_config = runpy.run_path(file)["get_config"]
  return (get_config(size) if colon else get_config()).lock()


def print_help(cls: type, config: Mapping[str, Any]) -> None:
  """Prints each key of a config (of `cls`) with its value, default and help."""
  for key, text in describe(cls, config, "config"):
    lines = textwrap.wrap(text, 78)
    print(key, *(f"  {line}" for line in lines), sep="\n")


def locate(path: str) -> str:
  """Finds a config file and makes its own package importable.

  A path is relative to the working directory. Where there is no such file, the
  package's copy is taken: `configs/base.py` works anywhere. If the file lies in
  a package, the folder that holds the package is put on `sys.path`, so that
  `from configs import common` works without `python -m` in a checkout. ":SIZE"
  may follow a path. Without such a file, the path is returned unchanged.
  """
  name, colon, size = path.partition(":")
  file = Path(name)
  if not file.is_file():
    file = ASSETS / name
    if not file.is_file():
      return path
  root = folder = file.absolute().parent
  while (root / "__init__.py").is_file():
    root = root.parent
  if root != folder and str(root) not in sys.path:
    sys.path.insert(0, str(root))
  return f"{file}{colon}{size}"


class _Parser(ConfigFileFlagParser):
  """The parser of ml_collections, with `locate` before it."""

  def parse(self, path):
    return super().parse(locate(path))
