"""Shapes of clips and which of them suits a video."""

import pytest

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.video_index import choose_bucket, parse_buckets
from lumiere_jax.errors import UserError


def specs(text):
  return [
    ClipSpec(num_frames=t, fps=16, resolution=(h, w))
    for t, h, w in parse_buckets(text)
  ]


def test_shapes_are_read():
  assert parse_buckets("") == []
  assert parse_buckets(" 80x96x160  16x128x128 ") == [
    (80, 96, 160),
    (16, 128, 128),
  ]
  config = DataConfig(
    num_frames=8, resolution=16, buckets="8x16x16 4x8x24 8x8x24"
  )
  shapes = [(s.num_frames, *s.resolution) for s in config.specs]
  assert shapes == [(8, 16, 16), (4, 8, 24), (8, 8, 24)]  # none twice


@pytest.mark.parametrize(
  "text", ["80x96", "80x96x160,16x8x8", "axbxc", "8X8X8"]
)
def test_shapes_that_cannot_be_read(text):
  with pytest.raises(UserError, match="is not FRAMESxHEIGHTxWIDTH"):
    DataConfig(buckets=text)


def test_frames_of_none_are_refused():
  with pytest.raises(UserError, match="must be above 0"):
    DataConfig(buckets="0x8x8")


def test_longest_then_nearest_aspect_then_largest():
  shapes = specs("16x32x32 16x24x40 8x32x32 8x24x40 8x48x80")
  choose = lambda frames, height, width: choose_bucket(
    shapes, frames, height, width
  )
  assert choose(7, 480, 640) is None
  assert choose(16, 100, 100) == 0
  assert choose(99, 1080, 1920) == 1
  assert choose(15, 100, 90) == 2
  assert choose(15, 1080, 1920) == 4  # as 3 in aspect, and larger
  # sqrt(5/3) = 1.29 parts 1:1 from 5:3, whichever way the video lies.
  assert choose(16, 100, 128) == 0
  assert choose(16, 100, 130) == 1
