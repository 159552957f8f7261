"""Keyword options that every task of the pipeline takes."""

from collections.abc import Callable, Sequence
import dataclasses
import inspect
from typing import Any, TypedDict

from lumiere_jax.errors import UserError, option, suggest
from lumiere_jax.inference.cascade import OnProgress, Prompt
from lumiere_jax.inference.settings import DEFAULT_SETTINGS, Settings


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


def check_options(task: Callable, how: SampleOptions) -> None:
  """Rejects the keywords that the `**how` of a task would let pass."""
  known = [*inspect.signature(task).parameters][:-1]
  known += SampleOptions.__annotations__
  for name in how.keys() - {*known}:
    new = _RENAMED.get(name)
    raise UserError(
      f"{task.__name__}():",
      f"unknown option {name!r}{'' if new else suggest(name, known)}",
      f"it is now {new!r}" if new else f"known: {', '.join(known)}",
    )


def settings_of(how: SampleOptions) -> Settings:
  """The sampling settings of the options."""
  return how.get("settings") or DEFAULT_SETTINGS


def with_settings(how: SampleOptions, **changes: Any) -> SampleOptions:
  """The options with changed settings."""
  settings = dataclasses.replace(settings_of(how), **changes)
  return how | {"settings": settings}


def require_prompt(prompt: Prompt) -> None:
  """Raises a UserError where a prompt is empty."""
  prompts = [prompt] if isinstance(prompt, str) else prompt
  if not all(text.strip() for text in prompts):
    raise UserError(
      option("prompt"), "is empty", "say what the video should show"
    )
