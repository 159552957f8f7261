"""What a stream or its container states of how frames are shown.

Decoders apply little of it: cropping, field order and colour tags that only the
container states are applied here, to decoded frames.
"""

from collections.abc import Sequence
import dataclasses
from fractions import Fraction

import av
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext

from lumiere_jax.errors import VideoError
from lumiere_jax.media.container_crop import NO_CROP, Crop, container_crops

_TAGS = "colorspace", "color_range", "color_trc", "color_primaries"
_UNSPECIFIED = {"color_range": 0}  # of the others it is 2
_RESERVED_COLORSPACE = 3

# Colour matrices that FFmpeg's scaler does not know.
_OTHER_MATRICES = dict.fromkeys(range(8, 18), "another matrix") | {
  8: "YCgCo",
  10: "BT.2020 with constant luminance",
  14: "ICtCp",
}
del _OTHER_MATRICES[9]

# libavcodec's AVFieldOrder: which field is shown first.
_FIELD_ORDERS = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}

# Decoders that flag interlaced frames; of others the container states it.
_FLAG_FIELDS = {
  *("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3", "cavs"),
  *("dvvideo", "prores", "dnxhd", "ffv1"),
}

# FFmpeg's own decoders of these ignore alpha.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presentation:
  """How the frames of a stream are shown, apart from what they state.

  Attributes:
    path: the file.
    tags: libav's numbers of the colour tags, for frames without them.
    fields: which field is first ("tff" or "bff") if frames do not state it
      themselves; None if they do, or are progressive.
    crop: what the container crops.
  """

  path: str
  tags: dict[str, int]
  fields: str | None
  crop: Crop

  def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
    """The frame tagged, deinterlaced and cropped; time and side data stay.

    Deinterlacing uses no other frame, so that a frame looks the same wherever
    reading begins.

    Raises:
      VideoError: the frame's colours cannot be converted.
    """
    for name, value in self.tags.items():
      if getattr(frame, name) == _UNSPECIFIED.get(name, 2):
        setattr(frame, name, value)
    if frame.colorspace == _RESERVED_COLORSPACE:
      frame.colorspace = 2
    if frame.colorspace in _OTHER_MATRICES and not frame.format.is_rgb:
      kind = _OTHER_MATRICES[frame.colorspace]
      raise VideoError(
        self.path,
        f"colours as {kind}, which is not supported; convert it to BT.709",
      )
    filters = []
    if frame.interlaced_frame or self.fields:
      parity = "auto" if frame.interlaced_frame else self.fields
      filters.append(("w3fdif", f"mode=frame:parity={parity}"))
    left, top, right, bottom = self.crop
    width, height = frame.width - left - right, frame.height - top - bottom
    if any(self.crop) and min(width, height) > 0:
      filters.append(("crop", f"{width}:{height}:{left}:{top}:exact=1"))
    return _filtered(frame, filters) if filters else frame


def presentation(path, container, stream: av.VideoStream) -> Presentation:
  """Reads it from an opened file of which nothing has been decoded yet."""
  context = stream.codec_context
  number = container.streams.video.index(stream)
  order = _FIELD_ORDERS.get(context.field_order)
  crops = container_crops(path, container.format.name)
  return Presentation(
    path=str(path),
    tags={name: getattr(context, name) for name in _TAGS},
    fields=None if context.name in _FLAG_FIELDS else order,
    crop=crops[number] if number < len(crops) else NO_CROP,
  )


def decoder(stream: av.VideoStream) -> VideoCodecContext:
  """The stream's decoder, or one that decodes alpha too."""
  context = stream.codec_context
  name = _ALPHA_DECODERS.get(context.name)
  if name is None or stream.metadata.get("alpha_mode") != "1":
    return context
  found = av.CodecContext.create(name, "r")
  assert isinstance(found, VideoCodecContext)
  found.extradata = context.extradata
  return found


def _filtered(
  frame: av.VideoFrame, filters: Sequence[tuple[str, str]]
) -> av.VideoFrame:
  """Runs one frame through FFmpeg's filters: (name, options) of each."""
  graph = Graph()
  nodes = [
    graph.add_buffer(
      width=frame.width,
      height=frame.height,
      format=frame.format,
      time_base=frame.time_base or Fraction(1, 1000),
    ),
    *(graph.add(name, options) for name, options in filters),
    graph.add("buffersink"),
  ]
  graph.link_nodes(*nodes).configure()
  graph.push(frame)
  graph.push(None)
  result = graph.vpull()
  result.pts, result.time_base = frame.pts, frame.time_base
  result.duration = frame.duration
  return result
