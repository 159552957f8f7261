"""Limits and options of the page."""

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
    secret: files and folders that are never served.
  """

  limits: Limits = dataclasses.field(default_factory=Limits)
  styles: Mapping[str, str] = dataclasses.field(default_factory=dict)
  queue: int = setting(8, "Jobs that may wait.", least=1)
  jobs: int = setting(1, "Jobs that are sampled at the same time.", least=1)
  secret: tuple[str, ...] = ()

  def __post_init__(self):
    check_values(self)


def parse_styles(said: list[str]) -> dict[str, str]:
  """Name -> path, of flags --style=NAME=PATH.

  Raises:
    UserError: one lacks its name or path, or a name comes twice.
  """
  styles: dict[str, str] = {}
  for text in said:
    name, _, path = text.partition("=")
    if not name.strip() or not path:
      raise UserError(
        option("style", text),
        "is not NAME=PATH",
        "give the name that is shown and the folder of the style, such "
        f"as {option('style')}=watercolour=out/watercolour",
      )
    if name in styles:
      raise UserError(
        f"{option('style')}={text}:", f"{name} is there twice", "name it anew"
      )
    styles[name] = path
  return styles
