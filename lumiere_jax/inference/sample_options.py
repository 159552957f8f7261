"""Keyword options that every task of the pipeline takes."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import inspect
from typing import Any, TypedDict

import numpy as np

from lumiere_jax.errors import UserError, option, suggest
from lumiere_jax.inference.cascade import OnProgress
from lumiere_jax.inference.settings import Settings

Prompt = str | Sequence[str]


class SampleOptions(TypedDict, total=False):
  """Keyword options of every task.

  Attributes:
    seed: one seed, one video; several, one video each.
    negative_prompt: what to steer away from, instead of "no caption".
    settings: sampling settings.
    on_progress: called every few steps, besides the progress bar.
  """

  seed: int | Sequence[int]
  negative_prompt: str
  settings: Settings | None
  on_progress: OnProgress | None


_RENAMED = {"watch": "on_progress"}


def check_options(method: Callable) -> Callable:
  """Decorator of a task: rejects keywords that `**how` would let pass."""
  own = [*inspect.signature(method).parameters][1:-1]
  known = [*own, *SampleOptions.__annotations__]

  @functools.wraps(method)
  def checked(self, *args, **how):
    for name in how.keys() - {*known}:
      new = _RENAMED.get(name)
      raise UserError(
        f"{method.__name__}():",
        f"unknown option {name!r}{'' if new else suggest(name, known)}",
        f"it is now {new!r}" if new else f"known: {', '.join(known)}",
      )
    return method(self, *args, **how)

  return checked


def with_settings(how: SampleOptions, **changes: Any) -> SampleOptions:
  """The options with changed settings."""
  settings = how.get("settings") or Settings()
  return how | {"settings": dataclasses.replace(settings, **changes)}


def requests(
  prompt: Prompt, how: SampleOptions
) -> tuple[list[str], list[int], bool]:
  """Prompts and seeds, one each, and whether both were single."""
  seed = how.get("seed", 0)
  single_seed = isinstance(seed, int | np.integer)
  prompts = [prompt] if isinstance(prompt, str) else list(prompt)
  seeds = [seed] if single_seed else list(seed)
  count = max(len(prompts), len(seeds))
  if len(prompts) == 1:
    prompts *= count
  if single_seed:
    seeds = [seed + k for k in range(count)]
  if len(prompts) != len(seeds):
    raise UserError(
      "", f"{len(prompts)} prompts and {len(seeds)} seeds", "give one for each"
    )
  return prompts, seeds, isinstance(prompt, str) and single_seed


def require_prompt(prompt: Prompt) -> None:
  """Raises a UserError where a prompt is empty."""
  prompts = [prompt] if isinstance(prompt, str) else prompt
  if not all(text.strip() for text in prompts):
    raise UserError(
      option("prompt"), "is empty", "say what the video should show"
    )
