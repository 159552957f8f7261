"""Random texts of many scripts, the same on every machine."""

from collections.abc import Iterator
import random

WORDS = (
  *("the", "cat", "runs", "slowly.", "Quick", "photograph,", "VIDEO", "café"),
  *("naïve", "Straße", "35mm", "3.5", "don't", "(what?)", "https://x.y/z"),
  *("e\u0301te\u0301", "世界", "スノーボード", "Москва", "ﬁsh", "½", "™", "🙂"),
  "👩\u200d👩\u200d👧",
)
SPACES = ("", "", " ", " ", "  ", "\n", "\t", "\u00a0", "\u3000")

# Ranges of code points; the first has the weight of nine. They exclude
# combining characters (marks, joiners, skin tones, Hangul parts), U+0085,
# primes (U+2032 to U+2034, U+2057) and dot leaders (U+2024 to U+2026), for
# reasons given in tests/parity/test_t5_parity.py.
RANGES = (
  ((0x20, 0x7E),) * 9
  + ((0x01, 0x1F), (0x7F, 0x84), (0x86, 0xAC), (0xAE, 0xFF))
  + ((0x100, 0x2AF), (0x370, 0x482), (0x48A, 0x52F), (0x5D0, 0x5EA))
  + ((0x620, 0x64A), (0x904, 0x939), (0xE01, 0xE30), (0x1E00, 0x1FFF))
  + ((0x2000, 0x200A), (0x2010, 0x2023), (0x2027, 0x2029), (0x2035, 0x2056))
  + ((0x2070, 0x20BF), (0x2100, 0x27BF), (0x3000, 0x3029), (0x3041, 0x3096))
  + ((0x30A1, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF))
  + ((0xF900, 0xFAFF), (0xFB00, 0xFB06), (0xFE30, 0xFE6B), (0xFF01, 0xFF9D))
  + ((0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F3FA))
  + ((0x1F400, 0x1FAFF),)
)


def mixed_strings(count: int, seed: int = 0) -> list[str]:
  """Strings of 0 to 12 words or runs of characters, with varied spaces."""
  rng = random.Random(seed)
  return ["".join(_pieces(rng)) for _ in range(count)]


def compositions(snippets: list[str], count: int, seed: int = 0) -> list[str]:
  """Strings of 1 to 8 of the snippets, some separated by spaces."""
  rng = random.Random(seed)
  some = lambda: _pick(rng, snippets) + _pick(rng, ("", "", " "))
  return [
    "".join(some() for _ in range(_below(rng, 8) + 1)) for _ in range(count)
  ]


def _below(rng: random.Random, limit: int) -> int:
  # Only random() is guaranteed never to change.
  return int(rng.random() * limit)


def _pick(rng: random.Random, among):
  return among[_below(rng, len(among))]


def _pieces(rng: random.Random) -> Iterator[str]:
  for _ in range(_below(rng, 13)):
    if rng.random() < 0.4:
      yield _pick(rng, WORDS)
    else:
      low, high = _pick(rng, RANGES)
      for _ in range(1 + _below(rng, 5)):
        yield chr(low + _below(rng, high - low + 1))
    yield _pick(rng, SPACES)
