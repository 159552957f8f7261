"""Serves a web page that makes videos and pictures from bundles.

python -m lumiere_jax.app --model=BUNDLE

It needs extra packages: pip install -r requirements-app.txt. docs/app.md says
what the page accepts, and what it does not protect from.
"""

import dataclasses

from absl import flags

from lumiere_jax import cli
from lumiere_jax.contrib.web.options import Limits, Options, parse_styles
from lumiere_jax.contrib.web.start import start
from lumiere_jax.flags import define, read
from lumiere_jax.inference.batch import ModelSource
from lumiere_jax.options import check_values, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
  """Where the page is served; see `server.serve`."""

  host: str = setting(
    "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine's."
  )
  port: int = setting(
    7860, "Port to listen on; 0: any free port.", least=0, most=65535
  )
  names: tuple[str, ...] = setting(
    (),
    "Host name that a reverse proxy serves the page under; give it again for "
    "more.",
    name="name",
  )
  root_path: str = setting(
    "", "Path prefix that a reverse proxy adds, such as /lumiere."
  )

  def __post_init__(self):
    check_values(self)


MODELS = define(ModelSource)


STYLE = flags.DEFINE_multi_string(
  "style", [], "NAME=PATH of a style to offer; give it again for another."
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
  address = read(Address, ADDRESS)
  start(read(ModelSource, MODELS), options, **vars(address))


if __name__ == "__main__":
  cli.run(main)
