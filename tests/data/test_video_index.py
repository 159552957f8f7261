"""Shapes of clips, and the choice of one for a video."""

import pytest

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.video_index import choose_bucket, parse_buckets
from lumiere_jax.errors import UserError
from tests.data.videos import spec


def test_shapes_are_parsed():
  assert parse_buckets("") == []
  assert parse_buckets(" 80x96x160  16x128x128 ") == [
    (80, 96, 160),
    (16, 128, 128),
  ]
  config = DataConfig(
    num_frames=8, resolution=16, buckets="8x16x16 4x8x24 8x8x24"
  )
  shapes = [(s.num_frames, *s.resolution) for s in config.specs]
  assert shapes == [(8, 16, 16), (4, 8, 24), (8, 8, 24)]  # Without duplicates.


@pytest.mark.parametrize(
  ("text", "message"),
  [
    *((t, "is not FRAMESxHEIGHTxWIDTH") for t in ("80x96", "axbxc", "8X8X8")),
    ("80x96x160,16x8x8", "is not FRAMESxHEIGHTxWIDTH"),
    ("0x8x8", "above 0"),
  ],
)
def test_unusable_shapes(text, message):
  with pytest.raises(UserError, match=message):
    DataConfig(buckets=text)


def test_longest_then_nearest_aspect_then_largest():
  shapes = parse_buckets("16x32x32 16x24x40 8x32x32 8x24x40 8x48x80")
  specs = [spec(*shape) for shape in shapes]
  choose = lambda *size: choose_bucket(specs, *size)
  assert choose(7, 480, 640) is None
  assert choose(16, 100, 100) == 0
  assert choose(99, 1080, 1920) == 1
  assert choose(15, 100, 90) == 2
  assert choose(15, 1080, 1920) == 4  # As 3 in aspect, and larger.
  # sqrt(5/3) = 1.29 separates 1:1 from 5:3, in landscape and portrait.
  assert choose(16, 100, 128) == 0
  assert choose(16, 100, 130) == 1
