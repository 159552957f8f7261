from concurrent import futures
from fractions import Fraction
import io
import os

import av
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.media import video_writer
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.video_reader import (
  probe,
  read_clip,
  read_frames,
  read_video,
)
from lumiere_jax.media.video_writer import GROUP, encode_clip, write_video

ENDINGS = (".mp4", ".webm", ".gif", ".npy", "")
for_browsers = pytest.mark.parametrize("ending", [".mp4", ".webm"])


def moving(count=20, height=48, width=64):
  """A coloured ramp with a bright square that moves."""
  y, x = np.mgrid[:height, :width]
  frame = np.stack([x * 3, y * 4, 0 * x + 90], -1).clip(0, 255)
  video = np.repeat(frame[None], count, 0).astype(np.uint8)
  for k in range(count):
    video[k, 10:26, 2 * k : 2 * k + 16] = 250, 240, 30
  return video


def all_bytes(path):
  files = sorted(path.iterdir()) if path.is_dir() else [path]
  return [(f.name, f.read_bytes()) for f in files]


@pytest.mark.parametrize("ending", ENDINGS)
def test_reads_back(tmp_path, ending):
  path = tmp_path / "new" / "folders" / f"x{ending}"
  write_video(path, moving(), 16)
  video, fps = read_video(path)
  assert video.shape == moving().shape
  error = np.abs(video.astype(int) - moving()).mean()
  assert error <= {".mp4": 3, ".webm": 3, ".gif": 4}.get(ending, 0)
  if ending in (".mp4", ".webm", ".gif"):
    assert fps == pytest.approx(16, rel=5e-3)
  assert os.listdir(path.parent) == [path.name]
  for count in (2, 1):  # replaces it
    write_video(path, moving(count), 8)
    assert read_video(path)[0].shape == (count, 48, 64, 3)


@pytest.mark.parametrize("ending", ENDINGS)
def test_same_video_same_bytes(tmp_path, ending):
  rng, written = np.random.default_rng(0), []
  for _ in range(8 if ending else 2):  # png needs no encoder with state
    # Encoders have been seen to read freed memory: fill it with noise.
    for size in rng.integers(100, 200_000, 20):
      rng.integers(0, 255, size, np.uint8)
    write_video(tmp_path / f"x{ending}", moving(), 16)
    written.append(all_bytes(tmp_path / f"x{ending}"))
  assert all(again == written[0] for again in written)


def test_webm_is_the_same_on_any_number_of_threads(tmp_path, monkeypatch):
  written = set()
  for threads in ("1", "2", "3", "8"):
    monkeypatch.setitem(video_writer._VP9, "threads", threads)
    write_video(tmp_path / "x.webm", moving(), 16)
    written.add((tmp_path / "x.webm").read_bytes())
  assert len(written) == 1


@for_browsers
def test_plays_in_browsers(tmp_path, ending):
  path = tmp_path / f"x{ending}"
  write_video(path, moving(), 12.5)
  data = path.read_bytes()
  with av.open(str(path)) as file:
    stream = file.streams.video[0]
    frame = next(file.decode(stream))
    codec = stream.codec_context
    if ending == ".mp4":
      assert data.index(b"moov") < data.index(b"mdat")  # faststart
      assert (codec.name, codec.profile) == ("h264", "High")
      assert stream.average_rate == Fraction(25, 2)
    else:
      assert b"webm" in data[:64]  # the DocType, which is not matroska
      assert codec.name in ("vp9", "libvpx-vp9")
      assert codec.profile == "Profile 0"
    assert frame.format.name == "yuv420p"
    bt709, limited = 1, 1
    assert (frame.colorspace, frame.color_range) == (bt709, limited)
    assert (frame.color_primaries, frame.color_trc) == (bt709, bt709)
  assert probe(path).duration_s == pytest.approx(20 / 12.5, abs=2e-3)


@for_browsers
@pytest.mark.parametrize("fps", [8, 16, 23.976, 30000 / 1001, 60])
def test_keeps_the_frame_rate(tmp_path, ending, fps):
  path = tmp_path / f"x{ending}"
  write_video(path, moving(), fps)
  info = probe(path)
  assert info.num_frames == 20
  off_s = 2e-3 if ending == ".webm" else 0  # webm's times are milliseconds
  assert info.duration_s == pytest.approx(20 / fps, rel=1e-4, abs=off_s)
  with av.open(str(path)) as file:
    rate = file.streams.video[0].average_rate
  assert float(rate) == pytest.approx(fps, rel=1e-4)


@for_browsers
@pytest.mark.parametrize("size", [(480, 640), (720, 1280)], ids=["sd", "hd"])
def test_colours_are_tagged_as_they_are_encoded(tmp_path, ending, size):
  """The stored samples, by BT.709's equations, and back by the tag."""
  colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 20, 180]])
  height, width = size
  frame = colours.repeat(width // 4, 0)[None].repeat(height, 0)
  path = tmp_path / f"x{ending}"
  write_video(path, frame[None].astype(np.uint8), 10, crf=1)
  middles = width // 8 * np.arange(1, 8, 2)
  r, g, b = colours.T / 255
  y = 0.2126 * r + 0.7152 * g + 0.0722 * b
  samples = 16 + 219 * y, 128 + 224 * (b - y) / 1.8556
  with av.open(str(path)) as file:
    stored = next(file.decode(video=0)).to_ndarray()
  blue = stored[height : height + height // 4].reshape(height // 2, width // 2)
  np.testing.assert_allclose(stored[height // 2, middles], samples[0], atol=2)
  np.testing.assert_allclose(blue[9, middles // 2], samples[1], atol=2)
  read = read_video(path)[0].astype(int)
  np.testing.assert_allclose(read[0, height // 2, middles], colours, atol=4)
  clip = read_clip(
    path, start_s=0, num_frames=1, fps=10, resolution=(height // 4, width // 4)
  ).astype(int)
  np.testing.assert_allclose(clip[0, 9, middles // 4], colours, atol=4)


@for_browsers
def test_repeats_an_edge_to_an_even_size(tmp_path, ending):
  video = moving(3, 47, 63)
  write_video(tmp_path / f"x{ending}", video, 10, crf=1)
  read, _ = read_video(tmp_path / f"x{ending}")
  assert read.shape == (3, 48, 64, 3)
  padded = np.pad(video, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge").astype(int)
  assert np.abs(read[:, -4:, -4:].astype(int) - padded[:, -4:, -4:]).max() < 12


@for_browsers
def test_crf_trades_size_for_quality(tmp_path, ending):
  noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
  sizes, path = [], tmp_path / f"x{ending}"
  for crf in (5, 17, 40):
    write_video(path, noise, 10, crf=crf)
    sizes.append((path.stat().st_size, len(encode_clip(noise, 10, crf=crf))))
  assert np.all(np.diff(sizes, axis=0) < 0)


@pytest.mark.parametrize("fps", [7, 12.5, 16, 30, 50])
def test_gif_timing(tmp_path, fps):
  """Frame k begins at the centisecond nearest to k / fps; the file loops."""
  write_video(tmp_path / "x.gif", moving()[[*range(18), 17, 17]], fps)
  with Image.open(tmp_path / "x.gif") as gif:
    assert gif.info["loop"] == 0
    delays = []
    for k in range(gif.n_frames):  # still frames are kept
      gif.seek(k)
      delays.append(gif.info["duration"] // 10)
  ends = np.round(np.arange(1, 21) * 100 / fps)
  assert np.cumsum(delays).tolist() == ends.tolist()


def test_png_folder(tmp_path):
  write_video(f"{tmp_path}/x.mp4/", moving(11), 16)
  names = sorted(p.name for p in (tmp_path / "x.mp4").iterdir())
  assert names == [f"{k:05d}.png" for k in range(11)]


def test_never_replaces_other_files(tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").write_text("years of work")
  (tmp_path / "x.mp4").mkdir()
  (tmp_path / "file").write_text("mine too")
  for name in ("mine", "x.mp4", "file"):
    with pytest.raises(UserError, match=name):
      write_video(tmp_path / name, moving(1), 16)
  assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
  assert (tmp_path / "file").read_text() == "mine too"


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("x.avi", {}, r"'\.avi'; known: \.mp4, \.webm, \.gif, \.npy"),
    ("x.v2", {}, "known"),
    ("x.mp4", {"fps": 0}, "fps is 0"),
    ("x.mp4", {"crf": 0}, "crf is 0; give 1"),
    ("x.mp4", {"crf": 52}, "crf is 52"),
    ("x.webm", {"crf": 52}, "crf is 52"),
    ("x.gif", {"fps": 60}, "most 50"),
    ("x.mp4", {"video": np.zeros((2, 4, 4, 3))}, "float64"),
    ("x.mp4", {"video": np.zeros((4, 4, 3), np.uint8)}, r"\(4, 4, 3\)"),
    ("x.mp4", {"video": np.zeros((0, 4, 4, 3), np.uint8)}, "no pixels"),
    ("file/x.mp4", {}, "cannot be written"),
  ],
)
def test_refuses(tmp_path, name, change, message):
  (tmp_path / "file").touch()
  values = {"video": moving(2), "fps": 16} | change
  with pytest.raises(UserError, match=message):
    write_video(tmp_path / name, **values)
  assert os.listdir(tmp_path) == ["file"]


LEVELS = 60


def numbered(count=LEVELS):
  """Frame k is grey, of level 10 + 4 k."""
  levels = 10 + 4 * np.arange(count, dtype=np.uint8)
  shape = (count, 24, 32, 3)
  return np.broadcast_to(levels[:, None, None, None], shape)


def number(clip):
  return ((clip.astype(float).mean((1, 2, 3)) - 10) / 4).round().tolist()


@pytest.mark.parametrize("fps", [16, 30000 / 1001])
def test_any_start_is_exact_and_decodes_little(fps, decoded):
  file = InMemoryFile("x", encode_clip(numbered(), fps))
  for start in range(LEVELS - 4):
    decoded.clear()
    clip = read_clip(file, start_s=start / fps, num_frames=4, fps=fps)
    assert number(clip) == [start + k for k in range(4)]
    assert len(decoded) <= GROUP + 4
  clip = read_clip(file, start_s=30 / fps, num_frames=6, fps=fps / 2)
  assert number(clip) == [30, 32, 34, 36, 38, 40]


def test_groups_are_short_and_closed():
  """Decoding from any key frame gives the same frames."""
  data = encode_clip(moving(20), 16)
  with av.open(io.BytesIO(data)) as file:
    packets = [p for p in file.demux() if p.size]
  assert [p.is_keyframe for p in packets] == [k % GROUP == 0 for k in range(20)]
  assert all(p.pts == p.dts for p in packets)  # none is reordered
  file = InMemoryFile("x", data)
  whole = read_clip(file, start_s=0, num_frames=20, fps=16)
  part = read_clip(file, start_s=8 / 16, num_frames=12, fps=16)
  assert np.array_equal(part, whole[8:])
  assert np.abs(whole.astype(int) - moving(20)).mean() < 3


def test_clips_are_deterministic():
  with futures.ThreadPoolExecutor(4) as pool:
    made = list(pool.map(lambda _: encode_clip(moving(), 16), range(12)))
  assert len(set(made)) == 1


@pytest.mark.parametrize(
  ("data", "reason"),
  [(b"", "empty file"), (b"no video" * 99, "not a video, or cut short")],
)
def test_invalid_files_in_memory_are_named(data, reason):
  with pytest.raises(VideoError, match=f"clip 7: {reason}"):
    read_clip(InMemoryFile("clip 7", data), start_s=0, num_frames=1, fps=1)


def test_frames_come_one_by_one(tmp_path):
  path = tmp_path / "x.mp4"
  write_video(path, numbered(), 16)
  frames = read_frames(path, start_s=0.5, num_frames=50, fps=16)
  first = next(frames)
  assert number(first[None]) == [8]
  rest = np.stack(list(frames))
  assert number(rest) == list(range(9, 58))


def test_gif_keeps_still_frames(tmp_path):
  write_video(tmp_path / "x.gif", moving()[[0, 0, 0, 5, 5]], 10)
  video, fps = read_video(tmp_path / "x.gif")
  assert len(video) == 5
  assert fps == pytest.approx(10)
  assert np.array_equal(video[0], video[2])
