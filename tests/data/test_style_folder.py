"""Folders of styled pictures, to fine-tune on."""

import itertools

import numpy as np
import pytest

from lumiere_jax.data.style_folder import write_style_folder
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.reader import matches
from lumiere_jax.toy_scenes.styles import STYLE, STYLES, remove_style, strength
from tests.data.videos import open_files, spec


@pytest.mark.parametrize("style", STYLES)
def test_a_folder_of_pictures_is_a_data_set(tmp_path, style, capsys):
  folder = tmp_path / "new" / "pictures"
  write_style_folder(folder, style, count=40, resolution=32, seed=3)
  names = sorted(path.name for path in folder.iterdir())
  assert names == sorted(
    f"{style}-{k:05d}.{end}" for k in range(40) for end in ("png", "txt")
  )
  cache = str(tmp_path / "cache")
  source, _ = open_files(folder, spec(1, 32, 32, fps=16), cache=cache)
  assert "40" in capsys.readouterr().err
  assert len(source) == 40
  moving, strengths = 0, []
  for index in range(len(source)):
    (caption,) = source.captions(index)
    assert caption.endswith(f" in {style} style")
    plain = remove_style(caption)
    things, _ = parse_caption(plain)
    picture = source.clip(index)
    strengths.append(strength(picture, style))
    if things[0].motion:  # It may be out of the frame.
      moving += 1
    else:
      assert matches(picture, plain) == {"colour": True, "shape": True}
  assert 10 <= moving <= 30
  assert min(strengths) > 0.8
  assert np.mean(strengths) > 0.98


def test_folders_depend_on_the_seed_alone(tmp_path):
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    write_style_folder(tmp_path / name, count=6, seed=seed)
  a, b, c = (
    [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    for name in "abc"
  )
  assert a == b
  pairs = zip(a, c, strict=True)
  assert all(x != y for x, y in itertools.islice(pairs, 0, None, 2))
  first = read_image(tmp_path / "a" / f"{STYLE}-00000.png")
  assert first.shape == (32, 32, 3)


def test_existing_files_are_kept(tmp_path):
  (tmp_path / "cat.png").write_bytes(b"a cat")
  with pytest.raises(UserError) as error:
    write_style_folder(tmp_path, count=2)
  assert error.value.field == f"{tmp_path}:"
  assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]
  with pytest.raises(UserError, match="num_clips is 0; make it 1 or more"):
    write_style_folder(tmp_path / "none", count=0)
  assert not (tmp_path / "none").exists()
