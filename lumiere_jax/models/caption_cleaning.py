"""Caption cleaning before tokenization, as in DeepFloyd IF.

IF was trained on cleaned web captions and cleans prompts in the same way. The
rules are reproduced exactly, including oddities and order: any difference would
change the prompt.
"""

from collections.abc import Callable
import html
import io
import re
import urllib.parse

from bs4 import BeautifulSoup
from bs4.exceptions import ParserRejectedMarkup
import ftfy

Step = Callable[[str], str]

_DASHES = (
  "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
  "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

_MARKS = "#®•©™&@·º½¾¿¡§~()[]{}|/*\\"
_SITE = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"


def _sub(pattern: str, to: str = "") -> Step:
  compiled = re.compile(pattern)
  return lambda text: compiled.sub(to, text)


def _address(scheme: str) -> Step:
  return _sub(rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{_SITE})")


def _visible(text: str) -> str:
  """The text of a piece of HTML."""
  try:
    # Passed as a file: a string that looks like a path raises a warning.
    return BeautifulSoup(io.StringIO(text, newline=""), "html.parser").text
  except ParserRejectedMarkup:
    return text


def _split_hyphens(text: str) -> str:
  """Replaces hyphens and underscores by spaces if there are more than three."""
  return (
    re.sub("[-_]", " ", text) if len(re.findall("[-_]", text)) > 3 else text
  )


_STEPS: tuple[Step, ...] = (
  # URL encoding, HTML and web addresses.
  urllib.parse.unquote_plus,
  str.strip,
  str.lower,
  _sub("<person>", "person"),
  _address("https?"),
  _address("www"),
  _visible,
  _sub(r"@\w+\b"),  # User names.
  # Characters: removes Chinese ones, normalises dashes and quotes.
  _sub("[\u31c0-\u9fff]+"),
  _sub(f"[{_DASHES}]+", "-"),
  _sub("[`´«»“”¨]", '"'),
  _sub("[‘’]", "'"),
  _sub("&quot;?"),
  _sub("&amp"),
  # Numbers, addresses and file names.
  _sub(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses.
  _sub(r"\d:\d\d\s+$"),
  _sub(r"\\n", " "),
  _sub(r"#\d{1,3}\b"),
  _sub(r"#\d{5,}\b"),
  _sub(r"\b\d{6,}\b"),
  _sub(rf"\S+\.{_FILES}"),
  # Repeated and special punctuation.
  _sub("[\"']{2,}", '"'),
  _sub(r"\.{2,}", " "),
  _sub(f"[{re.escape(_MARKS)}]+", " "),
  _sub(r"\s+\.\s+", " "),
  _split_hyphens,
  # Broken encodings.
  ftfy.fix_text,
  html.unescape,
  html.unescape,
  # Product codes and shop phrases.
  _sub(r"\b[a-zA-Z]{1,3}\d{3,15}\b"),
  _sub(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b"),
  _sub(r"\b\d+[a-zA-Z]+\d+\b"),
  _sub(r"(worldwide\s+)?(free\s+)?shipping"),
  _sub(r"(free\s)?download(\sfree)?"),
  _sub(r"\bclick\b\s(?:for|on)\s\w+"),
  _sub(rf"\b{_FILES}(\simages?)?"),
  _sub(r"\bpage\s+\d+\b"),
  _sub(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
  _sub(r"\b\d+\.?\d*[xх×]\d+\.?\d*\b"),  # Sizes; the second x is Cyrillic.
  # White space, and punctuation at the ends.
  _sub(r"\b\s+:\s+", ": "),
  _sub(r"(\D[,./])\b", r"\1 "),
  _sub(r"\s+", " "),
  _sub(r"^[\"']([\w\W]+)[\"']$", r"\1"),
  _sub(r"^['_,\-:;]"),
  _sub(r"['_,\-:+]$"),
  _sub(r"^\.\S+$"),
  str.strip,
)


def lower(caption: str) -> str:
  """IF's treatment of prompts without cleaning."""
  return caption.lower().strip()


def clean(caption: str) -> str:
  """IF's prompt cleaning: its rules, applied twice."""
  for step in _STEPS * 2:
    caption = step(caption)
  return caption


CLEANINGS: dict[str, Step] = {
  "none": lambda caption: caption,
  "lower": lower,
  "if": clean,
}
"""Cleanings by their names in configs and bundles."""
