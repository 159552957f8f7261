"""Writes videos: mp4 (H.264), webm (VP9), gif, npy and folders of PNG files.

Files appear under their final name only when they are complete.
"""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
import io
import itertools
import os
from pathlib import Path
import re
from typing import Literal

import av
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.media.input_file import RGBImage
from lumiere_jax.media.resize import SCALING
from lumiere_jax.storage.atomic import replacing
from lumiere_jax.typing import Clip

Frames = Iterable[RGBImage]
_BITEXACT = {"fflags": "+bitexact"}
_BT709 = 1  # the code of BT.709 in the three colour tables of H.273
GROUP = 8
"""Distance between key frames in `encode_clip`."""

# x264's output depends on the number of threads, which is therefore fixed.
# Without cpu-independent it varies between runs even so (seen in 1 of 10).
_H264 = {"preset": "medium", "threads": "4", "x264-params": "cpu-independent=1"}

# Closed groups without reordering: decoding a frame needs only the frames since
# the last key frame. Many clips are encoded at a time, so one thread each.
_SHORT_GROUPS = {
  "threads": "1",
  "x264-params": f"cpu-independent=1:keyint={GROUP}:min-keyint={GROUP}:"
  "scenecut=0:open-gop=0:bframes=0",
}

# With row-mt the output depends on the number of threads (seen from one thread
# to two).
_VP9 = {
  "deadline": "good",
  "cpu-used": "2",
  "row-mt": "0",
  "threads": "4",
  "b": "0",  # constant quality instead of a bit rate
}

_MAX_CRF, _MAX_CRF_VP9 = 51, 63


def encode_clip(frames: Frames, fps: float, *, crf: int = 17) -> bytes:
  """Encodes an mp4 file in memory, with fast random access.

  Args:
    frames: RGB, one or more, of one even size.
    fps: frames per second.
    crf: quality, 1 (best) to 51; 17 looks like the original.
  """
  file = io.BytesIO()
  options = _H264 | _SHORT_GROUPS | {"crf": str(crf)}
  _encode(file, frames, fps, "mp4", "libx264", options)
  return file.getvalue()


def _encode(
  target: str | io.BytesIO,
  frames: Frames,
  fps: float,
  container: str,
  codec: Literal["libx264", "libvpx-vp9"],
  options: Mapping[str, str],
  **muxer: str,
) -> None:
  """Encodes one or more RGB frames of one even size, with FFmpeg's options."""
  frames = iter(frames)
  first = next(frames)
  rate = Fraction(fps).limit_denominator(1001)  # 25, 25/2, 30000/1001
  reformatter = VideoReformatter()
  with av.open(target, "w", format=container, options=_BITEXACT | muxer) as out:
    stream = out.add_stream(codec, rate, {"flags": "+bitexact"} | dict(options))
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    for time, pixels in enumerate(itertools.chain([first], frames)):
      frame = reformatter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"),
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=SCALING,
        threads=1,
      )
      frame.pts, frame.time_base = time, 1 / rate
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


_GIF_TICKS = 100  # per second
_GIF_MAX_FPS = 50
_Writer = Callable[[Path, Clip, float, int], None]
_PNG_NAME = re.compile(r"\d{5,}\.png")


def check_output(path) -> None:
  """Raises a UserError if `write_video` could not write to `path`."""
  _writer_for(path)


def write_video(path, video: Clip, fps: float, *, crf: int = 17) -> None:
  """Writes a video in the format of its ending; see the module docstring.

  Parent folders are made. In mp4 and webm, odd heights and widths grow by one
  repeated row or column.

  Args:
    path: .mp4, .webm, .gif, .npy, or no ending for a folder of png files.
    video: (t, h, w, 3) uint8, RGB.
    fps: frames per second; npy and png do not store it.
    crf: quality of mp4 and webm, 1 (best) to 51; 17 looks like the original.
  """
  write, suffix = _writer_for(path), Path(path).suffix.lower()
  is_video = video.dtype == np.uint8 and video.shape[3:] == (3,)
  kind, crfs = f"{video.dtype} {video.shape}", f"1 (best) to {_MAX_CRF}"
  gif = f"gif allows at most {_GIF_MAX_FPS} frames per second, not {fps:g}"
  checks = [
    (is_video, f"cannot write {kind}", "a video is uint8 (t, h, w, 3)"),
    (video.size, f"cannot write {video.shape}: it has no pixels", ""),
    (fps > 0, f"fps is {fps}", "give a number above 0"),
    (1 <= crf <= _MAX_CRF, f"crf is {crf}", f"give {crfs} (smallest)"),
    (suffix != ".gif" or fps <= _GIF_MAX_FPS, gif, "write mp4 or webm"),
  ]
  for holds, problem, fix in checks:
    if not holds:
      raise UserError(f"{path}:", problem, fix)
  with replacing(path) as temporary:
    write(temporary, video, fps, crf)


def _writer_for(path) -> _Writer:
  writers: dict[str, _Writer] = {
    ".mp4": _write_mp4,
    ".webm": _write_webm,
    ".gif": _write_gif,
    ".npy": _write_npy,
  }
  folder, suffix = Path(path), Path(path).suffix.lower()
  if not suffix or os.fspath(path).endswith("/"):
    if folder.exists() and not folder.is_dir():
      raise UserError(f"{folder}:", "is a file", "name a folder for png images")
    others = [p.name for p in folder.glob("*") if not _PNG_NAME.match(p.name)]
    if others:
      raise UserError(
        f"{folder}:",
        f"already holds other files ({others[0]})",
        "name a new folder for png images",
      )
    return _write_png
  if suffix not in writers:
    raise UserError(
      f"{path}:",
      f"cannot write videos that end in {suffix!r}",
      f"known: {', '.join(writers)}, and no ending for a folder of png",
    )
  if folder.is_dir():
    raise UserError(f"{path}:", "is a folder", "name a file, or another ending")
  return writers[suffix]


def _write_mp4(path: Path, video: Clip, fps: float, crf: int) -> None:
  options = _H264 | {"crf": str(crf)}
  target, video = f"file:{path}", _even(video)
  # The index at the front lets players start before they have the whole file.
  faststart = {"movflags": "+faststart"}
  _encode(target, video, fps, "mp4", "libx264", options, **faststart)


def _write_webm(path: Path, video: Clip, fps: float, crf: int) -> None:
  # The same crf looks about the same as in H.264.
  options = _VP9 | {"crf": str(round(crf * _MAX_CRF_VP9 / _MAX_CRF))}
  _encode(f"file:{path}", _even(video), fps, "webm", "libvpx-vp9", options)


def _even(video: Clip) -> Clip:
  """Pads to the even size that 4:2:0 chroma needs."""
  h, w = video.shape[1:3]
  return np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), "edge")


def _write_gif(path: Path, video: Clip, fps: float, _: int) -> None:
  # Rounding times instead of delays keeps the total length right.
  times = np.round(np.arange(len(video) + 1) * _GIF_TICKS / fps).astype(int)
  h, w = video.shape[1:3]
  graph = _palette_graph(h, w)
  with av.open(f"file:{path}", "w", format="gif", options=_BITEXACT) as out:
    stream = out.add_stream("gif", _GIF_TICKS, {"flags": "+bitexact"})
    stream.height, stream.width, stream.pix_fmt = h, w, "pal8"
    for pixels, time in zip(video, times.tolist(), strict=False):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
      frame.pts, frame.time_base = time, Fraction(1, _GIF_TICKS)
      graph.vpush(frame)
    graph.vpush(None)
    for time, end in itertools.pairwise(times.tolist()):
      frame = graph.vpull()
      frame.pts, frame.time_base = time, Fraction(1, _GIF_TICKS)
      for packet in stream.encode(frame):
        packet.duration = end - time
        out.mux(packet)
    out.mux(stream.encode(None))


def _palette_graph(height: int, width: int) -> av.filter.Graph:
  """A filter from rgb24 to pal8: one palette of 256 colours per video."""
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


def _write_npy(path: Path, video: Clip, *_: float) -> None:
  with open(path, "wb") as file:
    np.save(file, video, allow_pickle=False)


def _write_png(folder: Path, video: Clip, *_: float) -> None:
  folder.mkdir()
  for k, pixels in enumerate(video):
    write_image(folder / f"{k:05d}.png", pixels)
