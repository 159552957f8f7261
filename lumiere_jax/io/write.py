"""Writes videos, in the format that the ending of their path says.

  .mp4            H.264, yuv420p, faststart: plays in browsers
  .webm           VP9, yuv420p: as well; smaller, and slower to write
  .gif            looping, one palette made for the video
  .npy            the uint8 array itself
  no ending, or / a folder of numbered png images

The same video gives the same bytes, on any number of cores.
"""

from collections.abc import Iterator
from fractions import Fraction
import os
from pathlib import Path
import re

import av
from jaxtyping import UInt8
import numpy as np

from lumiere_jax.io.atomic import replacing
from lumiere_jax.io.h264 import write_h264
from lumiere_jax.io.image import write_image
from lumiere_jax.io.vp9 import write_vp9
from lumiere_jax.typing import UserError

Clip = UInt8[np.ndarray, "t h w 3"]
_BITEXACT = {"fflags": "+bitexact"}
_GIF_TICKS = 100  # per second
_GIF_MAX_FPS = 50
_PNG_NAME = re.compile(r"\d{5,}\.png")


def check_output(path) -> None:
  """Raises a UserError where `write_video` cannot write; costs nothing."""
  _writer_for(path)


def write_video(path, video: Clip, fps: float, *, crf: int = 17) -> None:
  """Writes a video as the ending of `path` says; see the head of this module.

  Parent folders are made. The file appears under its name when it is whole.
  For mp4 and webm, odd heights and widths grow by one repeated row or column.

  Args:
    path: str or Path.
    video: (t, h, w, 3) uint8, RGB.
    fps: frames per second; npy and png do not hold it.
    crf: quality of mp4 and webm, 1 (best) to 51; 17 looks like the original.

  Raises:
    UserError: the ending is not known or an argument is out of range.
  """
  _check(path, video, fps, crf)
  write = _writer_for(path)
  settings = {"crf": crf} if write in (_write_mp4, _write_webm) else {}
  with replacing(path) as temporary:
    write(temporary, video, fps, **settings)


def _check(path, video: Clip, fps: float, crf: int) -> None:
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise UserError(
      f"{path}: cannot write {video.dtype} {video.shape}; "
      "a video is uint8 (t, h, w, 3)"
    )
  if not video.size:
    raise UserError(f"{path}: cannot write {video.shape}: it has no pixels")
  if not fps > 0:
    raise UserError(f"{path}: fps is {fps}; give a number above 0")
  if not 1 <= crf <= 51:
    raise UserError(f"{path}: crf is {crf}; give 1 (best) to 51 (smallest)")
  if Path(path).suffix.lower() == ".gif" and fps > _GIF_MAX_FPS:
    raise UserError(
      f"{path}: gif shows at most {_GIF_MAX_FPS} frames per second, not "
      f"{fps:g}; write mp4 or webm"
    )


def _writer_for(path):
  writers = {
    ".mp4": _write_mp4,
    ".webm": _write_webm,
    ".gif": _write_gif,
    ".npy": _write_npy,
  }
  suffix = Path(path).suffix.lower()
  if not suffix or os.fspath(path).endswith("/"):
    _require_ours(Path(path))
    return _write_png
  if suffix not in writers:
    raise UserError(
      f"{path}: cannot write videos that end in {suffix!r}; known: "
      f"{', '.join(writers)}, and no ending for a folder of png"
    )
  if Path(path).is_dir():
    raise UserError(f"{path}: is a folder; name a file, or another ending")
  return writers[suffix]


def _require_ours(folder: Path) -> None:
  """A folder is replaced only if it holds nothing but our numbered images."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder}: is a file; name a folder for png images")
  others = [p.name for p in folder.glob("*") if not _PNG_NAME.match(p.name)]
  if others:
    raise UserError(
      f"{folder}: already holds other files ({others[0]}); "
      "name a new folder for png images"
    )


def _write_mp4(path: Path, video: Clip, fps: float, crf: int) -> None:
  write_h264(f"file:{path}", _even(video), fps, crf)


def _write_webm(path: Path, video: Clip, fps: float, crf: int) -> None:
  write_vp9(f"file:{path}", _even(video), fps, crf)


def _even(video: Clip) -> Clip:
  """What 4:2:0 chroma needs."""
  h, w = video.shape[1:3]
  return np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), "edge")


def _write_gif(path: Path, video: Clip, fps: float) -> None:
  # Rounding the times, not the delays, keeps the whole length right.
  times = np.round(np.arange(len(video) + 1) * _GIF_TICKS / fps).astype(int)
  t, h, w, _ = video.shape
  graph = _palette_graph(h, w)
  with av.open(f"file:{path}", "w", format="gif", options=_BITEXACT) as out:
    stream = out.add_stream("gif", _GIF_TICKS, {"flags": "+bitexact"})
    stream.height, stream.width, stream.pix_fmt = h, w, "pal8"
    for frame in _gif_frames(video, times[:-1]):
      graph.push(frame)
    graph.push(None)
    for k in range(t):
      frame = graph.pull()
      frame.pts, frame.time_base = int(times[k]), Fraction(1, _GIF_TICKS)
      for packet in stream.encode(frame):
        packet.duration = int(times[k + 1] - times[k])
        out.mux(packet)
    out.mux(stream.encode(None))


def _gif_frames(video: Clip, times) -> Iterator[av.VideoFrame]:
  """Frames that begin at `times`, in ticks."""
  for pixels, time in zip(video, times, strict=True):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    frame.pts, frame.time_base = int(time), Fraction(1, _GIF_TICKS)
    yield frame


def _palette_graph(height: int, width: int) -> av.filter.Graph:
  """rgb24 in, pal8 out: one palette of 256 colours for the whole video."""
  graph = av.filter.Graph()
  source = graph.add_buffer(
    width=width,
    height=height,
    format=av.VideoFormat("rgb24"),
    time_base=Fraction(1, _GIF_TICKS),
  )
  split = graph.add("split")
  palette = graph.add("palettegen", "reserve_transparent=0")
  use = graph.add("paletteuse", "dither=sierra2_4a")
  sink = graph.add("buffersink")
  source.link_to(split)
  split.link_to(use, 0, 0)
  split.link_to(palette, 1, 0)
  palette.link_to(use, 0, 1)
  use.link_to(sink)
  graph.configure()
  return graph


def _write_npy(path: Path, video: Clip, fps: float) -> None:
  del fps
  with open(path, "wb") as file:
    np.save(file, video, allow_pickle=False)


def _write_png(folder: Path, video: Clip, fps: float) -> None:
  del fps
  folder.mkdir()
  for k, pixels in enumerate(video):
    write_image(folder / f"{k:05d}.png", pixels)
