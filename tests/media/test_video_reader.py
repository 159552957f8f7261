"""Reads synthetic videos in which six bars show each frame's number."""

from fractions import Fraction
from pathlib import Path
import random

import av
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.media.resize import Thumbnails
from lumiere_jax.media.video_reader import (
  VideoInfo,
  probe,
  read_clip,
  read_video,
)
from tests.media.encoding import KINDS, encode, number, plain, with_audio

CLIPS = Path(__file__).parents[2] / "../shared/assets/clips"


def shown_at(times, starts):
  """The last of `starts` that is not after each of `times`; all exact."""
  return [max(i for i, s in enumerate(starts) if s <= t) for t in times]


def check_shown(numbers, times, starts):
  """As `shown_at`, but frames may be a millisecond early."""
  for n, time in zip(numbers, times, strict=True):
    assert starts[n] <= time + Fraction(1, 1000)
    assert n + 1 == len(starts) or time < starts[n + 1]


def test_on_frame_sees_every_frame(tmp_path):
  path = encode(tmp_path / "x.mp4", plain(30), kind="h264.mp4")
  seen = []
  thumbnails = Thumbnails(side=6)

  def on_frame(time_s, frame):
    seen.append(time_s)
    thumbnails(time_s, frame)

  probe(path, on_frame=on_frame)
  assert seen == pytest.approx([k / 25 for k in range(30)])
  assert thumbnails.times_s == seen
  assert thumbnails.images.shape == (30, 6, 6, 3)
  # The bars that number a frame are one pixel wide.
  bits = thumbnails.images.mean((1, 3)) > 125
  assert (bits @ (1 << np.arange(6))).tolist() == list(range(30))


@pytest.mark.parametrize("kind", KINDS)
def test_resamples_any_container(tmp_path, kind):
  path = encode(tmp_path / kind, plain(50), kind=kind)
  info = probe(path)
  assert (info.num_frames, info.height, info.width) == (50, 48, 96)
  assert info.duration_s == pytest.approx(2.0, abs=2e-3)
  assert info.fps == pytest.approx(25, rel=2e-3)
  starts = [Fraction(k, 25) for k in range(50)]
  for fps in (Fraction(10), Fraction(25, 2), Fraction(16), Fraction(25), 60):
    for start in (0, Fraction(1, 10), Fraction(27, 25), Fraction(3, 2)):
      times = [start + Fraction(k) / fps for k in range(5)]
      clip = read_clip(path, start_s=float(start), num_frames=5, fps=float(fps))
      assert number(clip) == shown_at(times, starts), (fps, start)


@pytest.mark.parametrize("rate", [10, 12.5, 25, 30, 30000 / 1001, 60])
def test_resamples_any_rate(tmp_path, rate):
  """Matroska rounds 1/30 s to milliseconds: no frame may slip by that."""
  path = encode(tmp_path / "x.mkv", plain(40), fps=rate)
  exact = Fraction(rate).limit_denominator(1001)
  starts = [k / exact for k in range(40)]
  length = int(40 / exact * 16)
  times = [Fraction(k, 16) for k in range(length)]
  clip = read_clip(path, start_s=0, num_frames=length, fps=16)
  check_shown(number(clip), times, starts)
  same = read_clip(path, start_s=0, num_frames=40, fps=float(exact))
  assert number(same) == list(range(40))


@pytest.mark.parametrize("kind", ["h264.mp4", "ffv1.mkv"])
@pytest.mark.parametrize("offset", [0, 5000])
def test_variable_rate_and_late_start(tmp_path, kind, offset):
  """Time runs from the first picture, whatever its timestamp."""
  ms = np.cumsum([0, 10, 300, 40, 5, 700, 33, 33, 34, 250, 80, 20])
  path = tmp_path / kind
  pts = [int(m) + offset for m in ms]
  encode(path, plain(12), kind=kind, pts=pts, ticks=1000)
  starts = [Fraction(int(m), 1000) for m in ms]
  times = [Fraction(k, 30) for k in range(45)]
  clip = read_clip(path, start_s=0, num_frames=45, fps=30)
  assert number(clip) == shown_at(times, starts)
  late = read_clip(path, start_s=1.06, num_frames=3, fps=30)
  assert number(late) == [5, 6, 7]


def test_last_frame_shows_until_its_end(tmp_path):
  path = encode(tmp_path / "x.mp4", plain(10), kind="h264.mp4", fps=10)
  assert number(read_clip(path, start_s=0.8, num_frames=4, fps=20)) == [
    *(8, 8, 9, 9)
  ]
  with pytest.raises(VideoError, match=r"x\.mp4: ends too early: at 1\.00 s"):
    read_clip(path, start_s=0.8, num_frames=5, fps=20)
  with pytest.raises(VideoError, match="ends too early"):
    read_clip(path, start_s=7.0, num_frames=1, fps=20)


@pytest.mark.parametrize("count", [1, 2, 7, 13])
def test_frames_at_agrees_with_read_clip(tmp_path, count):
  path = encode(tmp_path / "x.mkv", plain(count), fps=30)
  info = probe(path)
  assert info.num_frames == count
  assert info.duration_s == pytest.approx(count / 30, abs=2e-3)
  assert info.frames_at(1.0) == 1
  for fps in (7.0, 16.0, 30.0, 60.0):
    n = info.frames_at(fps)
    assert read_clip(path, start_s=0, num_frames=n, fps=fps).shape[0] == n
    with pytest.raises(VideoError, match="ends too early"):
      read_clip(path, start_s=0, num_frames=n + 1, fps=fps)


@pytest.mark.parametrize("kind", ["h264.mp4", "open_gop.mp4", "h264.ts"])
def test_seeks_instead_of_decoding_from_the_start(tmp_path, decoded, kind):
  video = plain(60).repeat(5, axis=0)  # 300 frames, a key frame every 12
  path = encode(tmp_path / kind, video, kind=kind)
  for start in (250, 251, 263, 271, 290):
    decoded.clear()
    clip = read_clip(path, start_s=start / 25, num_frames=10, fps=25)
    assert number(clip) == [(start + k) // 5 for k in range(10)]
    assert len(decoded) < 100


def grey(path, levels, **options):
  """Encodes grey frames exactly: of the full range, so that Y is the level."""
  yuv = np.full((len(levels), 3, 16, 16), 128, np.uint8)
  yuv[:, 0] = np.reshape(levels, (-1, 1, 1))
  return encode(path, None, yuv=yuv, colours=(1, 2), **options)


def brightening(path, fps, count=48, ending=()):
  """Grey frames, each 4 levels above the last; then those of `ending`."""
  return grey(path, [*range(0, 4 * count, 4), *ending], fps=fps)


def levels_of(path, **how):
  clip = read_clip(path, **how).astype(int)
  assert (clip == clip[:, :1, :1, :1]).all()
  return clip[:, 0, 0, 0].tolist()


def test_24_for_16_blends_to_a_line(tmp_path):
  path = brightening(tmp_path / "x.mkv", 24)
  how = {"start_s": 5 / 24, "num_frames": 12, "fps": 16}
  steps = np.diff(levels_of(path, **how))
  assert steps.tolist() == [4, 8] * 5 + [4]
  blended = levels_of(path, **how, resample="blend")
  assert blended == [20 + 6 * k for k in range(12)]


@pytest.mark.parametrize("fps", [12.5, 15, 25, 30000 / 1001, 30, 50, 60])
@pytest.mark.parametrize("start_s", [0.0, 0.13])
def test_ramps_of_any_rate_blend_to_a_line(tmp_path, fps, start_s):
  path = brightening(tmp_path / "x.mkv", fps)
  read = levels_of(
    path, start_s=start_s, num_frames=9, fps=16, resample="blend"
  )
  first = 4 * int((start_s + 1e-3) * fps)  # begins on a frame
  line = first + 4 * fps / 16 * np.arange(9)
  # Half a level of rounding; Matroska's milliseconds are 0.24 levels at 60.
  np.testing.assert_allclose(read, line, atol=0.5 + 4 * fps * 1e-3)


@pytest.mark.parametrize("fps", [16, 32, 48])
@pytest.mark.parametrize("start_s", [0.0, 0.1, 0.33])
def test_rates_that_divide_blend_nothing(tmp_path, fps, start_s):
  path = brightening(tmp_path / "x.mkv", fps)
  how = {"start_s": start_s, "num_frames": 6, "fps": 16}
  assert levels_of(path, **how, resample="blend") == levels_of(path, **how)


def test_uneven_timestamps_blend_by_time(tmp_path):
  """Frames at 0, 100, 300 and 400 ms show 0, 40, 120, 160: a line in time."""
  how = {"pts": [0, 100, 300, 400], "ticks": 1000}
  path = grey(tmp_path / "x.mkv", [0, 40, 120, 160], **how)
  read = levels_of(path, start_s=0, num_frames=9, fps=20, resample="blend")
  assert read == [20 * k for k in range(9)]


def test_nothing_is_blended_across_an_end(tmp_path):
  """Neither the end of the file nor that of a scene."""
  path = brightening(tmp_path / "x.mkv", 24, count=24, ending=[255] * 4)
  how = {"start_s": 0.5, "num_frames": 8, "fps": 16, "resample": "blend"}
  read = levels_of(path, **how, end_s=1.0)
  assert read == [48, 54, 60, 66, 72, 78, 84, 90]
  last = {"start_s": 23 / 24, "num_frames": 2, "fps": 48, "resample": "blend"}
  assert levels_of(path, **last, end_s=1.0) == [92, 92]
  # Matroska's times are milliseconds.
  assert levels_of(path, **last) == pytest.approx([92, (92 + 255) / 2], abs=4)
  alone = brightening(tmp_path / "y.mkv", 24, count=24)
  assert levels_of(alone, **last) == [92, 92]


def cut_stream(path, part, begin=0.0, end=1.0, unit=188):
  """Writes a part of a stream, cut between packets of `unit` bytes."""
  data = path.read_bytes()
  first, last = (int(len(data) // unit * at) * unit for at in (begin, end))
  part.write_bytes(data[first:last])
  return part


GOP = {"g": "30", "keyint_min": "30", "sc_threshold": "0", "crf": "4"}
STREAMS = {  # kind -> codec, options, muxer, size of its packets
  "h264.ts": ("libx264", GOP | {"bf": "3"}, "mpegts", 188),
  "mpeg2.ts": ("mpeg2video", {"g": "30", "bf": "2"}, "mpegts", 188),
  "mpeg2.mpg": ("mpeg2video", {"g": "30", "bf": "2"}, "vob", 2048),
  "h264.h264": ("libx264", GOP, "h264", 1),
}


def encode_stream(path, kind, video, **options):
  codec, codec_options, muxer, _ = STREAMS[kind]
  with av.open(str(path), "w", format=muxer, options=options) as out:
    stream = out.add_stream(codec, 25, codec_options)
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
    for pixels in video:
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return path


def joined(path, *parts):
  path.write_bytes(b"".join(part.read_bytes() for part in parts))
  return path


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("begin", [0.35, 0.45])
def test_begins_at_the_first_key_frame(tmp_path, kind, begin):
  """The part before it is no time of the video; it is reported."""
  whole = encode_stream(tmp_path / "whole", kind, plain(60))
  path = cut_stream(whole, tmp_path / kind, begin, unit=STREAMS[kind][-1])
  info = probe(path)
  clip = read_clip(path, start_s=0, num_frames=info.num_frames, fps=25)
  first = 60 - info.num_frames
  assert number(clip) == list(range(first, 60))
  assert info.fps == pytest.approx(25)
  if kind.startswith("h264"):  # MPEG-2 encodes more key frames than asked for
    assert first == 30
    assert info.left_out_s > 0
  late = read_clip(path, start_s=0.4, num_frames=3, fps=25)
  assert number(late) == [first + k for k in (10, 11, 12)]


@pytest.mark.parametrize("kind", ["h264.ts", "mpeg2.ts", "mpeg2.mpg"])
@pytest.mark.parametrize("offset", [0, 1, 40000])
def test_time_goes_on_where_the_clock_starts_again(tmp_path, kind, offset):
  """Joined recordings; the last frame of the first may be left out."""
  one = encode_stream(
    tmp_path / "1", kind, plain(30), output_ts_offset=str(offset)
  )
  two = encode_stream(tmp_path / "2", kind, 255 - plain(40))
  path = joined(tmp_path / kind, one, two)
  info = probe(path)
  assert info.num_frames in (69, 70)
  assert info.fps == pytest.approx(25, rel=1e-3)
  (at,) = info.breaks_s
  assert at == pytest.approx((info.num_frames - 40) / 25)
  clip = read_clip(path, start_s=0, num_frames=info.num_frames, fps=25)
  begin = info.num_frames - 40
  assert number(clip[: begin - 1]) == list(range(begin - 1))
  assert number(clip[begin:]) == [63 - k for k in range(40)]
  for start in (1, begin - 2, begin, begin + 11, begin + 33):
    part = read_clip(path, start_s=start / 25, num_frames=4, fps=25)
    assert number(part) == number(clip[start : start + 4])


@pytest.mark.parametrize("kind", ["h264.ts", "mpeg2.ts"])
def test_edited_recordings_begin_again_at_a_key_frame(tmp_path, kind):
  """Cut anywhere, within packets and between key frames."""
  whole = encode_stream(tmp_path / "whole", kind, plain(60))
  one = cut_stream(whole, tmp_path / "1", 0, 0.4)
  two = cut_stream(whole, tmp_path / "2", 0.2)
  info = probe(joined(tmp_path / kind, one, two))
  assert len(info.breaks_s) == 1
  assert info.left_out_s > 0
  assert info.fps == pytest.approx(25, rel=0.05)
  clip = read_clip(
    tmp_path / kind, start_s=0, num_frames=info.frames_at(25), fps=25
  )
  begin = round(info.breaks_s[0] * 25)
  assert number(clip[begin:]) == list(range(60 - len(clip[begin:]), 60))
  assert number(clip[: begin - 2]) == list(range(begin - 2))


@pytest.mark.parametrize("gap_s", [3, 30, 1000])
@pytest.mark.parametrize("kind", ["h264.ts", "h264.mkv", "ffv1.mkv"])
def test_gaps_are_closed_where_no_picture_can_be_held(tmp_path, kind, gap_s):
  pts = [40 * k + 1000 * gap_s * (k >= 25) for k in range(50)]
  path = encode(tmp_path / kind, plain(50), kind=kind, pts=pts, ticks=1000)
  info = probe(path)
  held = kind != "h264.ts" and gap_s == 3
  assert info.num_frames == 50
  assert info.breaks_s == (() if held else pytest.approx((1.0,)))
  assert info.duration_s == pytest.approx(5.0 if held else 2.0, abs=2e-3)
  clip = read_clip(path, start_s=0.8, num_frames=10, fps=25)
  expected = [*range(20, 25), *([24] * 5 if held else range(25, 30))]
  assert number(clip) == expected


def test_timestamps_may_wrap_around_or_be_negative(tmp_path):
  for offset in (2**33 / 90000 - 1, -3):
    path = encode_stream(
      tmp_path / "x.ts", "h264.ts", plain(50), output_ts_offset=str(offset)
    )
    info = probe(path)
    assert (info.num_frames, info.breaks_s) == (50, ())
    assert info.duration_s == pytest.approx(2.0)
    clip = read_clip(path, start_s=0.4, num_frames=30, fps=25)
    assert number(clip) == list(range(10, 40))


def test_fragments_joined_go_on(tmp_path):
  how = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
  parts = [
    encode(tmp_path / f"{k}.mp4", video, kind="h264.mp4", options=how)
    for k, video in enumerate([plain(30), 255 - plain(40)])
  ]
  path = joined(tmp_path / "x.mp4", *parts)
  info = probe(path)
  assert (info.num_frames, info.breaks_s) == (70, (pytest.approx(1.2),))
  clip = read_clip(path, start_s=1.0, num_frames=20, fps=25)
  assert number(clip) == [*range(25, 30), *(63 - k for k in range(15))]


def test_nothing_is_blended_across_a_break(tmp_path):
  flat = lambda level, n: np.full((n, 48, 96, 3), level, np.uint8)
  one = encode_stream(tmp_path / "1", "mpeg2.mpg", flat(50, 25))
  two = encode_stream(tmp_path / "2", "mpeg2.mpg", flat(200, 25))
  path = joined(tmp_path / "x.mpg", one, two)
  how = {"start_s": 0.5, "num_frames": 16, "fps": 16}
  means = read_clip(path, **how, resample="blend").mean((1, 2, 3))
  assert ((abs(means - 50) < 5) | (abs(means - 200) < 5)).all()


def test_longer_audio_is_no_missing_end(tmp_path):
  for name in ("x.mp4", "x.mkv"):
    info = probe(with_audio(tmp_path / name, 4, plain(25)))
    assert info.num_frames == 25
    assert info.duration_s == pytest.approx(1.0, abs=2e-3)


def test_reasons_why_a_file_is_no_video(tmp_path):
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
  with_audio(tmp_path / "audio.mp4", 1)
  reasons = {
    "missing.mp4": "missing: ",
    "empty.mp4": "empty file: 0 bytes",
    "text.mp4": "not a video, or cut short: Invalid data",
    "audio.mp4": "no video stream: only audio",
    ".": "not a file: ",
  }
  for name, reason in reasons.items():
    for read in (probe, lambda p: read_clip(p, start_s=0, num_frames=1, fps=1)):
      with pytest.raises(VideoError) as caught:
        read(tmp_path / name)
      assert caught.value.reason.startswith(reason)
      assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


def moving(count=60):
  noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
  return np.stack([np.roll(noise, k, 1) for k in range(count)])


@pytest.mark.parametrize(
  ("kind", "options", "reason"),
  [
    ("h264.mp4", {}, "not a video, or cut short"),
    ("h264.mp4", {"movflags": "+faststart"}, "truncated: "),
    ("ffv1.mkv", {}, "truncated: "),
    ("mpeg4.avi", {}, "truncated: "),
  ],
)
def test_detects_a_missing_end(tmp_path, kind, options, reason):
  path = encode(tmp_path / kind, moving(), kind=kind, options=options)
  assert probe(path).num_frames == 60
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
  with pytest.raises(VideoError, match=reason) as caught:
    probe(path)
  if reason == "truncated: ":
    assert "of the 2.40 s" in caught.value.reason


@pytest.mark.parametrize("kind", ["h264.mp4", "h264.mkv", "mpeg4.avi"])
def test_detects_damage(tmp_path, kind):
  path = encode(tmp_path / kind, moving(), kind=kind)
  data, rng = bytearray(path.read_bytes()), random.Random(0)
  for _ in range(3):
    at = rng.randrange(len(data) // 4, 3 * len(data) // 4)
    data[at : at + 40] = rng.randbytes(40)
  path.write_bytes(data)
  for read in (
    probe,
    lambda path: read_clip(path, start_s=0, num_frames=60, fps=25),
  ):
    with pytest.raises(VideoError, match="damaged: "):
      read(path)


@pytest.mark.parametrize("name", ["a:b.mkv", "http:x.mkv", "%3d.mkv", "ü .mkv"])
def test_any_file_name(tmp_path, name):
  path = encode(tmp_path / "x.mkv", plain(3)).rename(tmp_path / name)
  assert probe(path).num_frames == 3


def test_reads_arrays_and_folders(tmp_path):
  video = moving(3)
  np.save(tmp_path / "x.npy", video)
  (tmp_path / "frames").mkdir()
  for k in range(3):
    Image.fromarray(video[k]).save(tmp_path / "frames" / f"{k}.png")
  for name in ("x.npy", "frames"):
    read, fps = read_video(tmp_path / name)
    assert np.array_equal(read, video)
    assert fps is None


def test_refuses_other_arrays_and_folders(tmp_path):
  np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 3), np.float32))
  (tmp_path / "text.npy").write_text("no array")
  np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
  np.savez(tmp_path / "z.npz", a=np.zeros(3))
  (tmp_path / "z.npz").rename(tmp_path / "zip.npy")
  (tmp_path / "none").mkdir()
  (tmp_path / "mixed").mkdir()
  for side in (4, 5):
    image = Image.new("RGB", (side, side))
    image.save(tmp_path / "mixed" / f"{side}.png")
  reasons = {
    "float.npy": r"float32 \(2, 4, 4, 3\); save uint8",
    "text.npy": "not an array",
    "pickled.npy": "not an array",
    "zip.npy": "not an array",
    "gone.npy": "missing",
    "none": "no .png files",
    "mixed": "mixed sizes",
  }
  for name, reason in reasons.items():
    with pytest.raises(UserError, match=reason):
      read_video(tmp_path / name)


def test_refuses_arguments_out_of_range(tmp_path):
  path = encode(tmp_path / "x.mkv", plain(3))
  good = {"start_s": 0.0, "num_frames": 1, "fps": 25.0}
  for bad in ({"num_frames": 0}, {"fps": 0.0}, {"start_s": -1.0}):
    with pytest.raises(UserError, match=r"x\.mkv: cannot read"):
      read_clip(path, **good | bad)
  with pytest.raises(UserError, match=r'resample=.*did you mean "blend"'):
    read_clip(path, **good, resample="blnd")


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the shared clips")
def test_real_clips_open():
  known = {"walk.mkv": (89, 480, 640), "bigbuckbunny.mp4": (132, 720, 1280)}
  for name, (frames, height, width) in known.items():
    info = probe(CLIPS / name)
    assert isinstance(info, VideoInfo)
    assert (info.num_frames, info.height, info.width) == (frames, height, width)
    clip = read_clip(
      CLIPS / name, start_s=1, num_frames=16, fps=16, resolution=(64, 64)
    )
    assert clip.shape == (16, 64, 64, 3)
    assert clip.std() > 20


def test_one_frame_is_a_video(tmp_path):
  path = encode(tmp_path / "x.mp4", plain(1), kind="h264.mp4", fps=5)
  info = probe(path)
  assert info.num_frames == 1
  assert info.duration_s == pytest.approx(0.2)
  assert info.frames_at(1.0) == 1


def test_unknown_resampling(tmp_path):
  path = brightening(tmp_path / "x.mkv", 24)
  with pytest.raises(UserError, match=r'resample=.*did you mean "blend"'):
    read_clip(path, start_s=0, num_frames=2, fps=16, resample="blnd")
