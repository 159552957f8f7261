"""What the user should know, and need not mend."""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import sys

_TELL: contextvars.ContextVar[Callable[[str], object] | None] = (
  contextvars.ContextVar("tell", default=None)
)


def notice(text: str) -> None:
  """Tells one line: to who listens, else to stderr behind 'notice: '."""
  line = " ".join(text.split())
  tell = _TELL.get()
  if tell:
    tell(line)
  else:
    print(f"notice: {line}", file=sys.stderr)


@contextlib.contextmanager
def listening(tell: Callable[[str], object]) -> Iterator[None]:
  """Within it, notices of this thread go to `tell` in place of stderr."""
  token = _TELL.set(tell)
  try:
    yield
  finally:
    _TELL.reset(token)
