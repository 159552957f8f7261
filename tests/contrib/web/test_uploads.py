"""Uploads and painted masks: what is accepted, and what is never decoded."""

import io
import os
from pathlib import Path
import struct
import zlib

import av
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.contrib.web.labels import words
from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.contrib.web.uploads import (
  EDITOR_SIDE,
  PICTURES,
  check_pixels,
  editor_background,
  file_type,
  painted_mask,
  take_mask,
  take_picture,
  take_video,
)
from lumiere_jax.errors import UserError, option
from lumiere_jax.media import container
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.video_writer import write_video
from tests.contrib.web.conftest import long_video

LIMITS = Limits(max_side=100, max_seconds=2.0, max_mb=0.1)


def png_header(width: int, height: int) -> bytes:
  """A png of any size in its header, with hardly any data."""
  number = struct.Struct(">I").pack
  size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunks = {b"IHDR": size, b"IDAT": zlib.compress(bytes(100)), b"IEND": b""}
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    number(len(data)) + name + data + number(zlib.crc32(name + data))
    for name, data in chunks.items()
  )


@pytest.fixture
def reject(tmp_path):
  """Checks that an upload is rejected: the field, and words of the rest."""

  def rejected(take, path, field, problem, limits=LIMITS):
    args = (field,) if take is not take_mask else ()
    with pytest.raises(UserError, match=problem) as error:
      take(str(path), *args, limits, tmp_path / "job")
    assert error.value.field == option(field)

  return rejected


@pytest.mark.parametrize(
  "suffix", [".png", ".jpg", ".webp", ".bmp", ".mp4", ".gif", ".webm"]
)
def test_types(tmp_path, rng, suffix):
  path = tmp_path / f"x{suffix}"
  pixels = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  if suffix in PICTURES:
    Image.fromarray(pixels[0]).save(path)
  else:
    write_video(path, pixels, 10.0)
  unnamed = path.rename(tmp_path / "x.nonsense")
  assert file_type(unnamed) == {".webm": ".mkv"}.get(suffix, suffix)


def test_accepted_files_are_stored_under_our_name(picture, video, tmp_path):
  folder = tmp_path / "job"
  taken = take_picture(picture, "last_image", LIMITS, folder)
  assert taken == str(folder / "last_image.png")
  np.testing.assert_array_equal(read_image(taken), read_image(picture))
  os.unlink(picture)  # the upload may be removed meanwhile
  assert read_image(taken).shape == (60, 80, 3)
  assert take_video(video, "video", LIMITS, folder) == str(folder / "video.mp4")
  assert take_picture(None, "image", LIMITS, folder) == ""
  assert take_video(None, "video", LIMITS, folder) == ""


@pytest.mark.parametrize(
  "content",
  [
    b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
    b"root:x:0:0:",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    b"",
  ],
  ids=["m3u", "ffconcat", "sdp", "text", "postscript", "svg", "empty"],
)
@pytest.mark.parametrize("name", ["x.mp4", "x.png"])
def test_other_types_are_never_decoded(
  content, name, tmp_path, monkeypatch, reject
):
  opened = lambda *args, **kwargs: pytest.fail("a decoder was called")
  monkeypatch.setattr(container.av, "open", opened)
  monkeypatch.setattr(Image, "open", opened)
  path = tmp_path / name
  path.write_bytes(content)
  reject(take_video, path, "video", "is not a mp4, mov, webm")
  reject(take_picture, path, "image", "is not a png, jpg")
  reject(take_mask, path, "mask", "is not a")


def test_pictures_are_no_videos(picture, video, tmp_path, reject):
  reject(take_video, picture, "video", "is not a mp4")
  reject(take_picture, video, "image", "is not a png")
  assert Path(take_mask(picture, LIMITS, tmp_path)).name == "mask.png"
  assert Path(take_mask(video, LIMITS, tmp_path)).name == "mask.mp4"


def test_large_pictures_are_rejected_by_their_header(
  tmp_path, monkeypatch, reject
):
  path = tmp_path / "x.png"
  path.write_bytes(png_header(99, 101))
  load = lambda self: pytest.fail("it was decoded")
  monkeypatch.setattr(Image.Image, "load", load)
  reject(take_picture, path, "image", "99x101 pixels; at most 100 a side")


def test_large_files(tmp_path, rng, reject):
  path = tmp_path / "x.bmp"
  Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8)).save(path)
  reject(take_picture, path, "image", r"too large: 0.1 MB; at most 0.1 MB")


def test_large_and_long_videos_are_rejected_undecoded(
  tmp_path, monkeypatch, rng, reject
):
  long, large = tmp_path / "long.mp4", tmp_path / "large.mp4"
  long_video(long, 40)
  pixels = rng.integers(0, 256, (1, 32, 102, 3), np.uint8)
  write_video(large, pixels, 16.0, crf=51)
  decode = lambda *args: pytest.fail("it was decoded")
  monkeypatch.setattr(container.Track, "frames", decode)
  reject(take_video, long, "video", r"is too long: 2.5 s; at most 2 s")
  reject(take_video, large, "video", r"is too large: 102x32 pixels")


def test_length_is_measured_by_packets(tmp_path, reject):
  path = tmp_path / "lying.mp4"
  content = bytearray(Path(long_video(path, 64)).read_bytes())
  # State a length of 0.1 s in `mvhd` and the other boxes.
  for box, offset in ((b"mvhd", 16), (b"tkhd", 24), (b"elst", 8)):
    at = content.index(box) + 4 + offset
    content[at : at + 4] = struct.pack(">I", 100)
  path.write_bytes(content)
  with container.open_video(path) as track:
    assert (track.container.duration or 0) < 2e6
  reject(take_video, path, "video", "is too long")


@pytest.mark.parametrize("kind", ["webm", "mkv", "mp4"])
@pytest.mark.parametrize("count", [25, 75])
def test_length_that_no_file_states_is_measured(tmp_path, reject, kind, count):
  """As browsers record: without a duration, or in fragments."""
  path = tmp_path / f"recorded.{kind}"
  fragments = {"movflags": "frag_keyframe+empty_moov"}
  options = fragments if kind == "mp4" else {"live": "1"}
  codec = "libvpx" if kind == "webm" else "libx264"
  with av.open(str(path), "w", options=options) as out:
    stream = out.add_stream(codec, 25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for level in range(count):
      pixels = np.full((48, 64, 3), level, np.uint8)
      out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
    out.mux(stream.encode(None))
  if count == 25:
    taken = take_video(path, "video", LIMITS, tmp_path / "job")
    assert container.measure(taken).duration_s == pytest.approx(1.0, abs=2e-3)
    assert container.measure(taken).frames_at(16) == 16
  else:
    reject(take_video, path, "video", "is too long: 3.0 s; at most 2 s")


def test_too_many_frames_per_second(tmp_path, reject):
  many = long_video(tmp_path / "many.mp4", 500, fps=1000)
  assert take_video(many, "video", Limits(max_seconds=3), tmp_path / "job")
  limits = Limits(max_seconds=1)
  reject(take_video, many, "video", "is too long; at most 1 s", limits)


def test_damaged_files_are_named_by_their_label(tmp_path, rng, reject):
  path = tmp_path / "secret-name.png"
  write_image(path, rng.integers(0, 256, (60, 60, 3), np.uint8))
  path.write_bytes(path.read_bytes()[:3000])
  with pytest.raises(UserError) as error:
    take_picture(str(path), "image", LIMITS, tmp_path / "job")
  message = words(error.value, {"image": "cat.png"})
  assert message.startswith('Picture "cat.png": damaged')
  assert str(tmp_path) not in message
  reject(take_picture, tmp_path / "gone.png", "image", "upload it again")


def test_pixels_of_all_frames_are_counted():
  limits = Limits(max_mpixels=1.0)
  check_pixels("Video", 10, (400, 250), limits)
  with pytest.raises(UserError, match="11 frames of 400x250 are 1 million"):
    check_pixels("Video", 11, (400, 250), limits)


def test_backgrounds_of_the_editor(picture, video):
  picture = editor_background(picture, "image", LIMITS)
  assert picture.shape == (EDITOR_SIDE * 60 // 80, EDITOR_SIDE, 3)
  first = editor_background(video, "video", LIMITS)
  assert first.shape == (EDITOR_SIDE, EDITOR_SIDE, 3)


def layer(*shape: int, strokes=()) -> io.BytesIO:
  pixels = np.zeros((*shape, 4), np.uint8)
  for stroke in strokes:
    pixels[stroke] = (255, 60, 172, 153)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file


def test_masks_unite_the_layers():
  first, second = np.s_[3:9, 10:20], np.s_[3:9, 30:40]
  layers = [layer(40, 60, strokes=[x]) for x in (first, second)]
  mask = painted_mask(layers)
  assert mask.sum() == 2 * 60
  assert mask[first].all()
  assert mask[second].all()
  assert painted_mask([]) is None


@pytest.mark.parametrize(
  ("layers", "problem"),
  [
    ([layer(4, 6), layer(6, 4)], "has layers of different sizes"),
    ([layer(4, EDITOR_SIDE + 1)], "is too large"),
    ([io.BytesIO(png_header(60_000, 60_000))], "is not a picture"),
    ([io.BytesIO(b"text")], "is not a picture"),
  ],
)
def test_unusable_layers(layers, problem):
  with pytest.raises(UserError, match=f"The painted mask {problem}"):
    painted_mask(layers)
