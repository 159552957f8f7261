"""Writes videos: mp4 (H.264), webm (VP9), gif, npy and folders of PNG files.

The codecs and their options are here. Files are whole or not there at all.
"""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
import io
import itertools
import os
from pathlib import Path
import re
from typing import Any

import av
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.media.resize import SCALING
from lumiere_jax.storage.atomic import replacing
from lumiere_jax.typing import Clip

Frames = Iterable[UInt8[np.ndarray, "h w 3"]]


_BT709 = 1  # the number of BT.709 in the three colour tables of H.273


def encode(
  target: Any,
  frames: Frames,
  fps: float,
  *,
  container: str,
  muxer: Mapping[str, str],
  codec: str,
  options: Mapping[str, str],
) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second.
    container: FFmpeg's name of it, such as "mp4".
    muxer: its options.
    codec: FFmpeg's name of an encoder, such as "libx264".
    options: its options.
  """
  frames = iter(frames)
  first = next(frames)
  rate = Fraction(fps).limit_denominator(1001)  # 25, 25/2, 30000/1001
  muxer = {"fflags": "+bitexact"} | dict(muxer)
  reformatter = VideoReformatter()
  with av.open(target, "w", format=container, options=muxer) as out:
    stream = out.add_stream(codec, rate, {"flags": "+bitexact"} | dict(options))
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    for time, pixels in enumerate(itertools.chain([first], frames)):
      frame = _to_yuv(reformatter, pixels)
      frame.pts, frame.time_base = time, 1 / rate
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _to_yuv(
  reformatter: VideoReformatter, pixels: UInt8[np.ndarray, "h w 3"]
) -> av.VideoFrame:
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
  return reformatter.reformat(
    frame,
    format="yuv420p",
    dst_colorspace=Colorspace.ITU709,
    dst_color_range=ColorRange.MPEG,
    interpolation=SCALING,
    threads=1,
  )


GROUP = 8
"""Frames from one key frame of `encode_clip` to the next."""


# x264's bytes depend on the number of threads, so that is fixed; and without
# cpu-independent they vary from run to run even with one (seen in 1 of 10).
_H264 = {
  "preset": "medium",
  "threads": "4",
  "x264-params": "cpu-independent=1",
}


# Any frame is reached from the key frame before it, with nothing after it: no
# reordering, no group that leans on the one before. Many clips are encoded at
# a time, so one thread each.
_SHORT_GROUPS = {
  "threads": "1",
  "x264-params": f"cpu-independent=1:keyint={GROUP}:min-keyint={GROUP}:"
  "scenecut=0:open-gop=0:bframes=0",
}


def write_h264(
  target: Any,
  frames: Frames,
  fps: float,
  crf: int,
  *,
  short_groups: bool = False,
) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second.
    crf: quality, 1 (best) to 51.
    short_groups: a key frame every `GROUP` frames, for quick random access;
      otherwise smaller, with the index at the front for players.
  """
  encode(
    target,
    frames,
    fps,
    container="mp4",
    muxer={} if short_groups else {"movflags": "+faststart"},
    codec="libx264",
    options=_H264 | (_SHORT_GROUPS if short_groups else {}) | {"crf": str(crf)},
  )


def encode_clip(frames: Frames, fps: float, *, crf: int = 17) -> bytes:
  """An mp4 file in memory, any part of which is decoded quickly.

  Args:
    frames: RGB, one or more, of one even size.
    fps: frames per second.
    crf: quality, 1 (best) to 51; 17 looks like the original.
  """
  file = io.BytesIO()
  write_h264(file, frames, fps, crf, short_groups=True)
  return file.getvalue()


# Without row-mt the bytes do not depend on the number of threads; with it they
# do (seen from one thread to two).
_VP9 = {
  "deadline": "good",
  "cpu-used": "2",
  "row-mt": "0",
  "threads": "4",
  "b": "0",  # no bit rate to keep to: constant quality
}


_WORST, _WORST_OF_H264 = 63, 51


def write_vp9(target: Any, frames: Frames, fps: float, crf: int) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second; webm rounds times to milliseconds.
    crf: quality on the scale of H.264, 1 (best) to 51: the same number looks
      about the same.
  """
  options = _VP9 | {"crf": str(round(crf * _WORST / _WORST_OF_H264))}
  encode(
    target,
    frames,
    fps,
    container="webm",
    muxer={},
    codec="libvpx-vp9",
    options=options,
  )


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
      f"{path}:",
      f"cannot write {video.dtype} {video.shape}",
      "a video is uint8 (t, h, w, 3)",
    )
  if not video.size:
    raise UserError(f"{path}:", f"cannot write {video.shape}: it has no pixels")
  if not fps > 0:
    raise UserError(f"{path}:", f"fps is {fps}", "give a number above 0")
  if not 1 <= crf <= 51:
    raise UserError(
      f"{path}:", f"crf is {crf}", "give 1 (best) to 51 (smallest)"
    )
  if Path(path).suffix.lower() == ".gif" and fps > _GIF_MAX_FPS:
    raise UserError(
      f"{path}:",
      f"gif shows at most {_GIF_MAX_FPS} frames per second, not {fps:g}",
      "write mp4 or webm",
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
      f"{path}:",
      f"cannot write videos that end in {suffix!r}",
      f"known: {', '.join(writers)}, and no ending for a folder of png",
    )
  if Path(path).is_dir():
    raise UserError(f"{path}:", "is a folder", "name a file, or another ending")
  return writers[suffix]


def _require_ours(folder: Path) -> None:
  """A folder is replaced only if it holds nothing but our numbered images."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder}:", "is a file", "name a folder for png images")
  others = [p.name for p in folder.glob("*") if not _PNG_NAME.match(p.name)]
  if others:
    raise UserError(
      f"{folder}:",
      f"already holds other files ({others[0]})",
      "name a new folder for png images",
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
