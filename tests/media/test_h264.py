from concurrent import futures
import io

import av
import numpy as np
import pytest

from lumiere_jax.errors import VideoError
from lumiere_jax.media import container
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.resize import Framing
from lumiere_jax.media.video_reader import read_clip, read_frames
from lumiere_jax.media.video_writer import GROUP, encode_clip, write_video
from tests.media.test_video_writer import moving

LEVELS = 60


def numbered(count=LEVELS):
  """Frame k is grey, of level 10 + 4 k."""
  levels = 10 + 4 * np.arange(count, dtype=np.uint8)
  shape = (count, 24, 32, 3)
  return np.broadcast_to(levels[:, None, None, None], shape)


def number(clip):
  return ((clip.astype(float).mean((1, 2, 3)) - 10) / 4).round().tolist()


@pytest.mark.parametrize("fps", [16, 30000 / 1001])
def test_any_start_is_exact_and_decodes_little(fps, monkeypatch):
  blob = InMemoryFile("x", encode_clip(numbered(), fps))
  decoded = []
  frames = container.Track.frames

  def counting(track):
    for item in frames(track):
      decoded.append(item)
      yield item

  monkeypatch.setattr(container.Track, "frames", counting)
  for start in range(LEVELS - 4):
    decoded.clear()
    clip = read_clip(blob, start_s=start / fps, num_frames=4, fps=fps)
    assert number(clip) == [start + k for k in range(4)]
    assert len(decoded) <= GROUP + 4
  clip = read_clip(blob, start_s=30 / fps, num_frames=6, fps=fps / 2)
  assert number(clip) == [30, 32, 34, 36, 38, 40]


def test_groups_are_short_and_closed():
  """Whatever is decoded from a key frame on is what all decoding gives."""
  data = encode_clip(moving(20), 16)
  with av.open(io.BytesIO(data)) as file:
    packets = [p for p in file.demux() if p.size]
  assert [p.is_keyframe for p in packets] == [k % GROUP == 0 for k in range(20)]
  assert all(p.pts == p.dts for p in packets)  # none is reordered
  whole = read_clip(InMemoryFile("x", data), start_s=0, num_frames=20, fps=16)
  part = read_clip(
    InMemoryFile("x", data), start_s=8 / 16, num_frames=12, fps=16
  )
  assert np.array_equal(part, whole[8:])
  assert np.abs(whole.astype(int) - moving(20)).mean() < 3


def test_same_frames_same_bytes():
  with futures.ThreadPoolExecutor(4) as pool:
    made = list(pool.map(lambda _: encode_clip(moving(), 16), range(12)))
  assert len(set(made)) == 1


def test_quality_is_chosen():
  sizes = [len(encode_clip(moving(), 16, crf=crf)) for crf in (10, 23, 40)]
  assert sizes == sorted(sizes, reverse=True)


def test_one_frame():
  clip = read_clip(
    InMemoryFile("x", encode_clip(numbered(1), 16)),
    start_s=0,
    num_frames=1,
    fps=16,
  )
  assert number(clip) == [0]


@pytest.mark.parametrize(
  ("data", "reason"),
  [(b"", "empty file"), (b"no video" * 99, "not a video, or cut short")],
)
def test_bytes_that_are_no_video_are_named(data, reason):
  with pytest.raises(VideoError, match=f"clip 7: {reason}"):
    read_clip(InMemoryFile("clip 7", data), start_s=0, num_frames=1, fps=1)


def test_frames_come_one_by_one(tmp_path):
  path = tmp_path / "x.mp4"
  write_video(path, numbered(), 16)
  frames = read_frames(
    path, start_s=0.5, num_frames=50, fps=16, framing=Framing()
  )
  first = next(frames)
  assert number(first[None]) == [8]
  rest = np.stack(list(frames))
  assert number(rest) == list(range(9, 58))
