"""Captions of folders in every form, and captions of classes."""

import json
from pathlib import Path

import pytest

from lumiere_jax.data.captions import label_captions, read_captions, words
from lumiere_jax.errors import UserError
from lumiere_jax.storage.remote import Folder

UCF101 = (
  Path(__file__).parents[2] / "../shared/assets/prompts/ucf101_class_prompt.psv"
)


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


@pytest.mark.parametrize("form", ONE)
def test_one_caption_of_each(tmp_path, form):
  media = dict.fromkeys(("a/x.mp4", "b.anything", ".hidden.mp4"), b"")
  folder = write(tmp_path, ONE[form] | media | {".hidden.txt": "hidden"})
  captions = read_captions(folder)
  assert captions == {"a/x.mp4": ('x, "quoted"',), "b.anything": ("vidéo b",)}
  assert list(captions) == sorted(captions)


HUGGING_FACE = {
  "jsonl": {
    "metadata.jsonl": lines(
      {"file_name": "x.mp4", "text": " a dog ", "label": 3},
      {"file_name": "train/y.mp4", "text": "a cat"},
    )
  },
  "csv": {
    "metadata.csv": "\ufefffile_name,label,caption\nx.mp4,3,a dog\n,,\n"
    "./train/y.mp4,4,a cat\n"
  },
  "sub-folders": {
    "metadata.jsonl": lines({"file_name": "x.mp4", "caption": "a dog"}),
    "train/metadata.csv": "text,file_name\na cat,y.mp4\n",
  },
  "up and down": {
    "test/metadata.csv": "file_name,text\n../x.mp4,a dog\n",
    "train/metadata.jsonl": lines({"file_name": "./y.mp4", "text": "a cat"}),
  },
}


@pytest.mark.parametrize("form", HUGGING_FACE)
def test_tables_of_hugging_face(tmp_path, form):
  media = {"x.mp4": b"", "train/y.mp4": b"", ".hidden/metadata.csv": b"x"}
  folder = write(tmp_path, HUGGING_FACE[form] | media | {"x.txt": "other"})
  expected = {"train/y.mp4": ("a cat",), "x.mp4": ("a dog",)}
  assert read_captions(folder) == expected


def test_own_tables_take_precedence_over_those_of_hugging_face(tmp_path):
  own = {"captions.csv": "file,caption\nx.mp4,own\n", "metadata.csv": "a,b\n"}
  assert read_captions(write(tmp_path, own)) == {"x.mp4": ("own",)}


def test_a_file_in_two_tables(tmp_path):
  rows = {
    "metadata.csv": "file_name,text\na/x.mp4,one\n",
    "a/metadata.csv": "file_name,text\nx.mp4,two\n",
  }
  message = "a/x.mp4 already has a caption on line 2 of a/metadata.csv"
  with pytest.raises(UserError, match=message):
    read_captions(write(tmp_path, rows))
  (tmp_path / "a" / "metadata.jsonl").touch()
  message = r"a/metadata\.jsonl and a/metadata\.csv"
  with pytest.raises(UserError, match=message):
    read_captions(Folder(tmp_path))


def test_captions_need_not_exist(tmp_path):
  folder = write(tmp_path, {"A/x.mp4": b"", "B/y.mp4": b""})
  assert read_captions(folder, required=False) == {}


def test_several_captions_and_urls_in_a_table(tmp_path):
  rows = [
    {"file": "x.mp4", "captions": ["one ", "", "two"]},
    {"file": "../y.mp4", "caption": ["one", "two"]},
    {"file": "/abs/./none.mp4", "captions": []},
    {"file": "gs://bucket//blank.mp4", "caption": " "},
  ]
  captions = read_captions(write(tmp_path, {"captions.jsonl": lines(*rows)}))
  assert list(captions.items()) == [
    ("../y.mp4", ("one", "two")),
    ("/abs/none.mp4", ()),
    ("gs://bucket//blank.mp4", ()),
    ("x.mp4", ("one", "two")),
  ]


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


def test_text_takes_precedence_over_json(tmp_path):
  """Tools that download data sets write both, JSON with all metadata."""
  files = {"x.txt": "a caption", "x.json": {"url": "u"}, "x.jpg": b""}
  assert read_captions(write(tmp_path, files)) == {"x.jpg": ("a caption",)}


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
  printed = capsys.readouterr().err
  assert "2 sub-folders" in printed
  assert "'apply eye makeup'" in printed
  prompts = tmp_path / "prompts.psv"
  prompts.write_text("playing_guitar|a guitar\nApplyEyeMakeup|make-up\n")
  captions = read_captions(folder, str(prompts))
  assert captions[names[2]] == ("a guitar",)
  prompts.write_text("playing_guitar|a guitar\n")
  with pytest.raises(UserError, match="'ApplyEyeMakeup'"):
    read_captions(folder, str(prompts))


def test_captions_take_precedence_over_classes(tmp_path):
  folder = write(tmp_path, {"A/x.mp4": b"", "B/y.mp4": b"", "B/y.txt": "y"})
  assert read_captions(folder) == {"B/y.mp4": ("y",)}


@pytest.mark.parametrize(
  "text",
  [
    "file,caption\nx.mp4,a dog\n,\n,\n",
    ",,\r\nfile,caption\r\n , \r\n,,,,\r\n\r\nx.mp4,a dog\r\n",
    'file,caption,note\n"",,\nx.mp4,a dog,\n""\n',
  ],
)
def test_empty_rows_of_a_table_are_skipped(tmp_path, text):
  folder = write(tmp_path, {"x.mp4": b"", "captions.csv": text})
  assert read_captions(folder) == {"x.mp4": ("a dog",)}


ERRORS = {
  "captions.jsonl": [
    ("[" * 200_000, 1, "not usable JSON"),
    ('{"file": "a", "caption": 1' + "0" * 5000 + "}", 1, "not usable JSON"),
    ('{"file": "a", "caption": ""}\n{"file"', 2, "not JSON"),
    ('\n{"file": "a", "text": ""}', 2, "no 'caption'; it has 'file', 'text'"),
    ('{"name": "a", "caption": ""}', 1, "no 'file'; it has 'name', 'caption'"),
    ('{"file": "a", "caption": 3}', 1, "a caption is 3"),
    ('{"file": "a", "captions": ["", null]}', 1, "a caption is None"),
    ('{"file": "a", "captions": [], "caption": ""}', 1, "both 'caption' and"),
    ('{"file": " ", "caption": ""}', 1, "'file' is ' '"),
    ('["a", "b"]', 1, "is a list"),
    (b'{}\n\n{"file": "\xff"}', 3, "not UTF-8.*0xff"),
    (
      *('{"file": "a", "caption": ""}\n{"file": "./a", "caption": ""}', 2),
      "a already has a caption on line 1",
    ),
    ("\n", None, "no captions"),
  ],
  "captions.csv": [
    ("name,caption\na,b\n", 1, "'file', but has 'name', 'caption'"),
    ("file;caption\na;b\n", 1, "'file', but has 'file;caption'"),
    ("file,caption,caption\na,b,c\n", 1, "'caption', but has"),
    ("file,caption\na,b\nc\n", 3, "2 columns"),
    ("file,caption\na,b, c\n", 2, "2 columns"),
    ('file,caption\n"a,b\n', 2, "not CSV"),
    ("file,caption\na,b\na,c\n", 3, "a already has a caption on line 2"),
    (b"file,caption\na,\xe9\n", 2, "not UTF-8"),
    ("", None, "no captions"),
  ],
  "metadata.csv": [
    ("file,text\na,b\n", 1, "'file_name', but has 'file', 'text'"),
    ("file_name,title\na,b\n", 1, "'text' or 'caption', but has"),
    ("file_name,text,caption\na,b,c\n", 1, "'text' or 'caption', but has"),
  ],
  "metadata.jsonl": [
    ('{"file_name": "a", "objects": []}', 1, "no 'text'; it has 'file_name'"),
    ('{"file": "a", "text": ""}', 1, "no 'file_name'; it has 'file', 'text'"),
    ('{"file_name": "a", "text": "b", "caption": ""}', 1, "both 'text' and"),
    ('{"file_name": "a", "text": null}', 1, "a caption is None"),
  ],
  "x.txt": [(b"fine\nnot \xe9", 2, "not UTF-8")],
  "x.json": [
    ('{"title": "x"}', None, "x.json: no 'caption'; it has 'title'"),
    ("3", None, "x.json: a caption is 3"),
    ("{", None, "x.json: not JSON"),
  ],
}


@pytest.mark.parametrize(
  ("name", "text", "line", "message"),
  [(name, *case) for name, cases in ERRORS.items() for case in cases],
)
def test_caption_errors_name_the_line(tmp_path, name, text, line, message):
  folder = write(tmp_path, {"x.mp4": b"", name: text})
  with pytest.raises(UserError, match=message) as error:
    read_captions(folder)
  where = f"{tmp_path / name}, line {line}:" if line else str(tmp_path)
  assert str(error.value).startswith(where)
  assert "\n" not in str(error.value)


def test_no_captions_or_two_kinds(tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    read_captions(Folder(tmp_path / "gone"))
  with pytest.raises(UserError, match=r"no captions; write captions\.jsonl"):
    read_captions(Folder(tmp_path))
  folder = write(tmp_path, {"captions.jsonl": "", "captions.csv": ""})
  with pytest.raises(UserError, match=r"captions\.jsonl and captions\.csv"):
    read_captions(folder)


@pytest.mark.parametrize("form", ["captions.jsonl", "captions.csv", "x.txt"])
def test_very_long_captions(tmp_path, form):
  long = "a dog runs " * 9091 + "end"
  assert len(long) > 100_000
  contents = {
    "captions.jsonl": lines({"file": "x", "caption": long}),
    "captions.csv": f"file,caption\nx,{long}\n",
    "x.txt": long,
  }
  folder = write(tmp_path, {form: contents[form], "x": b""})
  assert read_captions(folder) == {"x": (long,)}


def test_remote_captions_are_named_by_url(tmp_path, remote):
  remote.pipe("/captions/captions.jsonl", b'{"file": "x", "caption": "y"}\n{')
  with pytest.raises(UserError) as error:
    read_captions(Folder("memory://captions", tmp_path))
  assert error.value.field == "memory://captions/captions.jsonl, line 2:"
  remote.pipe("/captions/captions.jsonl", b'{"file": "x", "caption": "y"}')
  folder = Folder("memory://captions", tmp_path)
  assert read_captions(folder) == {"x": ("y",)}


def test_words_of_labels():
  expected = {
    "ApplyEyeMakeup": "apply eye makeup",
    "playing_guitar": "playing guitar",
    "BMXBike": "bmx bike",
    "RidingABike": "riding a bike",
    "TaiChi": "tai chi",
    "shooting goal (soccer)": "shooting goal (soccer)",
    "push-up": "push-up",
    "YoYo_2": "yo yo 2",
    "_": "_",
  }
  assert {label: words(label) for label in expected} == expected
  assert label_captions(iter(["TaiChi"])) == {"TaiChi": ("tai chi",)}


def test_prompts_file(tmp_path):
  path = tmp_path / "prompts.psv"
  path.write_text(
    "\ufeffTaiChi|a person does tai chi\r\n\nYoYo|a yo-yo | spins\n"
    " TaiChi | tai chi in a park\nUnused|x",
    encoding="utf-8",
  )
  assert label_captions(["YoYo", "TaiChi"], path) == {
    "YoYo": ("a yo-yo | spins",),
    "TaiChi": ("a person does tai chi", "tai chi in a park"),
  }


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"TaiChi tai chi\n", r"line 1: 'TaiChi tai chi' is not label\|prompt"),
    (b"a|b\nTaiChi|\n", "line 2"),
    (b"|b", "line 1"),
    (b"taiChi|b\n", r"class 'TaiChi' \(did you mean \"taiChi\"\?\)"),
    (b"x|\xe9", "line 1: not UTF-8"),
    (None, "cannot be read"),
  ],
)
def test_unusable_prompts_files(tmp_path, content, message):
  path = tmp_path / "prompts.psv"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=rf"prompts\.psv.*{message}"):
    label_captions(["TaiChi"], path)


@pytest.mark.skipif(not UCF101.exists(), reason="needs the shared prompts")
def test_prompts_of_ucf101():
  labels = [line.split("|")[0] for line in UCF101.read_text().splitlines()]
  captions = label_captions(labels, UCF101)
  assert len(captions) == 101
  assert captions["ApplyEyeMakeup"] == ("applying eye makeup",)
