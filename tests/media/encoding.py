"""Encodes small videos in which six bars show each frame's number."""

from fractions import Fraction

import av
import numpy as np

H264 = {"g": "12", "bf": "3", "crf": "4"}

KINDS = {  # name -> codec, encoder options, muxer
  "h264.mp4": ("libx264", H264, None),
  "h264.mkv": ("libx264", H264, None),
  "h264.flv": ("libx264", H264, None),
  "h264.ts": ("libx264", H264, "mpegts"),
  "h264.avi": ("libx264", H264, None),
  "h264.h264": ("libx264", H264, "h264"),
  "open_gop.mp4": ("libx264", H264 | {"x264-params": "open-gop=1"}, None),
  "mpeg4.avi": ("mpeg4", {"g": "12", "b": "4000000"}, None),
  "mpeg4_b.avi": ("mpeg4", {"g": "12", "bf": "2", "b": "4000000"}, None),
  "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2", "b": "4000000"}, None),
  "ffv1.mkv": ("ffv1", {}, None),
}


def plain(count: int) -> np.ndarray:
  """(count, 48, 96, 3): the number of each frame in binary, as bars."""
  bits = np.arange(count)[:, None] >> np.arange(6) & 1
  bars = np.where(bits, 200, 50).astype(np.uint8).repeat(16, axis=1)
  return np.broadcast_to(bars[:, None, :, None], (count, 48, 96, 3))


def number(clip: np.ndarray) -> list[int]:
  """The number of each frame, read from its bars."""
  bars = clip[:, 8:40, :, :].mean((1, 3)).reshape(len(clip), 6, -1)
  return ((bars.mean(2) > 125) @ (1 << np.arange(6))).tolist()


def encode(
  path,
  video,
  *,
  fps=25,
  kind="ffv1.mkv",
  pts=None,
  ticks=None,
  yuv=None,
  colours=(None, None),
  setup=lambda stream: None,
  options=None,
):
  """Encodes rgb (t, h, w, 3), or planar 4:4:4 (t, 3, h, w) as `yuv`."""
  codec, codec_options, muxer = KINDS[kind]
  rate = Fraction(fps).limit_denominator(1001)
  source = video if yuv is None else yuv
  with av.open(str(path), "w", format=muxer, options=options or {}) as out:
    stream = out.add_stream(codec, rate, codec_options)
    size = source.shape[1:3] if yuv is None else source.shape[2:4]
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p" if yuv is None else "yuv444p"
    if ticks:
      stream.codec_context.time_base = Fraction(1, ticks)
    colorspace, color_range = colours
    if colorspace:
      stream.codec_context.colorspace = colorspace
      stream.codec_context.color_range = color_range
    setup(stream)
    for k, pixels in enumerate(source):
      layout = "rgb24" if yuv is None else "yuv444p"
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), layout)
      if yuv is None:
        frame = frame.reformat(format="yuv420p")
      elif colorspace:
        frame.colorspace, frame.color_range = colorspace, color_range
      frame.pts = k if pts is None else pts[k]
      frame.time_base = Fraction(1, ticks) if ticks else 1 / rate
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return path


def with_audio(path, seconds, video=None):
  """A file with a silent audio stream and optional video at 25 fps."""
  with av.open(str(path), "w") as out:
    pictures = out.add_stream("libx264", 25) if video is not None else None
    audio = out.add_stream("aac", 16000, layout="mono")
    for k, pixels in enumerate([] if video is None else video):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
      if not k:
        pictures.height, pictures.width = pixels.shape[:2]
      frame.pts, frame.time_base = k, Fraction(1, 25)
      out.mux(pictures.encode(frame))
    silence = np.zeros((1, 16000 * seconds), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
    frame.sample_rate, frame.pts = 16000, 0
    frame.time_base = Fraction(1, 16000)
    for stream in filter(None, (pictures, audio)):
      out.mux(stream.encode(frame) if stream is audio else [])
      out.mux(stream.encode(None))
  return path


def store(path, codec, pictures, layout, options=(), tags=(), prepare=None):
  """Encodes rgb, rgba or 16-bit yuv pictures in a pixel layout."""
  kind = "rgba" if pictures.shape[-1] == 4 else "rgb24"
  kind = "yuv444p16le" if pictures.dtype == np.uint16 else kind
  with av.open(str(path), "w") as out:
    stream = out.add_stream(codec, 10, dict(options))
    stream.height, stream.width = pictures.shape[1:3]
    stream.pix_fmt = layout
    for name, value in dict(tags).items():
      setattr(stream.codec_context, name, value)
    for k, picture in enumerate(pictures):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), kind)
      frame = frame.reformat(format=layout)
      frame.pts, frame.time_base = k, Fraction(1, 10)
      out.mux(stream.encode(prepare(frame) if prepare else frame))
    out.mux(stream.encode(None))
  return path
