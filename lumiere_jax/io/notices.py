"""What the user should know, and need not mend."""

import sys


def notice(text: str) -> None:
  """Prints one line to stderr: 'notice: ' and the text."""
  print("notice: " + " ".join(text.split()), file=sys.stderr)
