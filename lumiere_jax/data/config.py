"""What a config says of the data of a stage."""

import dataclasses

from lumiere_jax.data.filters import Filters
from lumiere_jax.data.masks import MaskMix
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.video_index import parse_buckets
from lumiere_jax.errors import UserError, check_choice, check_least
from lumiere_jax.media.video_reader import RESAMPLING


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where clips come from and what is made of them.

  Attributes:
    source: 'files' (a folder of captioned videos or pictures), 'prepared' (a
      folder that `lumiere_jax.prepare` made), 'tfds' (a TensorFlow Datasets
      builder) or 'procedural' (scenes drawn from the seed).
    path: folder or URL of 'files' and 'prepared'; builder of 'tfds', e.g.
      'ucf101' or 'ucf101/ucf101_1:1.0.0'.
    tfds_dir: where 'tfds' keeps its data sets; '' is its own default.
    prompts: file of 'label|prompt' lines that caption the classes of 'tfds'
      and of folders of classes; '' takes the words of the label.
    cache: folder for copies of remote files, and for what was found in videos;
      '' is one in the user's cache.
    fps: frames a second that clips are resampled to.
    num_frames: length of a clip.
    resolution: side in pixels, or (height, width); kept as the latter, which
      a flag can change to either.
    buckets: further shapes of clips, 'FRAMESxHEIGHTxWIDTH' each, separated by
      spaces: a video goes to the longest that it fills, of those to the
      nearest in aspect. '' is off: all clips have the one shape.
    num_clips: scenes of 'procedural'.
    two_objects: share of 'procedural' scenes with two objects.
    moments: share of 'procedural' pictures that are a moment of a moving scene,
      captioned with its motion; the others stand still, and no word is said of
      motion.
    held_out: share of the videos kept from training for the held-out loss.
    crop: side of the random crops trained on; 0 is the whole frame.
    scene_cuts: change from one frame to the next, the mean over small
      thumbnails in grey levels of 255, that counts as a cut if it stands out
      from the changes around it; clips are taken between cuts. 15 suits: cuts
      between scenes change 27 or more in our clips, and of those between
      speakers before one wall five in six are found; what stands out without a
      cut reaches 15, in a close-up of fast motion at 16 frames a second. 0 is
      off.
    min_motion: least standard deviation over time of the thumbnails' pixels,
      in grey levels; what changes less is dropped. 0.5 suits: compressed
      stills have 0.04 or less, five seconds of people slowed down ten times 0.7
      or more. Slideshows with hard cuts go by both filters together; those with
      dissolves or zooms pass for footage. 0 is off.
    max_enlarge: videos that had to be enlarged more than this are dropped.
    min_fps_ratio: videos of a frame rate below this share of `fps` are dropped,
      for frames would come more than once; see `Filters`. 0 takes them all.
    resample: how frames are taken from videos of another rate: 'nearest' (the
      one on screen) or 'blend' (the two around each moment, weighted by their
      distance in time). From 24 frames a second to 16, the first moves by 1 and
      2 frames in turn (judder); the second makes every other frame the mean of
      two, in which whatever moves is seen twice (ghosts). 'nearest' is the
      default because every frame stays a real picture, and a model draws what
      it was shown: blending took up to a third of the fine detail (energy of
      the Laplacian) of what moves in pans at 25 frames a second, by turns, so
      that sharpness flickers. FFmpeg's `fps` filter and loaders that take
      frames by index do the same. Footage at a multiple of `fps` has neither
      fault; the report counts the rest.
    images: folder or URL of captioned pictures that are mixed in as one-frame
      clips; '' is none. Only where spatial layers train.
    image_share: share of the steps that take pictures.
    masks: mask patterns of the conditional model and how often each comes,
      e.g. 'first_frame:8 border:2'; see `masks.PATTERNS`.
    threads: that read and decode.
    workers: processes that make whole batches in place of the threads, where
      these cannot keep up with the device, as with 'procedural' and a GPU; the
      batches are the same. 0: none.
  """

  source: str = "files"
  path: str = ""
  tfds_dir: str = ""
  prompts: str = ""
  cache: str = ""
  fps: float = 16.0
  num_frames: int = 80
  resolution: int | tuple[int, ...] = 128
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

  def __post_init__(self):
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
    given = self.resolution
    sides = given if isinstance(given, tuple) else (given,)
    if len(sides) not in (1, 2) or not all(
      isinstance(side, int) and side > 0 for side in sides
    ):
      raise UserError(
        f"config.data.resolution={given!r}",
        "is neither a side nor (height, width) in pixels",
      )
    # Assigned so because the class is frozen.
    object.__setattr__(self, "resolution", (sides[0], sides[-1]))
    _ = self.specs, self.mask_mix  # so that what cannot be read is said now

  @property
  def name(self) -> str:
    """What was trained on, for a bundle to say."""
    return self.source if self.source == "procedural" else self.path

  @property
  def specs(self) -> tuple[ClipSpec, ...]:
    """The shapes of clips: the main one, then those of `buckets`."""
    shapes = [(self.num_frames, *self.resolution), *parse_buckets(self.buckets)]
    return tuple(
      ClipSpec(
        num_frames=t,
        fps=self.fps,
        resolution=(h, w),
        resample=self.resample,
      )
      for t, h, w in dict.fromkeys(shapes)
    )

  @property
  def mask_mix(self) -> MaskMix | None:
    """The mask patterns; None: no masks."""
    return MaskMix.parse(self.masks) if self.masks else None
