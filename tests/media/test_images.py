"""Still and animated pictures, and contact sheets."""

from fractions import Fraction
import io
from pathlib import Path
import shutil

import av
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.media.images import contact_sheet, read_image, write_image
from lumiere_jax.media.input_file import is_picture, picture_size
from lumiere_jax.media.video_reader import probe, read_clip, read_video
from tests.media.encoding import encode, plain

ENDINGS = ("png", "jpg", "jpeg", "jfif", "webp", "bmp", "tiff", "avif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "GIF", "JPEG2000")


def quarters(height=24, width=32):
  """Four corners of different colours."""
  corners = [[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [200, 200, 200]]]
  corners = np.array(corners, np.uint8)
  return corners.repeat(height // 2, 0).repeat(width // 2, 1)


@pytest.mark.parametrize("ending", ENDINGS)
def test_picture_formats(tmp_path, ending):
  path = tmp_path / f"x.{ending.upper()}"
  Image.fromarray(quarters()).save(path, quality=95)
  assert is_picture(path)
  assert picture_size(path) == (24, 32)
  read = read_image(path)
  assert read.shape == (24, 32, 3)
  assert np.abs(read.astype(int) - quarters()).mean() < 6
  clip = read_image(path, (8, 12))
  assert clip.shape == (8, 12, 3)
  for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
    corner = clip[row, column].astype(int) - quarters()[row, column]
    assert np.abs(corner).max() < 16


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["x", "x.mp4", "x.JPG", "x.txt"])
def test_pictures_are_known_by_content(tmp_path, kind, name):
  path = tmp_path / name
  Image.fromarray(quarters(48, 64)).save(path, kind)
  assert is_picture(path)
  assert picture_size(path) == (48, 64)
  (frame,), _ = read_video(path)
  for read in (read_image(path), frame):
    assert np.abs(read.astype(int) - quarters(48, 64)).mean() < 8


@pytest.mark.parametrize("kind", ["h264.mp4", "ffv1.mkv", "h264.ts"])
@pytest.mark.parametrize("name", ["x", "x.jpg", "x.PNG", "x.avif", "x.gif"])
def test_videos_are_known_by_content(tmp_path, kind, name):
  made = encode(tmp_path / kind, plain(10), kind=kind)
  made.rename(tmp_path / name)
  assert not is_picture(tmp_path / name)
  assert probe(tmp_path / name).num_frames == 10


@pytest.mark.parametrize("file", ["grid.avif", "grid.heic"])
@pytest.mark.parametrize("name", ["x.HEIF", "x.mov"])
def test_tiles_make_one_picture(tmp_path, file, name):
  """Four tiles, red green / blue yellow, as phones and `avifenc` store them."""
  path = tmp_path / name
  shutil.copy(Path(__file__).parent / file, path)
  height, width = {"grid.avif": (768, 1024), "grid.heic": (128, 128)}[file]
  assert is_picture(path)
  assert picture_size(path) == (height, width)
  info = probe(path)
  assert (info.num_frames, info.height, info.width) == (1, height, width)
  expected = [[220, 30, 30], [30, 180, 30], [30, 30, 220], [230, 230, 30]]
  for read in (read_image(path), read_video(path)[0][0]):
    corners = read[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert np.abs(corners - expected).max() < 4


@pytest.mark.parametrize("kind", ["MPO", "TIFF"])
def test_the_main_one_of_several_pictures(tmp_path, kind, capsys):
  """Phones add a gain map or a depth map to a photo."""
  path, exif = tmp_path / "x.jpg", Image.Exif()
  exif[0x0112] = 6
  image, other = Image.fromarray(quarters()), Image.new("RGB", (16, 8))
  image.save(path, kind, save_all=True, append_images=[other], exif=exif)
  assert is_picture(path)
  assert picture_size(path) == (32, 24)
  turned = quarters().swapaxes(0, 1)[:, ::-1].astype(int)
  for read in (read_image(path), read_video(path)[0][0]):
    assert np.abs(read - turned).mean() < 8
  assert not capsys.readouterr().err


@pytest.mark.parametrize("ending", ["avi", "png", "webp"])
def test_exif_in_the_frames_of_a_video(tmp_path, ending):
  """PyAV has no name for this side data; orientation 6 turns all frames."""
  path, exif = tmp_path / f"x.{ending}", Image.Exif()
  exif[0x010F], exif[0x0112] = "Camera", 6
  levels = range(10, 250, 40)
  images = [Image.new("RGB", (64, 32), (k, k, k)) for k in levels]
  if ending == "avi":
    with av.open(path, "w") as out:
      stream = out.add_stream("mjpeg", 10)
      stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
      for k, image in enumerate(images):
        image.save(data := io.BytesIO(), "JPEG", exif=exif)
        packet = av.Packet(data.getvalue())
        packet.pts = packet.dts = k
        packet.time_base, packet.stream = Fraction(1, 10), stream
        packet.is_keyframe = True
        out.mux(packet)
  else:
    options = {"lossless": True} if ending == "webp" else {}
    options |= {"save_all": True, "append_images": images[1:]}
    images[0].save(path, exif=exif, duration=100, **options)
  info = probe(path)
  assert (info.num_frames, info.height, info.width) == (6, 64, 32)
  assert info.duration_s == pytest.approx(0.6)
  clip = read_clip(path, start_s=0.05, num_frames=6, fps=10)
  assert clip.shape == (6, 64, 32, 3)
  shown = clip.reshape(6, -1)
  assert np.abs(shown - np.array(levels)[:, None]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_exif_turns_upright(tmp_path, orientation, ending):
  """As TIFF 6.0 defines them: where the 0th row and column are shown."""
  image = quarters(16, 30)
  shown = {
    1: image,
    2: image[:, ::-1],
    3: image[::-1, ::-1],
    4: image[::-1],
    5: image.swapaxes(0, 1),
    6: image.swapaxes(0, 1)[:, ::-1],
    7: image.swapaxes(0, 1)[::-1, ::-1],
    8: image.swapaxes(0, 1)[::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / f"x.{ending}"
  Image.fromarray(image).save(path, exif=exif)
  assert np.array_equal(read_image(path), shown)
  assert picture_size(path) == shown.shape[:2]


def test_transparent_is_white(tmp_path):
  alpha = np.zeros((4, 8, 1), np.uint8)
  alpha[:, :4] = 255
  black = np.concatenate([np.zeros((4, 8, 3), np.uint8), alpha], -1)
  Image.fromarray(black).save(tmp_path / "x.png")
  Image.fromarray(black).quantize().save(tmp_path / "palette.png")
  for name in ("x.png", "palette.png"):
    read = read_image(tmp_path / name)
    assert (read[:, :4] == 0).all()
    assert (read[:, 4:] == 255).all()


def test_sixteen_bits_and_grey(tmp_path):
  grey = np.linspace(0, 255, 32).astype(np.uint8).reshape(4, 8)
  Image.fromarray(grey).save(tmp_path / "8.png")
  Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
  for name in ("8.png", "16.png"):
    assert np.array_equal(read_image(tmp_path / name)[..., 1], grey)


@pytest.mark.parametrize("ending", ENDINGS)
def test_broken_pictures(tmp_path, ending):
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  path = tmp_path / f"x.{ending}"
  Image.fromarray(noise).save(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  reason = r"x\.\w+: (damaged|not a picture, or cut short): "
  for read in (picture_size, read_image):
    with pytest.raises(VideoError, match=reason):
      read(path)


def test_files_that_are_no_pictures(tmp_path):
  (tmp_path / "empty.png").touch()
  (tmp_path / "text.jpg").write_text("no picture" * 100)
  (tmp_path / "folder.bmp").mkdir()
  (tmp_path / "loop.png").symlink_to("loop.png")
  reasons = {
    "empty.png": "empty file",
    "folder.bmp": "not a file",
    "loop.png": "missing: a link to no file",
    "gone.webp": "missing: no such file",
  }
  for name, reason in reasons.items():
    with pytest.raises(VideoError, match=f"{name}: {reason}"):
      is_picture(tmp_path / name)
  for read, reason in ((read_image, "a picture, "), (probe, "a picture or ")):
    with pytest.raises(VideoError, match=rf"text\.jpg: not {reason}"):
      read(tmp_path / "text.jpg")


def test_too_many_pixels(tmp_path):
  header = Image.new("1", (1, 1))
  header.save(tmp_path / "x.bmp")
  data = bytearray((tmp_path / "x.bmp").read_bytes())
  data[18:26] = b"\x00\x00\x01\x00" * 2  # width and height: 65536
  (tmp_path / "x.bmp").write_bytes(data)
  with pytest.raises(VideoError, match="too large: "):
    picture_size(tmp_path / "x.bmp")


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif"])
def test_animations_are_videos(tmp_path, ending):
  path = tmp_path / f"x.{ending}"
  levels = [10, 60, 110, 160, 210]
  images = [Image.new("RGB", (32, 24), (k, k, k)) for k in levels]
  images[0].save(
    path,
    save_all=True,
    append_images=images[1:],
    duration=[100, 300, 50, 50, 500],
    **{"webp": {"lossless": True}, "avif": {"quality": 100}}.get(ending, {}),
  )
  assert not is_picture(path)
  info = probe(path)
  assert (info.num_frames, info.height, info.width) == (5, 24, 32)
  assert info.duration_s == pytest.approx(1.0)
  clip = read_clip(path, start_s=0.05, num_frames=10, fps=10)
  shown = clip.mean((1, 2, 3)).round().astype(int)
  # At 0.05 s, 0.15 s, ...; 110 begins at 0.4 s, 160 at 0.45 s.
  assert shown.tolist() == [10, *(60,) * 3, 160, *(210,) * 5]
  assert read_video(path)[0].shape == (5, 24, 32, 3)


def test_a_broken_animation(tmp_path):
  path = tmp_path / "x.webp"
  noise = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
  images = [Image.fromarray(frame) for frame in noise]
  images[0].save(path, save_all=True, append_images=images[1:])
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(VideoError, match="damaged: "):
    probe(path)


def test_first_frame_of_an_animation_is_read(tmp_path, capsys):
  frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
  path = tmp_path / "moving.gif"
  frames[0].save(path, save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])
  assert "is animated; its first frame is used" in capsys.readouterr().err
  frames[0].save(tmp_path / "still.png")
  read_image(tmp_path / "still.png")
  assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "X.JPEG"])
def test_written_images_read_back(tmp_path, name):
  image = quarters()
  write_image(tmp_path / "new" / name, image)
  read = read_image(tmp_path / "new" / name).astype(int)
  assert np.abs(read - image).mean() <= (0 if name == "x.png" else 6)


def test_contact_sheet():
  """Evenly spaced, first to last, in reading order, a border around each."""
  levels = np.arange(31, dtype=np.uint8)[:, None, None, None]
  video = np.broadcast_to(levels, (31, 4, 6, 3))
  sheet = contact_sheet(video, columns=3, max_frames=7, border=1)
  assert sheet.shape == (3 * 5 + 1, 3 * 7 + 1, 3)
  shown = sheet[1::5, 1::7, 0][:3, :3]
  assert shown.tolist() == [[0, 5, 10], [15, 20, 25], [30, 255, 255]]
  assert (sheet[0] == 255).all()
  assert (sheet[:, 7] == 255).all()
  assert (sheet[1:5, 1:7] == 0).all()
  video = np.zeros((2, 48, 64, 3), np.uint8)
  assert contact_sheet(video, border=2).shape == (52, 2 * 66 + 2, 3)
  assert contact_sheet(video[:1], columns=9, border=0).shape == (48, 64, 3)
  for bad in ({"columns": 0}, {"max_frames": 0}):
    with pytest.raises(UserError, match="at least 1"):
      contact_sheet(video, **bad)


def test_unknown_format_of_an_image(tmp_path):
  with pytest.raises(UserError, match=r"'\.webp'; known: \.png"):
    write_image(tmp_path / "x.webp", quarters())
