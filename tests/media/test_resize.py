"""Frames become upright RGB of the right size and colours."""

from fractions import Fraction

import numpy as np
from PIL import Image
import pytest

from lumiere_jax.media.video_reader import probe, read_clip, read_video
from tests.media.encoding import encode, plain

CORNERS = np.array(
  [[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [200, 200, 200]]], np.uint8
)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_is_respected(tmp_path, degrees, mirror):
  video = CORNERS.repeat(24, 0).repeat(32, 1)[None].repeat(2, 0)
  path = encode(
    tmp_path / "x.mp4",
    video,
    kind="h264.mp4",
    setup=lambda s: s.set_display_rotation(degrees, hflip=mirror),
  )
  upright = np.rot90(CORNERS, degrees // 90)
  upright = upright[:, ::-1] if mirror else upright
  size = (64, 48) if degrees % 180 else (48, 64)
  info = probe(path)
  assert (info.height, info.width) == size
  whole = read_clip(path, start_s=0, num_frames=1, fps=25)[0].astype(int)
  assert whole.shape[:2] == size
  centres = whole[size[0] // 4 :: size[0] // 2, size[1] // 4 :: size[1] // 2]
  np.testing.assert_allclose(centres, upright, atol=12)
  tall = read_clip(
    path, start_s=0, num_frames=1, fps=25, resolution=(40, 20), crop=(0, 0)
  )[0]
  assert tall.shape == (40, 20, 3)
  np.testing.assert_allclose(tall[5, 3].astype(int), upright[0, 0], atol=12)
  assert read_video(path)[0].shape == (2, *size, 3)


def test_pixels_are_made_square(tmp_path):
  def wide(stream):
    stream.codec_context.sample_aspect_ratio = Fraction(2)

  path = encode(tmp_path / "x.mp4", plain(2), kind="h264.mp4", setup=wide)
  assert (probe(path).height, probe(path).width) == (48, 192)
  clip = read_clip(path, start_s=0, num_frames=1, fps=25)
  assert clip.shape == (1, 48, 192, 3)


def ramp(height, width):
  """Red grows to the right, green downward."""
  y, x = np.mgrid[:height, :width]
  image = np.stack([x * 255 / width, y * 255 / height, 0 * x + 128], -1)
  return image.astype(np.uint8)[None]


@pytest.mark.parametrize("target", [(32, 32), (20, 60), (60, 20), (128, 128)])
@pytest.mark.parametrize("crop", [(0, 0), (0.5, 0.5), (1, 1)])
def test_covers_then_crops(tmp_path, target, crop):
  height, width = 64, 96
  path = encode(tmp_path / "x.mkv", ramp(height, width))
  clip = read_clip(
    path, start_s=0, num_frames=1, fps=25, resolution=target, crop=crop
  )
  assert clip.shape == (1, *target, 3)
  scale = max(target[0] / height, target[1] / width)
  spare = height * scale - target[0], width * scale - target[1]
  rows = (np.arange(target[0]) + 0.5 + crop[0] * spare[0]) / (scale * height)
  columns = (np.arange(target[1]) + 0.5 + crop[1] * spare[1]) / (scale * width)
  expected = np.broadcast_arrays(255 * columns[None], 255 * rows[:, None])
  inner = (slice(3, -3), slice(3, -3))
  for channel in (0, 1):
    got = clip[0, ..., channel].astype(float)
    assert np.abs(got - expected[channel])[inner].max() < 6


def test_shrinking_antialiases(tmp_path):
  """A pattern finer than the result's pixels becomes grey, as in Pillow."""
  y, x = np.mgrid[:240, :320]
  zones = 128 + 100 * np.cos(0.02 * ((x - 160) ** 2 + (y - 120) ** 2))
  video = zones.astype(np.uint8)[None, ..., None].repeat(3, -1)
  path = encode(tmp_path / "x.mkv", video)
  clip = read_clip(path, start_s=0, num_frames=1, fps=25, resolution=(30, 40))
  small = Image.fromarray(video[0]).resize((40, 30), Image.BICUBIC)
  difference = np.abs(clip[0].astype(int) - np.asarray(small, int))
  assert difference.mean() < 1
  assert np.abs(video[0, ::8, ::8].astype(int) - np.asarray(small)).mean() > 20


COLOURS = np.array(
  [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [200, 100, 50]]
)


def to_yuv(rgb, red, blue, full):
  """ITU-R BT.601/709 (kr, kb), to 8 bits, by the defining equations."""
  r, g, b = np.moveaxis(rgb / 255, -1, 0)
  y = red * r + (1 - red - blue) * g + blue * b
  cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
  if full:
    planes = 255 * y, 255 * cb + 128, 255 * cr + 128
  else:
    planes = 219 * y + 16, 224 * cb + 128, 224 * cr + 128
  return np.stack(planes).round().clip(0, 255).astype(np.uint8)


BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
SMPTE240M = (0.212, 0.087)


SD, PAL, HD = (32, 80), (576, 720), (720, 1280)


@pytest.mark.parametrize(
  ("tag", "weights", "size", "full"),
  [
    (5, BT601, SD, False),
    (5, BT601, SD, True),
    (5, BT601, HD, False),
    (6, BT601, HD, False),
    (7, SMPTE240M, SD, False),
    (1, BT709, SD, False),
    (1, BT709, SD, True),
    (9, BT2020, SD, False),
    # untagged
    (None, BT601, SD, False),
    (None, BT601, PAL, False),
    (None, BT601, (576, 1270), False),
    (None, BT709, (578, 720), False),
    (None, BT709, (528, 1280), False),
    (None, BT709, HD, False),
    (None, BT709, HD[::-1], False),
  ],
)
def test_colours_are_right(tmp_path, tag, weights, size, full):
  height, width = size
  rgb = COLOURS[None].repeat(width // 5, 1).repeat(height, 0)
  yuv = to_yuv(rgb, *weights, full)[None]
  colours = (tag, 2 if full else 1)
  path = encode(tmp_path / "x.mkv", None, yuv=yuv, colours=colours)
  clip = read_clip(path, start_s=0, num_frames=1, fps=25)[0].astype(int)
  np.testing.assert_allclose(clip, rgb, atol=3)
