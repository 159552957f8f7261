"""Captions of folders, in every way they may be written."""

import json

import fsspec
import pytest

from lumiere_jax.data.captions import read_captions
from lumiere_jax.errors import UserError
from lumiere_jax.storage.remote import Folder


def write(folder, files):
  """Writes files; what is neither text nor bytes is written as JSON."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
      content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  return Folder(folder)


def lines(*rows):
  return "\n".join(map(json.dumps, rows)) + "\n"


ONE = {
  "jsonl": {
    "captions.jsonl": lines(
      {"file": "b.anything", "caption": "vidéo b"},
      {"file": "./a/x.mp4", "captions": [' x, "quoted" ']},
    )
  },
  "csv": {
    "captions.csv": "\ufeffid,file,caption\n1,b.anything,vidéo b\n"
    '2,a/x.mp4,"x, ""quoted"""\n'
  },
  "txt": {
    "a/x.txt": 'x,\n  "quoted"\n',
    "b.txt": "vidéo b",
    "readme.txt": "beside no video",
  },
  "json": {
    "a/x.json": json.dumps('x, "quoted"'),
    "b.json": {"caption": "vidéo b"},
    "info.json": {"beside": "no video"},
  },
}


@pytest.mark.parametrize("way", ONE)
def test_one_caption_of_each(tmp_path, way):
  media = dict.fromkeys(("a/x.mp4", "b.anything", ".hidden.mp4"), b"")
  folder = write(tmp_path, ONE[way] | media | {".hidden.txt": "hidden"})
  captions = read_captions(folder)
  assert captions == {"a/x.mp4": ('x, "quoted"',), "b.anything": ("vidéo b",)}
  assert list(captions) == sorted(captions)


def test_several_captions_in_a_table(tmp_path):
  rows = [
    {"file": "x.mp4", "captions": ["one ", "", "two"]},
    {"file": "y.mp4", "caption": ["one", "two"]},
    {"file": "none.mp4", "captions": []},
    {"file": "blank.mp4", "caption": " "},
  ]
  folder = write(tmp_path, {"captions.jsonl": lines(*rows)})
  assert read_captions(folder) == {
    "blank.mp4": (),
    "none.mp4": (),
    "x.mp4": ("one", "two"),
    "y.mp4": ("one", "two"),
  }


@pytest.mark.parametrize(
  ("content", "expected"),
  [
    ("a caption", ("a caption",)),
    (["one", "two"], ("one", "two")),
    ({"caption": "one", "fps": 3}, ("one",)),
    ({"captions": ["one", "two"]}, ("one", "two")),
    ([], ()),
  ],
)
def test_json_beside_a_video(tmp_path, content, expected):
  files = {"x.json": json.dumps(content), "x.mp4": b"", "y.mp4": b""}
  assert read_captions(write(tmp_path, files)) == {"x.mp4": expected}


def test_text_goes_before_json(tmp_path):
  """As tools that download data sets write both, JSON with all they know."""
  files = {"x.txt": "a caption", "x.json": {"url": "u"}, "x.jpg": b""}
  assert read_captions(write(tmp_path, files)) == {"x.jpg": ("a caption",)}


def test_urls_are_names(tmp_path):
  rows = [
    {"file": "gs://bucket//x.mp4", "caption": "1"},
    {"file": "../x.mp4", "caption": "2"},
    {"file": "/abs/./x.mp4", "caption": "3"},
  ]
  folder = write(tmp_path, {"captions.jsonl": lines(*rows)})
  names = ["../x.mp4", "/abs/x.mp4", "gs://bucket//x.mp4"]
  assert list(read_captions(folder)) == names


def test_sub_folders_are_classes(tmp_path, capsys):
  names = [
    "train/ApplyEyeMakeup/a.avi",
    "train/ApplyEyeMakeup/b.jpg",
    "test/playing_guitar/c.mp4",
  ]
  folder = write(tmp_path, dict.fromkeys([*names, "top.mp4", "s/x.log"], b""))
  assert read_captions(folder) == {
    names[0]: ("apply eye makeup",),
    names[1]: ("apply eye makeup",),
    names[2]: ("playing guitar",),
  }
  said = capsys.readouterr().err
  assert "2 sub-folders are taken for classes" in said
  assert "'apply eye makeup'" in said
  prompts = tmp_path / "prompts.psv"
  prompts.write_text("playing_guitar|a guitar\nApplyEyeMakeup|make-up\n")
  captions = read_captions(folder, str(prompts))
  assert captions[names[2]] == ("a guitar",)
  prompts.write_text("playing_guitar|a guitar\n")
  with pytest.raises(UserError, match="says nothing of the class 'ApplyEye"):
    read_captions(folder, str(prompts))


def test_captions_of_its_own_go_before_classes(tmp_path):
  folder = write(tmp_path, {"A/x.mp4": b"", "B/y.mp4": b"", "B/y.txt": "y"})
  assert read_captions(folder) == {"B/y.mp4": ("y",)}


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("captions.jsonl", b'{"file": "a", "caption": ""}\n{"file"', "line 2: not"),
    (
      "captions.jsonl",
      b'\n{"file": "a", "text": ""}',
      "line 2: no 'caption'; it has 'file', 'text'",
    ),
    (
      "captions.jsonl",
      b'{"name": "a", "caption": ""}',
      "line 1: no 'file'; it has 'name', 'caption'",
    ),
    (
      "captions.jsonl",
      b'{"file": "a", "caption": 3}',
      "a caption is 3; write a string",
    ),
    (
      "captions.jsonl",
      b'{"file": "a", "captions": ["", null]}',
      "a caption is None; write a string",
    ),
    (
      "captions.jsonl",
      b'{"file": "a", "captions": [""], "caption": "b"}',
      "both 'caption' and 'captions'",
    ),
    (
      "captions.jsonl",
      b'{"file": " ", "caption": ""}',
      "'file' is ' '; name a video",
    ),
    ("captions.jsonl", b'["a", "b"]', "line 1: a list; write an object"),
    ("captions.jsonl", b'{}\n\n{"file": "\xff"}', "line 3: not UTF-8.*0xff"),
    ("captions.jsonl", b"\n", "no captions"),
    (
      "captions.jsonl",
      b'{"file": "a", "caption": "1"}\n{"file": "./a", "caption": "2"}',
      "line 2: a is captioned on line 1 already",
    ),
    (
      "captions.csv",
      b"name,caption\na,b\n",
      "line 1: not one column 'file'; the columns are 'name', 'caption'",
    ),
    (
      "captions.csv",
      b"file;caption\na;b\n",
      "line 1: not one column 'file'; the columns are 'file;caption'",
    ),
    (
      "captions.csv",
      b"file,caption,caption\na,b,c\n",
      "line 1: not one column 'caption'",
    ),
    ("captions.csv", b"file,caption\na,b\nc\n", "line 3: not 2 columns; quote"),
    ("captions.csv", b"file,caption\na,b, c\n", "line 2: not 2 columns; quote"),
    ("captions.csv", b'file,caption\n"a,b\n', "line 2: not CSV"),
    ("captions.csv", b"file,caption\na,b\na,c\n", "line 3: a is captioned on"),
    ("captions.csv", b"file,caption\na,\xe9\n", "line 2: not UTF-8"),
    ("captions.csv", b"", "no captions"),
    ("x.txt", b"fine\nnot \xe9", "x.txt, line 2: not UTF-8"),
    ("x.json", b'{"title": "x"}', "x.json: no 'caption'; it has 'title'"),
    ("x.json", b"3", "x.json: a caption is 3; write a string"),
    ("x.json", b"{", "x.json: not JSON"),
  ],
)
def test_caption_errors_name_the_line(tmp_path, name, text, message):
  (tmp_path / "x.mp4").touch()
  (tmp_path / name).write_bytes(text)
  with pytest.raises(UserError, match=message) as caught:
    read_captions(Folder(tmp_path))
  assert "\n" not in str(caught.value)


def test_no_captions_or_two_kinds(tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    read_captions(Folder(tmp_path / "gone"))
  with pytest.raises(UserError, match=r"no captions; write captions\.jsonl"):
    read_captions(Folder(tmp_path))
  folder = write(tmp_path, {"captions.jsonl": "", "captions.csv": ""})
  with pytest.raises(UserError, match=r"captions\.jsonl and captions\.csv"):
    read_captions(folder)


def test_very_long_captions(tmp_path):
  long = "a dog runs " * 9091 + "end"
  assert len(long) > 100_000
  files = {
    "a/captions.jsonl": lines({"file": "x", "caption": long}),
    "b/captions.csv": f"file,caption\nx,{long}\n",
    "c/x.txt": long,
    "c/x": b"",
  }
  write(tmp_path, files)
  for way in "abc":
    assert read_captions(Folder(tmp_path / way)) == {"x": (long,)}


def test_remote_captions_are_named_by_url(tmp_path):
  system = fsspec.filesystem("memory")
  system.pipe("/captions/captions.jsonl", b'{"file": "x", "caption": "y"}\n{')
  with pytest.raises(UserError, match=r"memory://captions/cap.*, line 2: not"):
    read_captions(Folder("memory://captions", tmp_path))
  system.pipe("/captions/captions.jsonl", b'{"file": "x", "caption": "y"}')
  folder = Folder("memory://captions", tmp_path)
  assert read_captions(folder) == {"x": ("y",)}
