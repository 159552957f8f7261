"""The data section of a config."""

import dataclasses
from typing import Any

from lumiere_jax.data.filters import Filters
from lumiere_jax.data.masks import MaskMix
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.video_index import parse_buckets
from lumiere_jax.errors import UserError, check_choice, check_least
from lumiere_jax.media.video_reader import RESAMPLING


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The data source and how clips are taken from it.

  Attributes:
    source: 'files' (a folder of captioned videos or pictures), 'prepared' (a
      folder that `lumiere_jax.prepare` made), 'tfds' (a TensorFlow Datasets
      builder) or 'procedural' (scenes drawn from the seed).
    path: folder or URL of 'files' and 'prepared'; builder of 'tfds', e.g.
      'ucf101' or 'ucf101/ucf101_1:1.0.0'.
    tfds_dir: data directory of 'tfds'; '' is the library's default.
    prompts: file of 'label|prompt' lines with captions for the classes of
      'tfds' and of folders of classes; '' takes the words of the label.
    cache: folder for copies of remote files and for probed videos; '' is one
      in the user's cache.
    fps: frame rate of clips, in frames per second.
    num_frames: number of frames of a clip.
    resolution: side in pixels, or (height, width); stored as the latter.
    buckets: further shapes of clips, each 'FRAMESxHEIGHTxWIDTH', separated by
      spaces. A video goes to the longest shape that it can fill; of those, to
      the nearest in aspect ratio. '': all clips have one shape.
    num_clips: number of scenes of 'procedural'.
    two_objects: fraction of 'procedural' scenes with two objects.
    moments: fraction of 'procedural' pictures that show a moment of a moving
      scene and name its motion in the caption; the captions of the others
      leave it out.
    held_out: fraction of the videos held out from training for the held-out
      loss.
    crop: side of random training crops; 0 is the whole frame.
    scene_cuts: change between frames that counts as a cut, if it stands out
      from the changes around it; clips are taken between cuts. It is a mean
      over small thumbnails in grey levels of 255. 15 works well: in our clips
      cuts between scenes change by 27 or more, five in six cuts between
      speakers in front of one wall are found, and the largest change without a
      cut is 15, in a close-up of fast motion at 16 fps. 0 disables it.
    min_motion: minimum standard deviation over time of the thumbnails' pixels,
      in grey levels; videos that change less are dropped. 0.5 works well:
      compressed stills have 0.04 or less, people in tenfold slow motion 0.7 or
      more over five seconds. Together with `scene_cuts` it removes slideshows
      with hard cuts, but not those with dissolves or zooms. 0 disables it.
    max_enlarge: maximum factor by which a video may be enlarged.
    min_fps_ratio: videos whose frame rate is below this fraction of `fps` are
      dropped, because frames would repeat; see `Filters`. 0 accepts all.
    resample: frame rate conversion, 'nearest' (the frame on screen) or 'blend'
      (the two frames around each time, weighted by their distance). From 24 to
      16 fps, 'nearest' advances by 1 and 2 frames alternately (judder), and
      'blend' makes every other frame the mean of two (ghosting). 'nearest' is
      the default, like FFmpeg's `fps` filter, because a model reproduces what
      it is trained on: in pans at 25 fps, blending removed up to a third of
      the fine detail (energy of the Laplacian) from every other frame, so
      sharpness flickers. Rates that are a multiple of `fps` have neither
      problem; the data report counts the others.
    images: folder or URL of captioned pictures, mixed in as one-frame clips;
      '': none. Only for stages that train spatial layers.
    image_share: fraction of the steps that train on pictures.
    masks: mask patterns of the conditional model and their relative weights,
      e.g. 'first_frame:8 border:2'; of 'none', 'everything', 'first_frame',
      'first_last', 'first_k', 'random_frames', 'random_boxes', 'moving_boxes',
      'border', 'region'. See `masks.PATTERNS`.
    threads: number of threads that read and decode.
    workers: number of processes that make batches in place of the threads, for
      sources limited by Python, such as 'procedural' with a GPU; the batches
      are the same. 0: none.
  """

  source: str = "files"
  path: str = ""
  tfds_dir: str = ""
  prompts: str = ""
  cache: str = ""
  fps: float = 16.0
  num_frames: int = 80
  resolution: tuple[int, int] = (128, 128)
  buckets: str = ""
  num_clips: int = 4096
  two_objects: float = 0.25
  moments: float = 0.0
  held_out: float = 0.05
  crop: int = 0
  scene_cuts: float = 0.0
  min_motion: float = 0.0
  max_enlarge: float = 4.0
  min_fps_ratio: float = Filters.min_fps_ratio
  resample: str = "nearest"
  images: str = ""
  image_share: float = 0.2
  masks: str = ""
  threads: int = 16
  workers: int = 0

  def __post_init__(self) -> None:
    above_0 = "fps", "num_frames", "num_clips", "threads", "max_enlarge"
    check_least(self, "config.data", above_0, above=0)
    from_0 = "scene_cuts", "min_motion", "min_fps_ratio", "crop", "workers"
    check_least(self, "config.data", from_0, least=0)
    check_choice("config.data.resample", self.resample, RESAMPLING)
    if not 0 < self.image_share < 1:
      raise UserError(
        f"config.data.image_share={self.image_share}",
        "must lie between 0 and 1",
      )
    given: Any = self.resolution
    sides = given if isinstance(given, tuple) else (given, given)
    if len(sides) == 1:
      sides *= 2
    is_size = lambda side: isinstance(side, int) and side > 0
    if len(sides) != 2 or not all(map(is_size, sides)):
      raise UserError(
        f"config.data.resolution={given!r}",
        "is neither a side nor (height, width) in pixels",
      )
    object.__setattr__(self, "resolution", sides)
    _ = self.specs, self.mask_mix  # Parses them, to raise errors now.

  @property
  def name(self) -> str:
    """Name of the training data, for the model card."""
    return self.source if self.source == "procedural" else self.path

  @property
  def specs(self) -> tuple[ClipSpec, ...]:
    """The shapes of clips: the main one, then those of `buckets`."""
    shapes = [(self.num_frames, *self.resolution), *parse_buckets(self.buckets)]
    return tuple(
      ClipSpec(
        num_frames=t, fps=self.fps, resolution=(h, w), resample=self.resample
      )
      for t, h, w in dict.fromkeys(shapes)
    )

  @property
  def filters(self) -> Filters:
    return Filters(
      scene_cuts=self.scene_cuts,
      min_motion=self.min_motion,
      max_enlarge=self.max_enlarge,
      min_fps_ratio=self.min_fps_ratio,
    )

  @property
  def mask_mix(self) -> MaskMix | None:
    """The mask patterns; None if there are none."""
    return MaskMix.parse(self.masks) if self.masks else None
