"""The page that shows a data set: what is on it, and what is left alone."""

import dataclasses
import re

import numpy as np
import pytest

from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.data.preview import PreviewOptions, histogram, write_preview
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image
from tests.conftest import run_command
from tests.data.videos import make, picture, write_jsonl

CAPTIONS = {
  "<b>&.mp4": "a <script>alert(1)</script> & 'more'",
  "long.mp4": "x" * 999,
  "still.png": "a picture",
  "slow.mp4": "slow",
  "short.mp4": "short",
}


@pytest.fixture
def videos(tmp_path):
  folder = tmp_path / "videos"
  make(folder, "<b>&.mp4", seconds=3)
  make(folder, "long.mp4", seconds=4, size=(32, 24))
  make(folder, "short.mp4", seconds=0.5)
  make(folder, "slow.mp4", fps=2)
  picture(folder, "still.png")
  (folder / "broken.mp4").write_bytes(b"nothing")
  write_jsonl(folder, CAPTIONS | {"broken.mp4": "x"})
  make(folder, "bare.mp4")
  return folder


@pytest.fixture
def options(videos, tmp_path):
  return Options(
    input=str(videos),
    out=str(tmp_path / "out"),
    cache=str(tmp_path / "cache"),
    fps=8,
    side=16,
    threads=2,
  )


@pytest.fixture
def page(tmp_path):
  """Writes a page; gives its text and pictures."""
  folder = tmp_path / "page"

  def page(options, **changes):
    write_preview(options, PreviewOptions(preview=str(folder), **changes))
    text = (folder / "index.html").read_text()
    names = re.findall(r'<img src="([^"]+)"', text)
    assert sorted({*names}) == sorted(p.name for p in folder.glob("*.jpg"))
    return text, [read_image(folder / name) for name in names]

  page.folder = folder
  return page


def headings(text):
  return re.findall("<h2>(.*?)</h2>", text)


def test_what_is_on_the_page(options, page):
  text, pictures = page(options)
  assert headings(text) == [
    "Histograms",
    "Dropped: 3",
    "16x16x16 at 8 fps: 2 clips",
    "1x16x16 at 8 fps: 2 clips",
  ]
  assert "4 of 7 videos" in text
  for kind in ("slow", "no caption", "not a video, or cut short"):
    assert f"<tr><td>{kind}</td><td>1</td>" in text
  assert "bare.mp4: no caption" in text
  assert "&lt;b&gt;&amp;.mp4" in text
  assert "a &lt;script&gt;" in text
  assert "<script" not in text
  assert f">{'x' * 300}...<" in text
  for title in ("length, s", "frames per second", "width / height", "motion"):
    assert f">{title}" in text
  # 8 frames of 16 pixels in a row, 2 pixels apart.
  assert [p.shape for p in pictures][:2] == [(20, 146, 3)] * 2
  assert [p.shape for p in pictures][2:] == [(20, 20, 3)] * 2
  # The middle 16 of 24 frames, whose level rises by 10 a frame.
  levels = pictures[0][10, 10::18].mean(-1)
  assert abs(levels - (50 + 10 * np.linspace(0, 15, 8).round())).max() < 6


def test_buckets_drop_what_training_drops(options, page):
  text, pictures = page(options, preview_buckets="8x16x32 8x24x16")
  assert headings(text)[2:] == [
    "8x16x32 at 8 fps: 1 clips",
    "8x24x16 at 8 fps: 1 clips",
  ]
  assert [p.shape for p in pictures] == [(20, 274, 3), (28, 146, 3)]
  assert "<td>too short</td>" in text
  assert "<td>a picture</td>" in text
  text, _ = page(options, preview_buckets="8x16x200 8x16x16")
  assert "8x16x200" not in text


@pytest.mark.parametrize("most", [1, 2, 3])
def test_few_clips_of_few_files(options, page, most):
  assert len(page(options)[1]) == 4
  text, pictures = page(options, preview_clips=most)
  assert len(pictures) == most  # the others were removed
  assert "4 of 7 videos" in text
  text, pictures = page(options, preview_files=2)
  assert "2 of 2 videos" in text  # the first and the last: <b>&.mp4, still.png


def test_prepared_folders(options, page):
  prepare(options)
  stored = dataclasses.replace(options, input=options.out, fps=3, side=99)
  text, pictures = page(stored)
  assert headings(text)[1:] == [
    "Dropped: 3",
    "16x16x16 at 8 fps: 2 clips",
    "1x16x16 at 8 fps: 2 clips",
  ]
  assert pictures[0].shape == (20, 146, 3)
  assert "bare.mp4: no caption" in text


def test_all_dropped(options, page):
  with pytest.raises(UserError, match="none of 7 files can be used: "):
    page(dataclasses.replace(options, num_frames=99))
  text = (page.folder / "index.html").read_text()
  assert headings(text) == ["Histograms", "Dropped: 7"]
  assert "<td>too short</td><td>3</td>" in text


def test_without_captions(options, page):
  folder = page.folder.parent / "bare"
  make(folder / "class", "x.mp4")
  bare = dataclasses.replace(options, input=str(folder))
  write_preview(
    bare, PreviewOptions(preview=str(page.folder)), need_captions=False
  )
  text = (page.folder / "index.html").read_text()
  assert "1 of 1 videos" in text
  assert "<b>class/x.mp4</b>" in text


@pytest.mark.parametrize("name", ["index.html", "data_report.jsonl"])
def test_files_of_others_stay(options, page, name):
  page.folder.mkdir()
  (page.folder / "clip-mine.jpg.txt").write_text("mine")
  page(options)
  assert (page.folder / "clip-mine.jpg.txt").read_text() == "mine"
  (page.folder / name).write_text("mine")
  with pytest.raises(UserError, match=f"{name}: is there already"):
    page(options)
  assert (page.folder / name).read_text() == "mine"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"preview": "gs://x/y"}, "is remote"),
    ({"preview": "{videos}/page"}, "is in the folder of videos"),
    ({"preview": "/proc/x"}, "cannot be written"),
    ({"preview": "x", "preview_clips": 0}, "must be at least 1"),
    ({"preview": "x", "preview_buckets": "8x8"}, "is not FRAMESxHEIGHTxWIDTH"),
  ],
)
def test_refused(options, videos, flags, message):
  flags["preview"] = flags["preview"].format(videos=videos)
  with pytest.raises(UserError, match=message):
    write_preview(options, PreviewOptions(**flags))


def test_histograms():
  assert histogram("none", []) == ""
  text = histogram("one <value>", [2.0, 2.0])
  assert "one &lt;value&gt;" in text
  assert "2 to 2, median 2; highest bar 2" in text
  text = histogram("two", [0, 1, 1], [1])
  assert "2 used, 1 dropped" in text
  assert "highest bar 3" in text


def test_the_command(options, page, videos):
  flags = f"--input={videos}", f"--preview={page.folder}", "--fps=8"
  cache = f"--cache={options.cache}"
  result = run_command("prepare", *flags, cache, "--side=16")
  assert result.returncode == 0, result.stderr
  assert "index.html, 4 of 4 clips" in result.stderr
  out = f"--out={options.out}"
  result = run_command("prepare", *flags, cache, "--side=16", out)
  assert result.returncode == 0, result.stderr
  assert "prepared: 4 clips" in result.stderr
  assert "index.html, 4 of 4 clips" in result.stderr
