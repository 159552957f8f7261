"""Captions made plainer before they are tokenized."""

from collections.abc import Callable

CLEANINGS: dict[str, Callable[[str], str]] = {
  "none": lambda caption: caption,
  "lower": lambda caption: caption.lower().strip(),
}
