import numpy as np
import pytest

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.evals.scenes import SPLITS, STAYING, another, path_box
from lumiere_jax.inference.settings import Settings
from lumiere_jax.toy_scenes.captions import is_held_out, parse_caption
from lumiere_jax.toy_scenes.scenes import BACKGROUNDS
from tests.evals.fakes import Right, unseen

FAKE = Right(side=32, frames=16)


def _triples(source):
  return {
    (s.description.colour, s.description.shape, s.description.motion)
    for k in range(len(source))
    for s in source.scene(k).sprites
  }


@pytest.mark.parametrize(("row", "split"), SPLITS.items())
def test_scenes_are_new_and_of_their_split(row, split):
  source = unseen(FAKE, 60, split=split)
  assert {is_held_out(triple) for triple in _triples(source)} == {
    row == "held_out"
  }
  for seed in range(3):  # of training
    trained = ProceduralSource(
      num_clips=60, num_frames=16, resolution=32, seed=seed, split=split
    )
    assert trained.scene(0) != source.scene(0)
  assert unseen(FAKE, 1, 1, split=split).scene(0) != source.scene(0)
  again = unseen(FAKE, 1, split=split)
  assert again.scene(0) == source.scene(0)


def test_scenes_have_the_size_and_length_of_the_videos():
  source = unseen(FAKE, 1, 0, Settings(num_frames=8, size=(24, 40)))
  assert source.clip(0).shape == (8, 24, 40, 3)


@pytest.mark.parametrize("changes", [("colour",), ("colour", "shape")])
def test_another_scene_differs_in_the_named_attributes(changes):
  source = unseen(FAKE, 40)
  for k in range(40):
    scene, real, caption = another(source, k, *changes)
    (new,), background = parse_caption(caption)
    (old,), _ = parse_caption(source.caption(k))
    assert background == source.scene(k).background
    differing = {n for n in vars(old) if getattr(old, n) != getattr(new, n)}
    assert differing == set(changes)
    assert not is_held_out((new.colour, new.shape, new.motion))
    assert scene.sprites[0].description == new
    if changes == ("colour",):  # in the same places
      behind = np.array(BACKGROUNDS[background], np.uint8)
      empty = [(v == behind).all(-1) for v in (real, source.clip(k))]
      assert (empty[0] == empty[1]).mean() > 0.995


def test_a_box_holds_the_whole_path_and_not_the_whole_frame():
  fake = Right(side=64, frames=16)
  source = unseen(fake, 60, motions=STAYING)
  for k in range(60):
    mask, (rows, columns) = path_box(source, k)
    clip = source.clip(k)
    behind = np.array(BACKGROUNDS[source.scene(k).background], np.uint8)
    assert (clip[:, ~mask] == behind).all()
    assert (clip[:, mask] != behind).any()
    assert mask[rows, columns].all()
    assert mask.sum() == mask[rows, columns].size
    # Clear of its edges, where the reader looks for the background.
    cut = clip[:, rows, columns]
    assert (cut[:, [0, -1]] == behind).all()
    assert (cut[:, :, [0, -1]] == behind).all()


def test_a_frame_rate_that_aliases_is_an_error():
  slow = Right()
  slow.fps = 8.0
  with pytest.raises(UserError, match="fps is 8"):
    unseen(slow, 1)
