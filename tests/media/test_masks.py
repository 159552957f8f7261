"""User masks: white in files means "generate"; in memory True means given."""

import numpy as np
from PIL import Image
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.media.images import fit, read_image, write_image
from lumiere_jax.media.masks import (
  box_mask,
  check_mask,
  parse_box,
  parse_expand,
  read_mask,
)
from lumiere_jax.media.video_reader import read_video
from lumiere_jax.media.video_writer import write_video
from tests.media.encoding import store

SIZE = (48, 64)


def quarter(count=1):
  """All given but the upper left quarter, which moves to the right."""
  mask = np.ones((count, *SIZE), bool)
  for k in range(count):
    mask[k, :24, 8 * k : 32 + 8 * k] = False
  return mask


def grey(mask):
  return np.where(mask, 0, 255).astype(np.uint8)


def save(path, mask):
  """A mask as a file of the format of the ending."""
  images = [Image.fromarray(image) for image in grey(mask)]
  if path.suffix in (".webp", ".png"):
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    rest = {"save_all": True, "append_images": images[1:], "duration": 100}
    images[0].save(path, **(rest if len(mask) > 1 else {}), **lossless)
  elif path.suffix == ".npy":
    np.save(path, ~mask)
  else:
    write_video(path, grey(mask)[..., None].repeat(3, -1), 10, crf=1)
  return path


MOVING = ["x.mp4", "x.webm", "x.gif", "x.webp", "x.png", "x.npy", "x"]


@pytest.mark.parametrize("name", MOVING)
def test_moving_masks_are_cut_or_repeat_their_last_frame(
  tmp_path, name, capsys
):
  path = save(tmp_path / name, quarter(5))
  mask = read_mask(path, SIZE, 5)
  assert mask.dtype == np.bool_
  # Luma alone counts, and edges on multiples of 8 survive compression.
  assert np.array_equal(mask, quarter(5))
  assert np.array_equal(read_mask(path, SIZE, 3), quarter(3))
  longer = read_mask(path, SIZE, 8)
  assert np.array_equal(longer, quarter(5)[[0, 1, 2, 3, 4, 4, 4, 4]])
  assert capsys.readouterr().err == ""  # nothing was resized


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.gif", "x.npy", "x.mp4"])
def test_still_masks_are_repeated(tmp_path, name):
  path = save(tmp_path / name, quarter())
  if name == "x.npy":
    np.save(path, ~quarter()[0])
  assert np.array_equal(read_mask(path, SIZE, 3), quarter().repeat(3, 0))


@pytest.mark.parametrize(
  ("values", "given"),
  [
    ([0, 127, 128, 255], [1, 1, 0, 0]),
    ([0, 1, 1, 0], [1, 0, 0, 1]),  # 1 is the brightest: white
    ([0, 1, 2, 128], [1, 1, 1, 0]),
    ([0, 0, 0, 0], [1, 1, 1, 1]),
  ],
)
def test_arrays_of_bytes(tmp_path, values, given):
  np.save(tmp_path / "x.npy", np.array([values], np.uint8))
  mask = read_mask(tmp_path / "x.npy", (1, 4), 1)
  assert mask[0, 0].tolist() == given


def test_half_as_bright_as_white_is_white(tmp_path):
  row = [
    *[(0, 0, 0), (127, 127, 127), (128, 128, 128), (255, 255, 255)],
    *[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)],
  ]
  write_image(tmp_path / "x.png", np.array([row], np.uint8))
  mask = read_mask(tmp_path / "x.png", (1, 8), 1)
  assert mask[0, 0].tolist() == [1, 1, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("palette", [False, True])
def test_transparent_parts_are_given(tmp_path, palette):
  """Whatever colour they have."""
  image = np.full((*SIZE, 4), 255, np.uint8)
  image[..., 3] = grey(quarter()[0])
  image = Image.fromarray(image)
  image = image.quantize() if palette else image
  image.save(tmp_path / "x.png")
  assert np.array_equal(read_mask(tmp_path / "x.png", SIZE, 1), quarter())
  assert read_image(tmp_path / "x.png").all()  # pictures lie over white


def test_transparent_parts_of_a_video_are_given(tmp_path):
  video = np.full((2, *SIZE, 4), 255, np.uint8)
  video[..., 3] = grey(quarter(2))
  path = store(tmp_path / "x.mov", "qtrle", video, "argb")
  assert np.array_equal(read_mask(path, SIZE, 2), quarter(2))
  assert read_video(path)[0].all()  # elsewhere it is white


def test_never_painted_parts_of_a_gif_are_given(tmp_path):
  frames = []
  for still in quarter(3):
    image = Image.fromarray((~still).astype(np.uint8), "P")
    image.putpalette([9, 9, 9, 255, 255, 255])
    frames.append(image)
  frames[0].save(
    tmp_path / "x.gif",
    save_all=True,
    append_images=frames[1:],
    transparency=0,
    disposal=2,
    duration=100,
  )
  assert np.array_equal(read_mask(tmp_path / "x.gif", SIZE, 3), quarter(3))


def test_exif_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
  Image.fromarray(grey(quarter()[0])).save(tmp_path / "x.png", exif=exif)
  mask = read_mask(tmp_path / "x.png", SIZE[::-1], 1)
  assert np.array_equal(mask[0], np.rot90(quarter()[0], -1))


TARGETS = [(32, 32), (20, 60), (60, 20), (128, 128), (48, 63), (24, 32)]


@pytest.mark.parametrize("target", TARGETS)
def test_stays_aligned_with_a_picture(tmp_path, target, capsys):
  """The same file, read as a picture and as a mask."""
  mask = np.ones(SIZE, bool)
  mask[5:30, 11:40] = False
  path = save(tmp_path / "x.png", mask[None])
  read = read_mask(path, target, 2)
  picture = read_image(path, target)
  assert read.shape == (2, *target)
  assert np.array_equal(read[0], picture[..., 0] < 128)
  assert np.array_equal(read[1], read[0])
  height, width = target
  resized = f"mask={path} is 64x48, resized to {width}x{height}\n"
  assert capsys.readouterr().err.endswith(resized)


def test_stays_aligned_with_a_video(tmp_path, capsys):
  path = save(tmp_path / "x.mp4", quarter(4))
  mask = read_mask(path, (32, 32), 6)
  video = np.stack([fit(frame, (32, 32)) for frame in read_video(path)[0]])
  assert np.array_equal(mask[:4], video[..., 0] < 128)
  assert np.array_equal(mask[4:], mask[[3, 3]])
  assert capsys.readouterr().err.count("notice: ") == 1


@pytest.mark.parametrize("target", TARGETS)
def test_box(target):
  """A pixel belongs to the box if its centre in the picture lies in it."""
  x0, y0, x1, y1 = box = (11, 5, 40, 30)
  mask = box_mask(box, SIZE, target, 3)
  assert mask.shape == (3, *target)
  assert (mask == mask[0]).all()
  scale = max(t / s for t, s in zip(target, SIZE, strict=True))
  centres = [
    (np.arange(t) + 0.5 + (round(s * scale) - t) / 2) / scale
    for t, s in zip(target, SIZE, strict=True)
  ]
  y, x = np.meshgrid(*centres, indexing="ij")
  signed = np.minimum.reduce([x - x0, x1 - x, y - y0, y1 - y])
  clear = np.abs(signed) > 1 / scale  # more than a pixel from the edge
  assert np.array_equal(mask[0][clear], (signed < 0)[clear])
  assert clear.mean() > 0.5


def test_box_without_resizing_is_exact():
  mask = box_mask((1, 2, 4, 3), (5, 6), (5, 6), 1)
  assert np.argwhere(~mask[0]).tolist() == [[2, 1], [2, 2], [2, 3]]
  assert not box_mask((0, 0, 6, 5), (5, 6), (5, 6), 1).any()


@pytest.mark.parametrize(
  ("box", "message"),
  [
    ((3, 0, 3, 5), "box=3,0,3,5 is empty; give x0"),
    ((0, 5, 4, 2), "empty"),
    ((-1, 0, 3, 5), r"outside the picture, which is 64x48; .* 0,0,64,48"),
    ((0, -1, 3, 5), "outside"),
    ((0, 0, 65, 48), "outside"),
    ((0, 0, 64, 49), "outside"),
  ],
)
def test_bad_boxes(box, message):
  with pytest.raises(UserError, match=message):
    box_mask(box, SIZE, (8, 8), 1)


NOT_FOUR = ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,4.5", "1 2 3 4"]


def test_parsing():
  assert parse_box("0,0,64,32") == (0, 0, 64, 32)
  assert parse_box(" 1, 2, 3, 4 ") == (1, 2, 3, 4)
  assert parse_expand("0,0,16,0") == (0, 0, 16, 0)
  cases = {"0,0,0,0": "adds nothing; give left,top", "8,-8,0,0": "below 0"}
  cases |= dict.fromkeys(NOT_FOUR, "is not four whole")
  for text, message in cases.items():
    with pytest.raises(UserError, match=f"expand={text} .*{message}"):
      parse_expand(text)
  for text in NOT_FOUR:
    with pytest.raises(UserError, match=f"box={text} is not four whole"):
      parse_box(text)


def test_some_is_given_and_some_generated():
  check_mask(quarter(2))
  for mask in (quarter(2), ~quarter(2)):
    mask[1] = mask[1, 0, 0]  # a single frame may be uniform
    check_mask(mask)
  with pytest.raises(UserError, match=r"marks nothing .* 64x48"):
    check_mask(np.ones((2, *SIZE), bool))
  with pytest.raises(UserError, match=r"box: .*everything.*text_to_video"):
    check_mask(np.zeros((2, *SIZE), bool), "--box")


def test_bad_files_are_named(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "mixed").mkdir()
  save(tmp_path / "mixed" / "0.png", quarter())
  save(tmp_path / "mixed" / "1.png", quarter()[:, :9])
  for name in ("text.png", "text.gif", "text.mp4", "text.npy"):
    (tmp_path / name).write_text("neither" * 99)
  arrays = {
    "float.npy": np.zeros(SIZE),
    "flat.npy": np.zeros(9, bool),
    "rgb.npy": np.zeros((2, *SIZE, 3), np.uint8),
    "none.npy": np.zeros((0, *SIZE), bool),
  }
  for name, array in arrays.items():
    np.save(tmp_path / name, array)
  reasons = {
    "gone.png": "missing: no such file",
    "text.png": "not a picture",
    "text.gif": "not a video",
    "text.mp4": "not a video",
    "text.npy": "not an array",
    "empty": "no frames: no .png files",
    "mixed": "mixed sizes",
    "float.npy": r"not a mask: float64 \(48, 64\); save bool or uint8",
    "flat.npy": "not a mask: bool",
    "rgb.npy": r"not a mask: uint8 \(2, 48, 64, 3\)",
    "none.npy": r"not a mask: \(0, 48, 64\) has no pixels",
  }
  for name, reason in reasons.items():
    with pytest.raises(UserError, match=f"{tmp_path / name}: {reason}"):
      read_mask(tmp_path / name, SIZE, 4)


def test_array_of_one_frame(tmp_path):
  np.save(tmp_path / "x.npy", ~quarter()[0])
  mask = read_mask(tmp_path / "x.npy", SIZE, 2)
  assert np.array_equal(mask, quarter().repeat(2, 0))


@pytest.mark.parametrize(
  "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,4.5", "1 2 3 4"]
)
@pytest.mark.parametrize("parse", [parse_box, parse_expand])
def test_not_four_numbers(parse, text):
  name = parse.__name__.removeprefix("parse_")
  with pytest.raises(UserError, match=f"{name}={text} is not four whole"):
    parse(text)


@pytest.mark.parametrize(
  ("text", "message"),
  [("0,0,0,0", "adds nothing; give left,top"), ("8,-8,0,0", "below 0")],
)
def test_bad_expansions(text, message):
  with pytest.raises(UserError, match=f"expand={text} .*{message}"):
    parse_expand(text)
