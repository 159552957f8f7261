"""What the page lets in, and what it offers."""

from collections.abc import Mapping
import dataclasses

from lumiere_jax.errors import UserError, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """The most that one person may ask of the machine at once.

  Attributes:
    max_side: pixels of a side, of what is uploaded and of what is made.
    max_seconds: length, of what is uploaded and of what is made.
    max_mb: megabytes (10^6 bytes) of an uploaded file.
    max_mpixels: millions of pixels in all frames together that a video may
      have in memory, read or made; each takes 3 bytes, and 12 while it is made.
    max_steps: sampling steps of a stage.
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
  """How the page behaves.

  Attributes:
    limits: see `Limits`.
    styles: name -> path of a style, for `Pipeline.styled`.
    queue: jobs that may wait.
    jobs: jobs that are sampled at a time.
    secret: files and folders that are never served, whatever else holds.
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
