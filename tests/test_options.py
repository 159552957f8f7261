"""Options of dataclasses, and the flags that are made from them."""

import dataclasses
import math
import re

from absl import flags as absl_flags
import pytest

from lumiere_jax import flags
from lumiere_jax.config_files import print_help, read_config
from lumiere_jax.data.masks import PATTERNS
from lumiere_jax.errors import UserError
from lumiere_jax.evals.runner import EvalRequest
from lumiere_jax.inference.batch import Output, SampleRequest
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.tasks import TASKS
from lumiere_jax.models.attention import KERNELS
from lumiere_jax.options import check_values, help_of, options_of, setting
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import PARENTS
from lumiere_jax.training.config import Experiment
from tests.conftest import run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """An example.

  Attributes:
    plain: is no option, and is
      described in two lines.
  """

  plain: int = 0
  whole: int = setting(1, "A number.", least=1)
  part: float | None = setting(None, "A fraction.", least=0, below=1)
  kind: str = setting("a", "A letter.", choices=("a", "bee"), name="letter")
  files: tuple[str, ...] = setting((), "Files.", name="file")
  names: tuple[str, ...] = setting((), "Names.", comma=True)
  size: tuple[int, int] | None = setting(None, "HEIGHT,WIDTH.")
  interval: tuple[float, float] = setting((0.0, 1.0), "LOW,HIGH.")
  mesh: MeshConfig | None = setting(None, "DATA,FSDP,SPACE.")
  text: str = setting(help="Some text.")
  fast: bool = setting(False, "Fast.")

  def __post_init__(self):
    check_values(self)


def parse(*argv, **how) -> Example:
  """An `Example` from a command line."""
  values = absl_flags.FlagValues()
  holders = flags.define(Example, into=values, **how)
  values(["program", *argv])
  return flags.read(Example, holders)


def test_flags_have_the_defaults_and_types_of_fields():
  assert parse() == Example(text="")
  assert parse(
    "--whole=3",
    "--part=0.5",
    "--letter=bee",
    "--file=a,b",
    "--file=c",
    "--names=d,e",
    "--size=3,4",
    "--interval=0.5,1",
    "--mesh=2,1,-1",
    "--text=x",
    "--fast",
  ) == Example(
    whole=3,
    part=0.5,
    kind="bee",
    files=("a,b", "c"),
    names=("d", "e"),
    size=(3, 4),
    interval=(0.5, 1.0),
    mesh=MeshConfig(data=2, fsdp=1, space=-1),
    text="x",
    fast=True,
  )


def test_flags_of_some_fields_and_of_other_names():
  names = {"whole": "entire"}
  made = parse(
    "--entire=4", "--plain=2", only=("whole", "plain", "text"), names=names
  )
  assert made == Example(whole=4, plain=2, text="")


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--size=3", "two numbers are needed"),
    ("--interval=a,b", "two numbers are needed"),
    ("--mesh=1,2", "three numbers are needed"),
    ("--whole=x", "whole"),
  ],
)
def test_flags_that_cannot_be_read(flag, words):
  with pytest.raises(absl_flags.IllegalFlagValueError, match=words):
    parse(flag)


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"whole": 0}, "whole=0 must be at least 1"),
    ({"part": 1.0}, "part=1.0 must be at least 0 and below 1"),
    ({"part": math.nan}, "part=nan must be"),
    ({"kind": "be"}, "letter='be' is not one of a, bee .did you mean \"bee\""),
  ],
)
def test_values_out_of_range(values, words):
  with pytest.raises(UserError, match=words):
    Example(text="", **values)


def test_help_is_of_metadata_or_of_the_docstring():
  helps = help_of(Example)
  assert helps["whole"] == "A number."
  assert helps["plain"] == "Is no option, and is described in two lines."


def test_docstrings_list_the_options():
  text = Settings.__doc__
  assert "\n    ssr_steps: Sampling steps of super-resolution. Def" in text
  assert "\n    chunk: steps between" in text
  assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
  "cls", [Settings, Output, SampleRequest, EvalRequest, *TASKS.values()]
)
def test_every_option_has_help(cls):
  for name, info in options_of(cls).items():
    assert info.help.endswith("."), name


def test_every_key_of_a_config_has_help(capsys):
  print_help(Experiment, read_config("configs/base.py:tiny").to_dict())
  printed = capsys.readouterr().out
  keys = [line for line in printed.splitlines() if line[:1] != " "]
  assert printed.count("\n  ") >= len(keys)
  assert "config.train.steps = 20 (required)" in keys
  assert "config.train.keep = 3 (default 3)" in keys
  known = [key.partition(" = ")[0] for key in keys]
  assert "config.model.temporal.resample" in known
  assert len(known) == len(set(known)) > 80
  names = re.findall(r"'(\w+)'", printed)
  assert {*PARENTS, *KERNELS, *PATTERNS} <= set(names)


def test_help_of_a_config_is_a_command():
  result = run_command("main", "--config=configs/ssr.py", "--help_config")
  assert result.returncode == 0, result.stderr
  assert "config.upscale = 8 (default 1)\n  " in result.stdout
