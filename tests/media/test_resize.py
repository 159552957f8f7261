"""Frames become upright RGB of the right size and colours."""

from fractions import Fraction
import struct

import av
import av.filter
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.errors import VideoError
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.resize import Thumbnails
from lumiere_jax.media.video_reader import probe, read_clip, read_video
from tests.media.encoding import encode, plain, store

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


def first(path, side=2):
  """The first picture of a video, whose thumbnails show the same."""
  clip = read_clip(path, start_s=0, num_frames=1, fps=10)[0].astype(int)
  small = Thumbnails(side)
  info = probe(path, on_frame=small)
  assert clip.shape[:2] == (info.height, info.width)
  cells = clip.reshape(side, info.height // side, side, info.width // side, 3)
  np.testing.assert_allclose(small.images[0], cells.mean((1, 3)), atol=8)
  return clip


def insert_box(path, box):
  """Adds a box to the sample description of an mp4 or mov of one track."""
  data = path.read_bytes()
  entry = data.index(b"stsd") + 12
  size = int.from_bytes(data[entry : entry + 4])
  data = data[: entry + size] + box + data[entry + size :]
  parents = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"]
  for at in (entry, *(data.index(kind) - 4 for kind in parents)):
    size = int.from_bytes(data[at : at + 4]) + len(box)
    data = data[:at] + size.to_bytes(4) + data[at + 4 :]
  path.write_bytes(data)


def grey_ramp(height, width):
  """As `ramp`, without colours, which thumbnails blur."""
  grey = ramp(height, width)[..., :2].mean(-1, keepdims=True)
  return grey.astype(np.uint8).repeat(3, -1)


def replace_display_unit(path, element):
  """Puts another element of four bytes into an mkv's description."""
  data = path.read_bytes()
  assert data.count(b"\x54\xb2\x81\x04") == 1
  path.write_bytes(data.replace(b"\x54\xb2\x81\x04", element))


def test_the_pixel_aspect_of_the_container_counts(tmp_path):
  mov, mkv, mp4 = (tmp_path / f"x.{kind}" for kind in ("mov", "mkv", "mp4"))
  wide = {"sample_aspect_ratio": Fraction(3, 2)}
  store(mov, "prores_ks", plain(1), "yuv422p10le", tags=wide)
  store(mkv, "ffv1", plain(1), "yuv420p")
  replace_display_unit(mkv, b"\x54\xb0\x81\x90")  # DisplayWidth
  store(mp4, "libx264", plain(1), "yuv420p")
  insert_box(mp4, struct.pack(">I4sII", 16, b"pasp", 3, 2))
  for path in (mov, mkv, mp4):
    assert first(path).shape == (48, 144, 3)


@pytest.mark.parametrize(
  ("element", "crop"),
  [
    (b"\x54\xcc\x81\x10", (16, 0, 0, 0)),
    (b"\x54\xbb\x81\x0a", (0, 10, 0, 0)),
    (b"\x54\xdd\x81\x20", (0, 0, 32, 0)),
    (b"\x54\xaa\x81\x06", (0, 0, 0, 6)),
  ],
)
def test_mkv_crops(tmp_path, element, crop):
  path = encode(tmp_path / "x.mkv", grey_ramp(48, 96))
  whole = read_video(path)[0][0].astype(int)
  replace_display_unit(path, element)
  left, top, right, bottom = crop
  expected = whole[top : 48 - bottom, left : 96 - right]
  np.testing.assert_allclose(first(path), expected, atol=2)
  held = InMemoryFile("x", path.read_bytes())
  assert read_clip(held, start_s=0, num_frames=1, fps=10).shape[1:] == (
    expected.shape
  )


@pytest.mark.parametrize(
  ("aperture", "crop"),
  [
    ((48, 1, 24, 1, 0, 1, 0, 1), (24, 12, 24, 12)),
    ((48, 1, 24, 1, -24, 1, 6, 1), (0, 18, 48, 6)),
    ((180, 2, 48, 1, 1, 1, 0, 1), (4, 0, 2, 0)),
    ((0, 0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0)),
    ((200, 1, 48, 1, 0, 1, 0, 1), (0, 0, 0, 0)),
  ],
)
def test_mov_crops(tmp_path, aperture, crop):
  path = encode(tmp_path / "x.mp4", grey_ramp(48, 96), kind="h264.mp4")
  whole = read_video(path)[0][0].astype(int)
  insert_box(path, struct.pack(">I4s4I4i", 40, b"clap", *aperture))
  left, top, right, bottom = crop
  expected = whole[top : 48 - bottom, left : 96 - right]
  np.testing.assert_allclose(first(path), expected, atol=2)


@pytest.mark.parametrize(
  ("name", "codec", "layout"),
  [
    ("x.webm", "libvpx-vp9", "yuva420p"),
    ("x.webm", "libvpx", "yuva420p"),
    ("x.mov", "prores_ks", "yuva444p10le"),
    ("x.mov", "qtrle", "argb"),
    ("x.apng", "apng", "rgba"),
    ("x.mkv", "ffv1", "yuva420p"),
  ],
)
def test_transparent_parts_are_white(tmp_path, name, codec, layout):
  picture = np.full((48, 64, 4), [20, 180, 60, 255], np.uint8)
  picture[:, 32:, 3], picture[24:, 32:, 3] = 0, 128
  options = {"auto-alt-ref": "0"} if "vpx" in codec else {}
  path = store(
    tmp_path / name, codec, picture[None].repeat(3, 0), layout, options
  )
  colours = [20, 180, 60], [255, 255, 255], [137, 217, 157]
  shown = first(path)
  for (row, column), colour in zip(
    [(9, 9), (9, 54), (40, 54)], colours, strict=True
  ):
    np.testing.assert_allclose(shown[row, column], colour, atol=5)


def bars(shift):
  """Bars above, which move; a still pattern below."""
  y, x = np.mgrid[:64, :96]
  moving, still = 50 + 150 * ((x + shift) // 16 % 2), 40 + 2 * y
  return (
    np.where(y < 32, moving, still)[..., None].repeat(3, -1).astype(np.uint8)
  )


def interlaced(parity):
  """Frames of two fields, 8 pixels apart, the first of which is `bars(0)`."""
  pictures = np.stack([bars(0)] * 3)
  pictures[:, int(parity == "tff") :: 2] = bars(8)[int(parity == "tff") :: 2]
  return pictures


def with_fields(parity):
  def flagged(frame):
    graph = av.filter.Graph()
    graph.link_nodes(
      graph.add_buffer(template=frame),
      graph.add("setfield", parity),
      graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.vpull()

  return flagged


@pytest.mark.parametrize("parity", ["tff", "bff"])
@pytest.mark.parametrize(
  ("name", "codec", "layout", "flags"),
  [
    ("x.mp4", "libx264", "yuv420p", "+ildct+ilme"),
    ("x.mpg", "mpeg2video", "yuv420p", "+ildct+ilme"),
    ("x.mov", "prores_ks", "yuv422p10le", "+ildct"),
    ("x.mkv", "ffv1", "yuv420p", "+ildct"),
    ("field_order_in_container.mov", "png", "rgb24", ""),
  ],
)
def test_interlaced_frames_show_their_first_field(
  tmp_path, name, codec, layout, flags, parity
):
  options = {"flags": flags, "b": "9000000"} if flags else {}
  path = store(
    tmp_path / name,
    codec,
    interlaced(parity),
    layout,
    options,
    prepare=with_fields(parity) if flags else None,
  )
  if not flags:
    order = {"tff": 1, "bff": 6}[parity]
    insert_box(path, struct.pack(">I4sBB", 10, b"fiel", 2, order))
  inner = slice(2, 30), slice(20, -20)
  shown, expected = first(path), bars(0).astype(int)
  assert abs(shown - expected)[inner].mean() < 8
  assert abs(shown - expected)[34:-2].max() < 12


LINEAR_TO_XYZ = {  # SMPTE RP 177, of the primaries and D65
  1: [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)],
  9: [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)],
  12: [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)],
}


def to_xyz(primaries):
  x, y = np.array([*LINEAR_TO_XYZ[primaries], (0.3127, 0.3290)]).T
  *colours, white = np.stack([x / y, np.ones(4), (1 - x - y) / y], -1)
  colours = np.stack(colours, -1)
  return colours * np.linalg.solve(colours, white)


def signal_of(light, transfer):
  """The signal of light, of which 1 is 203 cd/m2: SMPTE 2084, BT.2100."""
  if transfer == 16:
    power = (light * 203 / 10000) ** 0.1593017578125
    return (
      (0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)
    ) ** 78.84375
  if transfer == 18:
    luma = light @ [0.2627, 0.6780, 0.0593] * 0.203
    scene = light * 0.203 * luma[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(12 * scene.clip(0.08) - 0.28466892) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
  return np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )


TARGETS = np.array(
  [
    [255, 255, 255],
    [128, 128, 128],
    [220, 30, 30],
    [30, 200, 60],
    [10, 40, 210],
  ]
)


@pytest.mark.parametrize("codec", ["ffv1", "prores_ks"])
@pytest.mark.parametrize(
  ("transfer", "primaries"), [(16, 9), (18, 9), (14, 9), (13, 12), (16, 12)]
)
def test_hdr_and_wide_gamuts_become_srgb(tmp_path, codec, transfer, primaries):
  """ProRes has these tags in its container alone."""
  srgb = TARGETS / 255
  linear = np.where(
    srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
  )
  wide = linear @ np.linalg.solve(to_xyz(primaries), to_xyz(1)).T
  brighter = np.concatenate([wide, [[4.0, 4.0, 4.0]]])  # is clipped
  r, g, b = signal_of(brighter.clip(1e-9), transfer).clip(0, 1).T
  y = 0.2627 * r + 0.6780 * g + 0.0593 * b
  planes = (
    876 * y + 64,
    896 * (b - y) / 1.8814 + 512,
    896 * (r - y) / 1.4746 + 512,
  )
  patches = np.rint(np.stack(planes, -1) * 64).astype(np.uint16).repeat(16, 0)
  tags = {"color_trc": transfer, "color_primaries": primaries}
  path = store(
    tmp_path / ("x.mkv" if codec == "ffv1" else "x.mov"),
    codec,
    patches[None, None].repeat(36, 1).repeat(2, 0),
    "yuv444p10le",
    tags=tags | {"colorspace": 9, "color_range": 1},
  )
  shown = first(path, side=6)[16, 8::16]
  expected = np.concatenate([TARGETS, [[255, 255, 255]]])
  np.testing.assert_allclose(shown, expected, atol=4 if codec == "ffv1" else 8)


def test_colours_that_cannot_be_converted_are_refused(tmp_path):
  kinds = {8: "YCgCo", 14: "ICtCp"}
  for matrix, kind in kinds.items():
    tags = {"colorspace": matrix}
    path = store(tmp_path / "x.mp4", "libx264", plain(2), "yuv444p", tags=tags)
    for read in (probe, first, read_video):
      with pytest.raises(
        VideoError, match=f"x.mp4: colours as {kind}.*convert"
      ):
        read(path)
