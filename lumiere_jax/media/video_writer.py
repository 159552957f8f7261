"""Writes videos: mp4 (H.264), webm (VP9), gif, npy and folders of PNG files.

Files appear under their final name only when they are complete.
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
  file, options = io.BytesIO(), _H264 | _SHORT_GROUPS | {"crf": str(crf)}
  _encode(file, frames, fps, "mp4", "libx264", options)
  return file.getvalue()


def _encode(
  target: Any,
  frames: Frames,
  fps: float,
  container: str,
  codec: str,
  options: Mapping[str, str],
  **muxer: str,
) -> None:
  """Encodes RGB frames of one even size.

  Args:
    target: what PyAV can write to.
    frames: one or more.
    fps: frames per second.
    container: FFmpeg's name of the format, such as "mp4".
    codec: FFmpeg's name of the encoder, such as "libx264".
    options: options of the encoder.
    muxer: options of the format.
  """
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
  if not 1 <= crf <= _MAX_CRF:
    fix = f"give 1 (best) to {_MAX_CRF} (smallest)"
    raise UserError(f"{path}:", f"crf is {crf}", fix)
  if Path(path).suffix.lower() == ".gif" and fps > _GIF_MAX_FPS:
    raise UserError(
      f"{path}:",
      f"gif allows at most {_GIF_MAX_FPS} frames per second, not {fps:g}",
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
    _check_replaceable(Path(path))
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


def _check_replaceable(folder: Path) -> None:
  """Raises unless a folder holds nothing but numbered png images."""
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


def _write_gif(path: Path, video: Clip, fps: float) -> None:
  # Rounding times instead of delays keeps the total length right.
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
  """Frames with `times` as timestamps, in ticks."""
  for pixels, time in zip(video, times, strict=True):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    frame.pts, frame.time_base = int(time), Fraction(1, _GIF_TICKS)
    yield frame


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


def _write_npy(path: Path, video: Clip, fps: float) -> None:
  del fps
  with open(path, "wb") as file:
    np.save(file, video, allow_pickle=False)


def _write_png(folder: Path, video: Clip, fps: float) -> None:
  del fps
  folder.mkdir()
  for k, pixels in enumerate(video):
    write_image(folder / f"{k:05d}.png", pixels)
