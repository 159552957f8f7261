"""Serves a web page that makes videos and pictures from bundles.

python -m lumiere_jax.app --model=BUNDLE

It needs extra packages: pip install -r requirements-app.txt. docs/app.md says
what the page accepts, and what it does not protect from.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.contrib.web.options import (
  Address,
  Limits,
  Options,
  parse_styles,
)
from lumiere_jax.contrib.web.server import start
from lumiere_jax.flags import define, read
from lumiere_jax.inference.batch import ModelSource

MODELS = define(ModelSource)
STYLE = flags.DEFINE_multi_string(
  "style", [], "NAME=PATH of a style to offer; give it again for more."
)
ADDRESS = define(Address)
OPTIONS = define(Options)
LIMITS = define(Limits)


def main(argv: list[str]) -> None:
  """Reads the flags and serves the page."""
  del argv
  options = read(
    Options,
    OPTIONS,
    limits=read(Limits, LIMITS),
    styles=parse_styles(STYLE.value),
  )
  start(read(ModelSource, MODELS), options, read(Address, ADDRESS))


if __name__ == "__main__":
  cli.run(main)
