"""Uploads that are let in, and all that are not, before they are decoded."""

import os
from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from lumiere_jax.contrib.web.labels import words
from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.contrib.web.uploads import (
  check_pixels,
  kind,
  take_mask,
  take_picture,
  take_video,
)
from lumiere_jax.errors import UserError
from lumiere_jax.media import container, video_reader
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.video_writer import write_video
from tests.contrib.web.conftest import long_video

LIMITS = Limits(max_side=100, max_seconds=2.0, max_mb=0.1)


def png_header(width: int, height: int) -> bytes:
  """The beginning of a picture of any size, with next to nothing in it."""

  def chunk(name, data):
    body = name + data
    return (
      struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    )

  size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  data = zlib.compress(bytes(100))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", size)
    + chunk(b"IDAT", data)
    + chunk(b"IEND", b"")
  )


def test_kinds_are_told_by_the_first_bytes(tmp_path, rng):
  pixels = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  for ending, name in (
    (".png", "a"),
    (".jpg", "b"),
    (".webp", "c"),
    (".bmp", "d"),
  ):
    path = tmp_path / f"{name}.nonsense"
    Image.fromarray(pixels[0]).save(
      path, {".jpg": "jpeg"}.get(ending, ending[1:])
    )
    assert kind(path) == ending
  for ending in (".mp4", ".gif"):
    write_video(tmp_path / f"x{ending}", pixels, 10.0)
    assert kind(tmp_path / f"x{ending}") == ending
  write_video(tmp_path / "x.webm", pixels, 10.0)
  assert kind(tmp_path / "x.webm") == ".mkv"


def test_what_is_let_in_is_set_aside_under_our_name(picture, video, tmp_path):
  folder = tmp_path / "job"
  taken = take_picture(picture, "last_image", LIMITS, folder)
  assert taken == str(folder / "last_image.png")
  np.testing.assert_array_equal(read_image(taken), read_image(picture))
  os.unlink(picture)  # the page may forget the upload meanwhile
  assert read_image(taken).shape == (60, 80, 3)
  assert take_video(video, "video", LIMITS, folder) == str(folder / "video.mp4")
  assert take_picture(None, "image", LIMITS, folder) == ""
  assert take_video(None, "video", LIMITS, folder) == ""


REFUSED = {
  "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "x.mp4"),
  "list": (b"ffconcat version 1.0\nfile /etc/passwd\n", "x.mp4"),
  "session": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "x.mp4"),
  "text": (b"root:x:0:0:", "x.mp4"),
  "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x.png"),
  "drawing": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "x.png"),
  "nothing": (b"", "x.png"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_never_opened(name, tmp_path, monkeypatch):
  def opened(*args, **kwargs):
    raise AssertionError("a decoder was asked")

  monkeypatch.setattr(container.av, "open", opened)
  monkeypatch.setattr(Image, "open", opened)
  content, file = REFUSED[name]
  path = tmp_path / file
  path.write_bytes(content)
  with pytest.raises(UserError, match="Video is not a mp4, mov, webm"):
    take_video(str(path), "video", LIMITS, tmp_path / "job")
  with pytest.raises(UserError, match="Picture is not a png, jpg"):
    take_picture(str(path), "image", LIMITS, tmp_path / "job")
  with pytest.raises(UserError, match="Mask is not a"):
    take_mask(str(path), LIMITS, tmp_path / "job")


def test_one_is_not_taken_for_the_other(picture, video, tmp_path):
  with pytest.raises(UserError, match="Video is not a mp4"):
    take_video(picture, "video", LIMITS, tmp_path)
  with pytest.raises(UserError, match="Picture is not a png"):
    take_picture(video, "image", LIMITS, tmp_path)
  assert Path(take_mask(picture, LIMITS, tmp_path)).name == "mask.png"
  assert Path(take_mask(video, LIMITS, tmp_path)).name == "mask.mp4"


def test_large_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
  path = tmp_path / "x.png"
  path.write_bytes(png_header(99, 101))
  load = lambda self: pytest.fail("it was decoded")
  monkeypatch.setattr(Image.Image, "load", load)
  words_ = r"Picture is too large: 99x101 pixels; at most 100 a side"
  with pytest.raises(UserError, match=words_):
    take_picture(str(path), "image", LIMITS, tmp_path / "job")


def test_large_files_are_refused(tmp_path, rng):
  path = tmp_path / "x.bmp"
  Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8)).save(path)
  with pytest.raises(UserError, match=r"too large: 0.1 MB; at most 0.1 MB"):
    take_picture(str(path), "image", LIMITS, tmp_path / "job")


def test_large_and_long_videos_are_refused_undecoded(
  tmp_path, monkeypatch, rng
):
  long = long_video(tmp_path / "long.mp4", 40)
  large = tmp_path / "large.mp4"
  write_video(
    large, rng.integers(0, 256, (1, 32, 102, 3), np.uint8), 16.0, crf=51
  )
  monkeypatch.setattr(
    container.Track, "frames", lambda self: pytest.fail("it was decoded")
  )
  monkeypatch.setattr(
    video_reader, "_measure", lambda *a: pytest.fail("decoded")
  )
  with pytest.raises(UserError, match=r"Video is too long: 2.5 s; at most 2 s"):
    take_video(long, "video", LIMITS, tmp_path / "job")
  with pytest.raises(UserError, match=r"Video is too large: 102x32 pixels"):
    take_video(str(large), "video", LIMITS, tmp_path / "job")


def test_length_is_counted_and_not_believed(tmp_path):
  long = tmp_path / "long.mp4"
  long_video(long, 64)
  content = long.read_bytes()
  # `mvhd` and the rest state how long it is: say 0.1 s there.
  lying = bytearray(content)
  for box, offset in ((b"mvhd", 16), (b"tkhd", 24), (b"elst", 8)):
    at = content.index(box) + 4 + offset
    lying[at : at + 4] = struct.pack(">I", 100)
  path = tmp_path / "lying.mp4"
  path.write_bytes(lying)
  with container.open_video(path) as track:
    assert (track.container.duration or 0) < 2e6
  with pytest.raises(UserError, match="Video is too long"):
    take_video(str(path), "video", LIMITS, tmp_path / "job")


def test_a_second_of_many_frames_is_refused(tmp_path):
  many = long_video(tmp_path / "many.mp4", 500, fps=1000)
  assert take_video(many, "video", Limits(max_seconds=3), tmp_path / "job")
  with pytest.raises(UserError, match="Video is too long; at most 1 s"):
    take_video(many, "video", Limits(max_seconds=1), tmp_path / "job")


def test_damaged_files_are_named_as_the_page_names_them(tmp_path, rng):
  good = tmp_path / "x.png"
  write_image(good, rng.integers(0, 256, (60, 60, 3), np.uint8))
  cut = tmp_path / "secret-name.png"
  cut.write_bytes(good.read_bytes()[:3000])
  with pytest.raises(UserError) as caught:
    take_picture(str(cut), "image", LIMITS, tmp_path / "job")
  said = words(caught.value)
  assert said.startswith("Picture: damaged")
  assert str(tmp_path) not in said
  with pytest.raises(UserError, match="Picture is no longer there"):
    take_picture(str(tmp_path / "gone.png"), "image", LIMITS, tmp_path / "job")


def test_pixels_of_all_frames_are_counted():
  limits = Limits(max_mpixels=1.0)
  check_pixels("Video", 10, (400, 250), limits)
  with pytest.raises(UserError, match="11 frames of 400x250 are 1 million"):
    check_pixels("Video", 11, (400, 250), limits)
