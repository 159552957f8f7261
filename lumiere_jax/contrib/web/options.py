"""Options of the web server: what to load, where to listen, limits, styles."""

from collections.abc import Mapping
import dataclasses

from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits on a single job.

  Attributes:
    max_side: pixels per side of uploads and results.
    max_seconds: length of uploads and results.
    max_mb: megabytes (10^6 bytes) of an uploaded file.
    max_mpixels: megapixels over all frames of a video that is read or
      generated; each pixel takes 3 bytes of memory, and 12 while it is sampled.
    max_steps: sampling steps per stage.
  """

  max_side: int = 4096
  max_seconds: float = 60.0
  max_mb: float = 100.0
  max_mpixels: float = 400.0
  max_steps: int = 1000

  def __post_init__(self):
    for name, value in vars(self).items():
      if not value > 0:
        raise UserError(option(name, f"{value:g}"), "must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Options of the page.

  Attributes:
    limits: see `Limits`.
    styles: name -> path of a style, for `Pipeline.styled`.
    queue: jobs that may wait.
    jobs: jobs that are sampled at the same time.
    secret: files and folders that are never served, even inside of the folder
      of uploads and results.
  """

  limits: Limits = dataclasses.field(default_factory=Limits)
  styles: Mapping[str, str] = dataclasses.field(default_factory=dict)
  queue: int = 8
  jobs: int = 1
  secret: tuple[str, ...] = ()

  def __post_init__(self):
    for name in ("queue", "jobs"):
      if getattr(self, name) < 1:
        raise UserError(option(name, getattr(self, name)), "must be at least 1")

  @property
  def capacity(self) -> int:
    """Jobs that may wait or run."""
    return self.queue + self.jobs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The pipeline to load.

  Attributes:
    models: bundles or workdirs; each adds the stages that the others lack.
    adapters: low-rank adapters to merge into the stages they belong to.
    adapter_scale: weight of the adapters; 1 is as trained.
    mesh: shards the work over the devices of this machine; None: one device.
  """

  models: tuple[str, ...]
  adapters: tuple[str, ...] = ()
  adapter_scale: float = 1.0
  mesh: MeshConfig | None = None

  def load(self) -> Pipeline:
    """Loads it with `Pipeline.from_pretrained`."""
    return Pipeline.from_pretrained(
      *self.models,
      adapters=self.adapters,
      adapter_scale=self.adapter_scale,
      mesh=self.mesh,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
  """Where the server listens, and how clients reach it.

  Attributes:
    host: address to listen on.
    port: port to listen on; 0: any free port.
    names: further host names in requests, such as a reverse proxy's.
    root_path: path prefix that a reverse proxy strips, such as '/lumiere'.
  """

  host: str = "127.0.0.1"
  port: int = 7860
  names: tuple[str, ...] = ()
  root_path: str = ""

  def __post_init__(self):
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
