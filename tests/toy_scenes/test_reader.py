"""Recognising toy scenes from pixels, clean and degraded."""

import io
import itertools

import av
import numpy as np
import pytest

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.captions import combinations
from lumiere_jax.toy_scenes.reader import agreement, matches, read
from lumiere_jax.toy_scenes.scenes import COLOURS, MOTIONS, SHAPES

ATTRIBUTES = ("colour", "shape", "motion")


def _source(num_clips, resolution=64, num_frames=80, **options):
  return ProceduralSource(
    num_clips=num_clips, resolution=resolution, num_frames=num_frames, **options
  )


def _things(source, index):
  return tuple(s.description for s in source.scene(index).sprites)


def _through_h264(video):
  """Writes and reads an mp4 (H.264, yuv420p, CRF 23) in memory."""
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=16, options={"crf": "23"})
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = "yuv420p"
    frames = (av.VideoFrame.from_ndarray(f, format="rgb24") for f in video)
    for frame in itertools.chain(frames, [None]):
      container.mux(stream.encode(frame))
  file.seek(0)
  with av.open(file) as container:
    frames = container.decode(video=0)
    return np.stack([f.to_ndarray(format="rgb24") for f in frames])


@pytest.fixture(scope="module")
def mixed():
  """(source, readings, true things) of 100 clips, 40% with two objects."""
  source = _source(100, num_frames=48, two_objects=0.4)
  readings = [read(source.clip(k)) for k in range(len(source))]
  return source, readings, [_things(source, k) for k in range(len(source))]


def test_clean_clips_are_read_right(mixed):
  source, readings, truth = mixed
  motions = [thing.motion for things in truth for thing in things]
  assert min(motions.count(name) for name in MOTIONS) >= 4
  assert 25 <= sum(len(things) == 2 for things in truth) <= 55
  verdicts = list(map(agreement, readings, truth))
  for name in ATTRIBUTES:
    assert np.mean([v[name] for v in verdicts]) >= 0.99
  backgrounds = [
    reading.background == source.scene(k).background
    for k, found in enumerate(readings)
    for reading in found
  ]
  assert np.mean(backgrounds) >= 0.99
  assert min(r.confidence for found in readings for r in found) > 0.95
  # Readings come in the order of the caption.
  orders = [
    [r.colour for r in found] == [t.colour for t in things]
    for found, things in zip(readings, truth, strict=True)
  ]
  assert np.mean(orders) >= 0.95


def test_shuffled_captions_match_at_chance_level(mixed):
  _, readings, truth = mixed
  # For one object, captions agree with probability sum p^2 over the names.
  triples = np.array(combinations("train"))
  shares = [np.unique(column, return_counts=True)[1] for column in triples.T]
  chance = [float(((n / n.sum()) ** 2).sum()) for n in shares]
  np.testing.assert_allclose(chance, [1 / 7, 1 / 6, 1 / 12], atol=0.01)
  single = [k for k, things in enumerate(truth) if len(things) == 1]
  _assert_pairs_agree(readings, truth, single, chance)
  # For one or two objects, as often as unrelated scenes of another seed.
  other = _source(400, two_objects=0.4, seed=77)
  things = [_things(other, k) for k in range(400)]
  alike = [
    agreement(a, b) for a, b in itertools.product(things[:100], things[100:])
  ]
  chance = [np.mean([v[name] for v in alike]) for name in ATTRIBUTES]
  _assert_pairs_agree(readings, truth, range(len(truth)), chance)


def _assert_pairs_agree(readings, truth, indices, chance):
  """Compares each clip with the captions of forty others."""
  verdicts = [
    agreement(readings[i], truth[j])
    for shift in range(1, 41)
    for i, j in zip(indices, np.roll(indices, shift), strict=True)
  ]
  for name, expected in zip(ATTRIBUTES, chance, strict=True):
    assert abs(np.mean([v[name] for v in verdicts]) - expected) < 0.025


def _noisy(video):
  noise = np.random.default_rng(0).normal(0, 8, video.shape)
  return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
  ("source", "change", "least"),
  [
    (_source(40, 64, 48, seed=1, two_objects=0.4), _through_h264, 0.95),
    (_source(40, 32, 80, seed=2), None, 0.97),
    (_source(60, 64, 16, seed=2), None, 0.98),
    (_source(60, 32, 16, seed=2), None, 0.98),
    (_source(40, (48, 80), 60, fps=12, seed=2), None, 0.97),
    (_source(6, 200, 20, seed=3), None, 1.0),
    (_source(40, 48, 48, split="held_out", seed=4), _noisy, 0.95),
  ],
  ids=["h264", "32", "64-short", "32-short", "wide", "large", "noise"],
)
def test_any_clip_is_read_right(source, change, least):
  verdicts = []
  for k in range(len(source)):
    video = source.clip(k, np.random.default_rng(k) if change else None)
    video = change(video) if change else video
    verdicts.append(matches(video, source.caption(k), source.fps))
  for name in ATTRIBUTES:
    assert np.mean([verdict[name] for verdict in verdicts]) >= least


@pytest.mark.parametrize(
  ("motion", "reverse"),
  [("left", "right"), ("up", "down"), ("growing", "shrinking")],
)
def test_motion_depends_on_the_order_of_frames(motion, reverse):
  source = _source(3, motions=(motion,), two_objects=0.0)
  for index in range(3):
    video = source.clip(index)
    assert [r.motion for r in read(video)] == [motion]
    assert [r.motion for r in read(video[::-1])] == [reverse]
    shuffled = np.random.default_rng(index).permutation(video)
    assert [r.motion for r in read(shuffled)] != [motion]


@pytest.mark.parametrize("motion", ["blinking", "swinging"])
def test_slowed_fast_motion_is_unclear(motion):
  """As in a cascade that misses the fast motion between key frames."""
  source = _source(3, motions=(motion,), two_objects=0.0)
  for index in range(3):
    slow = np.repeat(source.clip(index)[:20], 4, 0)
    assert [r.motion for r in read(slow)] == ["unclear"]


def test_a_repeated_frame_is_still():
  source = _source(12, two_objects=0.0)
  for index in range(12):
    (reading,) = read(np.repeat(source.clip(index)[:1], 32, 0))
    (thing,) = _things(source, index)
    expected = (thing.colour, thing.shape, "still")
    assert (reading.colour, reading.shape, reading.motion) == expected


def test_images_are_read_without_their_motion():
  source = _source(60, num_frames=1)
  verdicts = [matches(source.clip(k), source.caption(k)) for k in range(60)]
  assert all(v == {"colour": True, "shape": True} for v in verdicts)


def test_matches_takes_the_scene_and_any_order_of_objects():
  source = _source(20, two_objects=1.0)
  video, scene = source.clip(0), source.scene(0)
  right = dict.fromkeys(ATTRIBUTES, True)
  assert matches(video, scene) == right
  first, behind = source.caption(0).split(" on a ")
  turned = " and ".join(first.split(" and ")[::-1])
  assert matches(video, f"{turned} on a {behind}") == right
  only = first.split(" and ")[0]
  missing = matches(video, f"{only} on a {behind}")
  assert missing == dict.fromkeys(ATTRIBUTES, False)


def test_any_video_is_read_without_an_error():
  rng = np.random.default_rng(0)
  noise = lambda *shape: rng.integers(0, 256, shape, np.uint8)
  blocks = np.repeat(np.repeat(noise(10, 4, 4, 3), 8, 1), 8, 2)
  odd = [
    noise(20, 32, 32, 3),
    noise(1, 64, 64, 3),
    noise(5, 1, 1, 3),
    noise(2, 3, 90, 3),
    noise(16, 150, 130, 3),
    blocks,
    (blocks > 128).astype(np.uint8) * 255,
    np.linspace(0, 255, 8 * 32 * 32 * 3).reshape(8, 32, 32, 3).astype(np.uint8),
  ]
  for video in odd:
    for reading in read(video):
      assert reading.colour in COLOURS
      assert reading.shape in SHAPES
      assert reading.motion in {*MOTIONS, "unclear"}
      assert 0 <= reading.confidence <= 1
  for level in (0, 128, 255):
    assert read(np.full((8, 32, 32, 3), level, np.uint8)) == ()


@pytest.mark.parametrize(
  "video",
  [
    np.zeros((8, 8, 3), np.uint8),
    np.zeros((2, 8, 8, 1), np.uint8),
    np.zeros((0, 8, 8, 3), np.uint8),
    np.zeros((2, 8, 8, 3), np.float32),
  ],
)
def test_other_arrays_are_refused(video):
  with pytest.raises(UserError) as error:
    read(video)
  assert error.value.field == "video"
