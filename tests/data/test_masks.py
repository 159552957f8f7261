"""Mask patterns, pixel by pixel: 1 = given, 0 = to generate."""

import numpy as np
import pytest

from lumiere_jax.data.masks import PATTERNS, MaskMix
from lumiere_jax.errors import UserError

SHAPE = (8, 12, 20)
DRAWS = 60


def draw(name, shape=SHAPE, count=DRAWS):
  made = [PATTERNS[name](np.random.default_rng(k), shape) for k in range(count)]
  for mask in made:
    assert mask.shape == (*shape, 1)
    assert mask.dtype == np.uint8
    assert np.isin(mask, (0, 1)).all()
  return [mask[..., 0].astype(bool) for mask in made]


def whole_frames(mask):
  """The given frames, where each is given as a whole or not at all."""
  flat = mask.reshape(len(mask), -1)
  assert (flat.all(1) | ~flat.any(1)).all()
  return flat.all(1)


def boxes_of(plane):
  """Bounding box of the True pixels: (top, left, bottom, right)."""
  rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


@pytest.mark.parametrize(
  ("name", "given"),
  [
    ("none", []),
    ("everything", list(range(8))),
    ("first_frame", [0]),
    ("first_last", [0, 7]),
  ],
)
def test_fixed_frames(name, given):
  for mask in draw(name):
    assert np.flatnonzero(whole_frames(mask)).tolist() == given


def test_first_k_takes_every_length_up_to_half():
  lengths = set()
  for mask in draw("first_k"):
    given = whole_frames(mask)
    k = given.sum()
    assert given.tolist() == [True] * k + [False] * (8 - k)
    lengths.add(int(k))
  assert lengths == {1, 2, 3, 4}


def test_random_frames_of_any_density():
  given = [whole_frames(mask) for mask in draw("random_frames")]
  counts = [frames.sum() for frames in given]
  assert min(counts) == 1
  assert max(counts) >= 7
  assert len(set(map(tuple, given))) > 30


def test_random_boxes_stand_still():
  holes = []
  for mask in draw("random_boxes"):
    assert (mask == mask[0]).all()
    assert not mask.all()
    holes.append((~mask[0]).mean())
  assert np.std(holes) > 0.1


def test_moving_boxes_glide():
  moved, single = 0, 0
  for mask in draw("moving_boxes"):
    holes = ~mask
    assert holes.any((1, 2)).all()  # In every frame.
    boxes = np.array([boxes_of(plane) for plane in holes])
    filled = [
      hole[y0:y1, x0:x1].all()
      for hole, (y0, x0, y1, x1) in zip(holes, boxes, strict=True)
    ]
    moved += (boxes[0] != boxes[-1]).any()
    if all(filled):  # One box of constant size on a straight path.
      single += 1
      sizes = boxes[:, 2:] - boxes[:, :2]
      assert (sizes == sizes[0]).all()
      straight = np.linspace(boxes[0, :2], boxes[-1, :2], len(boxes))
      assert np.abs(boxes[:, :2] - straight).max() <= 0.5 + 1e-9
  assert single > DRAWS / 4
  assert moved > DRAWS / 2


def test_border_surrounds_a_box():
  edges = []
  for mask in draw("border"):
    assert (mask == mask[0]).all()
    top, left, bottom, right = boxes_of(mask[0])
    assert mask[0, top:bottom, left:right].all()
    margins = np.array([top, left, 12 - bottom, 20 - right])
    assert margins.any()
    assert (margins <= [5, 8, 5, 8]).all()  # Two fifths, rounded up.
    edges.append(margins > 0)
  assert (np.mean(edges, 0) > 0.2).all()
  assert (np.mean(edges, 0) < 0.8).all()


def test_region_is_given_in_the_first_frame_alone():
  ellipses = 0
  for mask in draw("region"):
    assert mask[0].all()
    assert (mask[1:] == mask[1]).all()
    hole = ~mask[1]
    top, left, bottom, right = boxes_of(hole)
    inside = hole[top:bottom, left:right]
    if inside.all():
      continue
    ellipses += 1
    assert not inside[0, 0]  # An ellipse excludes the corners of its box.
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    cy, cx = (top + bottom) / 2, (left + right) / 2
    ry, rx = (bottom - top) / 2, (right - left) / 2
    distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
    np.testing.assert_array_equal(inside, distance <= 1)
  assert DRAWS / 10 < ellipses < DRAWS * 0.9


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 1, 1), (3, 5, 2)])
def test_the_smallest_clips_have_masks_too(name, shape):
  draw(name, shape, count=20)


def test_a_mix_draws_by_weight():
  mix = MaskMix.parse("first_frame:3 none")
  rng = np.random.default_rng(0)
  given = [mix.draw(rng, SHAPE).any() for _ in range(2000)]
  assert abs(np.mean(given) - 0.75) < 0.03


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("first_frme", 'did you mean "first_frame"'),
    ("border border:2", "names 'border' twice"),
    ("border:0", "'border:0' has no weight above 0"),
    ("border:many", "'border:many' has no weight"),
    ("border:", "'border:' has no weight"),
    ("border:nan", "'border:nan' has no weight"),
  ],
)
def test_unusable_mixes(text, words):
  with pytest.raises(UserError, match=words):
    MaskMix.parse(text)
