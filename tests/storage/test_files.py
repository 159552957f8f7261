import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage.atomic import remove_unfinished, replacing
from lumiere_jax.storage.files import check_unused, expand_user, slug, unused


@pytest.mark.parametrize(
  ("text", "name"),
  [
    ("A dog, running!", "a-dog-running"),
    ("  ../etc/passwd\n", "etc-passwd"),
    ("été 2024", "t-2024"),
    ("犬が走る", ""),
    ("", ""),
    ("x" * 50, "x" * 40),
    ("x" * 39 + " y", "x" * 39),  # no hyphen is left at the end
  ],
)
def test_slug(text, name):
  assert slug(text) == name


@pytest.mark.parametrize("max_length", [7, 8])
def test_max_length_of_a_slug(max_length):
  assert slug("a small red circle", max_length) == "a-small"


@pytest.mark.parametrize(
  ("name", "numbered"),
  [
    ("x.mp4", "x-{}.mp4"),
    ("x", "x-{}"),
    ("x/", "x-{}/"),
    ("x.mp4/", "x.mp4-{}/"),
    ("v1.5/x.tar.gz", "v1.5/x.tar-{}.gz"),
    (".hidden", ".hidden-{}"),
  ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_unused_is_the_first_that_is_free(tmp_path, name, numbered, kind):
  def take(path):
    path = type(tmp_path)(path)  # without a / at its end
    path.parent.mkdir(exist_ok=True)
    if kind == "file":
      path.touch()
    elif kind == "folder":
      path.mkdir()
    else:
      path.symlink_to("nowhere")

  path = f"{tmp_path}/{name}"
  assert unused(path) == path
  check_unused(path, overwrite=False)
  for k in (2, 3, 4):
    take(unused(path))
    assert unused(path) == f"{tmp_path}/{numbered.format(k)}"
  check_unused(path, overwrite=True)
  with pytest.raises(UserError, match=f"{path}: is there .*overwrite"):
    check_unused(path, overwrite=False)


@pytest.mark.parametrize(
  ("text", "expanded"),
  [
    ("~/x", "/home/me/x"),
    ("~", "/home/me"),
    ("--out=~/x y", "--out=/home/me/x y"),
    ("--style=ink=~/x", "--style=ink=/home/me/x"),
    ("x~/y", "x~/y"),
    ("a=b~", "a=b~"),
    ("/x/~", "/x/~"),
    ("", ""),
  ],
)
def test_home_folders(text, expanded, monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert expand_user(text) == expanded


def test_unfinished_files_are_ours_by_name(tmp_path):
  with pytest.raises(KeyError), replacing(tmp_path / "x") as temporary:
    temporary.write_text("half")
    ours = temporary.name
    raise KeyError
  for name in (ours, ".mine.part", ".x.0f.part", "x.part"):
    (tmp_path / name).touch()
  remove_unfinished(tmp_path)
  remove_unfinished(tmp_path / ".mine.part")
  assert not (tmp_path / ours).exists()
  assert len([*tmp_path.iterdir()]) == 3


def test_unused_is_none_of_the_taken(tmp_path):
  (tmp_path / "x.mp4").touch()
  name = lambda k: str(tmp_path / f"x-{k}.mp4")
  assert unused(tmp_path / "x.mp4", [name(2), name(3)]) == name(4)


def test_unused_fills_gaps_and_needs_no_folder(tmp_path):
  for name in ("x.mp4", "x-3.mp4"):
    (tmp_path / name).touch()
  assert unused(tmp_path / "x.mp4") == str(tmp_path / "x-2.mp4")
  assert unused(tmp_path / "new" / "x.gif") == str(tmp_path / "new" / "x.gif")
  assert unused("new/x.gif") == "new/x.gif"
