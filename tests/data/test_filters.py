"""Shot detection and motion, on synthetic scenes and on real clips."""

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from configs import common
from lumiere_jax.data.filters import Filters, find_cuts, motion, probe_shots
from lumiere_jax.media.video_reader import read_clip
from lumiere_jax.media.video_writer import write_video

CLIPS = Path(__file__).parents[2] / "../shared/assets/clips"
BUNNY = Path(__file__).parents[2] / "lumiere_jax/data/assets/big_buck_bunny"
LEAST = 15.0


def scene(seed, count, speed=0.1):
  """A smooth random 16x16 picture that moves by `speed` pixels a frame."""
  rng = np.random.default_rng(seed)
  waves = rng.uniform(-1, 1, (6, 2)) * 1.2
  phase = rng.uniform(0, 7, (6, 3))
  x = np.arange(16)[None, None] + speed * np.arange(count)[:, None, None]
  y = np.arange(16)[None, :, None] + 0 * x
  x = x + 0 * y
  value = sum(
    np.sin(u * x[..., None] + v * y[..., None] + p)
    for (u, v), p in zip(waves, phase, strict=True)
  )
  return np.clip(128 + 45 * value, 0, 255).astype(np.uint8)


def join(*counts):
  return np.concatenate([scene(k, n) for k, n in enumerate(counts)])


@pytest.mark.parametrize("counts", [(40,), (30, 25), (9, 30, 5, 20), (1, 20)])
def test_cuts_are_where_scenes_meet(counts):
  starts = list(itertools.accumulate(counts))[:-1]
  assert find_cuts(join(*counts), LEAST) == starts


def test_a_cut_blended_over_two_frames_is_one():
  """As in videos of converted frame rate."""
  video = join(20, 20).astype(int)
  video[20] = (video[19] + video[21]) // 2
  assert find_cuts(video.astype(np.uint8), LEAST) == [20]


def test_motion_flashes_and_dissolves_are_no_cuts():
  still = scene(0, 40)
  fast = scene(0, 40, speed=3.0)
  assert np.abs(np.diff(fast.astype(int), axis=0)).mean((1, 2, 3)).min() > LEAST
  flash = still.copy()
  flash[20:22] = 255
  flicker = still.copy()
  flicker[::2] = flicker[::2] // 2
  doubled = scene(0, 20, speed=3.0).repeat(2, axis=0)
  weight = np.linspace(0, 1, 20)[:, None, None, None]
  dissolve = (1 - weight) * scene(0, 20) + weight * scene(1, 20)
  for video in (still, fast, flash, flicker, doubled, dissolve):
    assert find_cuts(video.astype(np.uint8), LEAST) == []


def test_small_changes_are_no_cuts():
  video = np.minimum(scene(0, 30, speed=0.02), 240)
  video[15:] += 10
  assert find_cuts(video, 5.0) == [15]
  assert find_cuts(video, 15.0) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_videos(count):
  assert find_cuts(scene(0, count), LEAST) == []


def test_motion_is_the_deviation_over_time():
  video = np.zeros((4, 16, 16, 3), np.uint8)
  assert motion(video) == 0
  video[::2, :, :8] = 20  # Half of the picture alternates 0 and 20.
  assert motion(video) == pytest.approx(10 / 2)
  assert motion(video[:1]) == 0


def large(images):
  return images.repeat(4, axis=1).repeat(4, axis=2)


def test_shots_begin_on_their_frame(tmp_path):
  """Cuts are found in time: no clip of a shot shows another."""
  path = tmp_path / "x.mp4"
  write_video(path, large(join(13, 20, 10)), fps=12.5)
  found = probe_shots(path, Filters(scene_cuts=LEAST))
  assert [s.info.num_frames for s in found] == [13, 20, 10]
  starts = [s.start_s for s in found]
  assert starts == pytest.approx([0, 13 / 12.5, 33 / 12.5])
  assert sum(s.info.duration_s for s in found) == pytest.approx(43 / 12.5)
  assert all(s.info.fps == pytest.approx(12.5) for s in found)
  assert min(s.motion for s in found) > 1
  scenes = large(np.stack([scene(k, 20).mean(0) for k in range(3)]))
  for k, shot in enumerate(found):
    clip = read_clip(
      path, start_s=shot.start_s, num_frames=shot.info.frames_at(16), fps=16
    )
    distance = np.abs(clip[:, None].astype(int) - scenes).mean((2, 3, 4))
    assert (distance.argmin(1) == k).all()


@pytest.mark.parametrize("cuts", [0.0, LEAST])
def test_no_shot_spans_a_break(tmp_path, cuts):
  """Whether or not the pictures differ, and cuts are looked for."""
  whole, path = tmp_path / "1.mpg", tmp_path / "x.mpg"
  with av.open(str(whole), "w", format="vob") as out:
    stream = out.add_stream("mpeg2video", 25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    stream.bit_rate = 4_000_000
    for pixels in large(scene(0, 30)):
      out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
    out.mux(stream.encode(None))
  path.write_bytes(whole.read_bytes() * 3)
  found = probe_shots(path, Filters(scene_cuts=cuts))
  assert [s.info.num_frames for s in found] == [30] * 3
  assert [s.start_s for s in found] == pytest.approx([0, 1.2, 2.4])
  assert all(s.info.fps == pytest.approx(25) for s in found)


def test_frames_are_only_compared_if_a_filter_is_on(tmp_path):
  write_video(tmp_path / "x.mp4", large(join(10, 10)), fps=10)
  (whole,) = probe_shots(tmp_path / "x.mp4", Filters())
  assert (whole.start_s, whole.motion) == (0.0, None)
  assert whole.info.num_frames == 20
  (whole,) = probe_shots(tmp_path / "x.mp4", Filters(min_motion=1.0))
  assert whole.info.num_frames == 20
  assert whole.motion > 1


def test_slideshows_are_dropped_and_slow_footage_is_kept(tmp_path):
  """With the values of the full-size video stages, on real pictures."""
  filters = Filters(**common.FOOTAGE)
  film = read_clip(
    BUNNY / "close.mp4", start_s=0, num_frames=80, fps=16, resolution=(96, 128)
  )
  other = read_clip(
    BUNNY / "left.mp4", start_s=1, num_frames=1, fps=16, resolution=(96, 128)
  )
  slides = np.concatenate([film[:1].repeat(48, 0), other.repeat(48, 0)])
  slow = film[32:40].repeat(10, axis=0)  # Half a second in five.
  cases = {"slides.mp4": slides, "slow.mp4": slow, "film.mp4": film}
  found = {}
  for name, video in cases.items():
    write_video(tmp_path / name, video, fps=16, crf=28)
    found[name] = probe_shots(tmp_path / name, filters)
  lengths = {k: [s.info.num_frames for s in v] for k, v in found.items()}
  assert lengths == {"slides.mp4": [48, 48], "slow.mp4": [80], "film.mp4": [80]}
  assert max(s.motion for s in found["slides.mp4"]) < filters.min_motion / 5
  for name in ("slow.mp4", "film.mp4"):
    assert found[name][0].motion > filters.min_motion


def test_real_clips_have_no_cuts_and_move():
  for path in [*BUNNY.glob("*.mp4"), *sorted(CLIPS.glob("*.mkv"))[::5]]:
    (whole,) = probe_shots(path, Filters(**common.FOOTAGE))
    assert whole.motion > 2
