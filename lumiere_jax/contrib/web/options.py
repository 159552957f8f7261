"""Options of the web server: limits, styles, where to listen."""

from collections.abc import Mapping
import dataclasses

from lumiere_jax.errors import UserError, option
from lumiere_jax.options import check_values, documented, setting


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """The most that one user may request of the machine at once."""

  max_side: int = setting(
    4096, "Pixels of a side, of uploads and of results.", above=0
  )
  max_seconds: float = setting(
    60.0, "Duration in seconds, of uploads and of results.", above=0
  )
  max_mb: float = setting(
    100.0, "Size of an uploaded file in megabytes (10^6 bytes).", above=0
  )
  max_mpixels: float = setting(
    400.0,
    "Millions of pixels in all frames of a video, read or made. Each takes 3 "
    "bytes of memory, and 12 while it is sampled.",
    above=0,
  )
  max_steps: int = setting(1000, "Sampling steps of a stage.", above=0)

  def __post_init__(self):
    check_values(self)


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How the page behaves.

  Attributes:
    limits: see `Limits`.
    styles: name -> path of a style, for `Pipeline.styled`.
    secret: files and folders that are never served, even inside of the folder
      of uploads and results.
  """

  limits: Limits = dataclasses.field(default_factory=Limits)
  styles: Mapping[str, str] = dataclasses.field(default_factory=dict)
  queue: int = setting(8, "Jobs that may wait.", least=1)
  jobs: int = setting(1, "Jobs that are sampled at the same time.", least=1)
  secret: tuple[str, ...] = ()

  def __post_init__(self):
    check_values(self)

  @property
  def capacity(self) -> int:
    """Jobs that may wait or run."""
    return self.queue + self.jobs


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
  """Where the server listens, and how clients reach it."""

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
    path = self.root_path
    if path and (path[0] != "/" or path[-1] == "/"):
      raise UserError(
        option("root_path", path), "must begin with / and not end with it"
      )


def parse_styles(flags: list[str]) -> dict[str, str]:
  """Parses `NAME=PATH` values of the option `style` into name -> path."""
  styles: dict[str, str] = {}
  for text in flags:
    name, _, path = text.partition("=")
    if not name.strip() or not path:
      raise UserError(
        option("style", text),
        "is not NAME=PATH",
        "give the name to show and the folder of the style, such as "
        f"{option('style', 'watercolour=out/watercolour')}",
      )
    if name in styles:
      raise UserError(
        option("style", text),
        f"uses the name {name} a second time",
        "choose another name",
      )
    styles[name] = path
  return styles
