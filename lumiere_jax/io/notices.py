"""What the user should know and need not mend."""

import sys


def notice(text: str) -> None:
  """One line on stderr."""
  print(f"notice: {text}", file=sys.stderr)
