"""The Python API: every task as a method of a loaded cascade."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
from typing import Unpack

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Bool, Float, UInt8
import numpy as np

from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.cascade import (
  Cascade,
  Prompt,
  SamplingInputs,
  Stage,
  pair_up,
)
from lumiere_jax.inference.compositing import (
  check_video,
  composite,
  mask_of_size,
  picture_of_size,
  video_of_size,
)
from lumiere_jax.inference.loading import load
from lumiere_jax.inference.sample_options import (
  SampleOptions,
  check_options,
  require_prompt,
  settings_of,
  with_settings,
)
from lumiere_jax.inference.settings import DEFAULT_SETTINGS, Settings
from lumiere_jax.inference.styles import read_style
from lumiere_jax.inference.styles import styled as blend_in
from lumiere_jax.inference.windowing import pad_to_windows
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.conditioning import MaskedVideo, to_uint8
from lumiere_jax.typing import Clip, Video

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"]


class Pipeline(Cascade):
  """A loaded cascade and the tasks it can do.

  Every task takes one prompt or several, and the keyword options of
  `SampleOptions`. One prompt with one seed gives one video, uint8
  (t, h, w, 3); otherwise videos are stacked, (b, t, h, w, 3), and a single
  prompt is used for all seeds. Given pictures and videos of any size are
  resized to cover the model's size and cropped at the centre. Tasks that are
  given pixels put these back unchanged (`composited`); over `feather` pixels,
  generated ones fade into them.

  Tasks that take pixels need a bundle with a conditional stage. What does not
  fit raises a `UserError`.
  """

  def __init__(
    self,
    text: TextEncoder,
    stages: dict[str, Stage],
    mesh: Mesh | None = None,
    conditional: Callable[[], Stage] | None = None,
  ):
    """Combines loaded parts as `Cascade` does; see `from_pretrained`.

    `conditional` loads the pixel-conditioned base, where it is a stage of its
    own.
    """
    super().__init__(text, stages, mesh)
    self._conditional = conditional

  @classmethod
  def from_pretrained(
    cls,
    *paths: str | os.PathLike,
    adapters: Sequence[str | os.PathLike] = (),
    adapter_scale: float = 1.0,
    mesh: MeshConfig | None = None,
  ) -> "Pipeline":
    """Loads the stages of one or several bundles (or workdirs).

    Args:
      paths: bundles, or names of repositories on the Hugging Face hub; each
        adds the stages, or the text encoder, that those before it lack.
      adapters: LoRA adapters to merge into the stages they belong to.
      adapter_scale: of the adapters; 1 is as trained.
      mesh: how to distribute the work over the devices of all processes; None:
        one device.
    """
    loaded = load(paths, adapters, adapter_scale, mesh)
    return cls(loaded.text, loaded.pair(), loaded.mesh, loaded.conditional)

  def styled(self, style: str | os.PathLike, alpha: float) -> "Pipeline":
    """A pipeline with a style blended into the spatial layers (section 4.1).

    Args:
      style: a fine-tuned image model or adapter; see `styles.read_style`.
      alpha: how much of it: 0 is none, 1 all, up to 1.5 exaggerates.
    """
    read = read_style(style)

    def in_style(stages: dict[str, Stage]) -> dict[str, Stage]:
      flat = blend_in(
        {name: stage.params for name, stage in stages.items()},
        {name: stage.config.model for name, stage in stages.items()},
        read,
        alpha,
      )
      return {
        name: dataclasses.replace(stage, params=flat[name])
        for name, stage in stages.items()
      }

    plain = conditional = self._conditional
    if plain and read.slot != "ssr":
      conditional = functools.cache(lambda: in_style({"base": plain()})["base"])
    return Pipeline(self.text, in_style(self.stages), self.mesh, conditional)

  def text_to_video(
    self, prompt: Prompt, **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Makes videos of what the prompts say."""
    check_options(self.text_to_video, how)
    require_prompt(prompt)
    return _pixels(self.sample(prompt, **how), prompt, how)

  def text_to_image(
    self, prompt: Prompt, **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "... h w 3"]:
    """Makes pictures, by the spatial layers alone.

    With an imported DeepFloyd IF this is IF: its steps, learned variance,
    thresholds and empty caption come with the bundle.
    """
    check_options(self.text_to_image, how)
    images = {name: stage.as_image() for name, stage in self.stages.items()}
    video = Pipeline(self.text, images, self.mesh).text_to_video(
      prompt, **with_settings(how, num_frames=1, window=0)
    )
    return video[..., 0, :, :, :]

  def panorama(
    self, prompt: Prompt, *, width: int, **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Makes videos wider than the model's own, by MultiDiffusion.

    Args:
      prompt: applies to every part of the frame.
      width: in pixels.
    """
    check_options(self.panorama, how)
    height = self.resolution(settings_of(how))[0]
    return self.text_to_video(
      prompt, **with_settings(how, size=(height, width))
    )

  def image_to_video(
    self,
    prompt: Prompt,
    image: Picture | None,
    *,
    last_image: Picture | None = None,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Makes videos that begin with a picture, end with one, or both.

    Args:
      image: the first frame; None: not given.
      last_image: the last frame.
    """
    check_options(self.image_to_video, how)
    frames, size = self.frames(how), self.resolution(settings_of(how))
    video = np.zeros((frames, *size, 3), np.uint8)
    mask = np.zeros((frames, *size), bool)
    for place, picture, name in (
      (0, image, option("image")),
      (frames - 1, last_image, option("last_image")),
    ):
      if picture is not None:
        video[place] = picture_of_size(picture, size, name)
        mask[place] = True
    if not mask.any():
      raise UserError(
        option("image"), "is missing", "give the first or the last frame"
      )
    given = MaskedVideo(video=video, mask=mask)
    return self._make_given(prompt, given, how, composited)

  def inpaint(
    self,
    prompt: Prompt,
    video: Clip,
    mask: Mask,
    *,
    feather: int = 0,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Generates the masked part of a video anew.

    Args:
      prompt: what that part shows.
      video: (t, h, w, 3) uint8.
      mask: True where pixels are made anew; see `compositing.mask_of_size`.
    """
    check_options(self.inpaint, how)
    video = self._video(video, how)
    given = mask_of_size(mask, video.shape[1:3], len(video))
    return self._make_given(
      prompt, MaskedVideo(video=video, mask=given), how, composited, feather
    )

  def outpaint(
    self,
    prompt: Prompt,
    video: Clip,
    expand: tuple[int, int, int, int],
    *,
    feather: int = 0,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Extends the frame of a video.

    Args:
      prompt: what the whole frame shows.
      video: (t, h, w, 3) uint8.
      expand: pixels of the video to add (left, top, right, bottom); the result
        is then resized to the model's size.
    """
    check_options(self.outpaint, how)
    if min(expand) < 0 or not any(expand):
      raise UserError(
        option("expand", ",".join(map(str, expand))),
        "adds nothing",
        "give pixels for left,top,right,bottom",
      )
    check_video(video, option("video"))
    left, top, right, bottom = expand
    around = ((0, 0), (top, bottom), (left, right))
    anew = np.pad(np.zeros(video.shape[:3], bool), around, constant_values=True)
    larger = np.pad(video, (*around, (0, 0)), "edge")
    return self.inpaint(
      prompt, larger, anew, feather=feather, composited=composited, **how
    )

  def cinemagraph(
    self,
    prompt: Prompt,
    image: Picture,
    mask: Bool[np.ndarray, "h w"],
    *,
    feather: int = 0,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Animates a picture inside a mask and nowhere else.

    Args:
      image: (h, w, 3) uint8, the first frame.
      mask: True where it moves.
    """
    check_options(self.cinemagraph, how)
    frames, size = self.frames(how), self.resolution(settings_of(how))
    still = picture_of_size(image, size, option("image"))
    given = mask_of_size(mask, size, frames)
    given[0] = True
    video = np.broadcast_to(still, (frames, *still.shape))
    return self._make_given(
      prompt, MaskedVideo(video=video, mask=given), how, composited, feather
    )

  def video_to_video(
    self,
    prompt: Prompt,
    video: Clip,
    *,
    strength: float = 0.7,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Changes a video to match a prompt, by SDEdit (Lumiere, section 4.3).

    Args:
      prompt: what the result shows.
      video: (t, h, w, 3) uint8.
      strength: in (0, 1], schedule time of the noise that is added; 1 keeps
        nothing of the video.
    """
    check_options(self.video_to_video, how)
    require_prompt(prompt)
    start = self._video(video, how)
    inputs = SamplingInputs(start=start, strength=strength)
    how = with_settings(how, num_frames=len(start))
    return _pixels(self.sample(prompt, inputs=inputs, **how), prompt, how)

  def extend(
    self,
    prompt: Prompt,
    video: Clip,
    *,
    times: int = 1,
    context: int = 16,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Continues a video, `times` times.

    The base continues from the last `context` frames; super-resolution then
    sees the whole video, in windows.

    Args:
      video: (t, h, w, 3) uint8.
      times: how many continuations.
      context: last frames that each continuation is conditioned on.

    Returns:
      The video, and after it `times` times as many frames as the model makes,
      less `context`.
    """
    check_options(self.extend, how)
    frames, size = self.frames(how), self.resolution(settings_of(how))
    video = video_of_size(video, size, len(video), 1, option("video"))
    if not 0 < context < frames:
      raise UserError(
        option("context", context),
        f"frames must be 1 to {frames - 1}, less than the model makes",
      )
    if times < 1:
      raise UserError(option("times", times), "must be at least 1")
    if len(video) < context:
      raise UserError(
        option("video"),
        f"has {len(video)} frames, fewer than {option('context', context)}",
        f"give a longer video or a smaller {option('context')}",
      )
    prompts, seeds = pair_up(prompt, how.get("seed", 0))
    pipeline = self._pixel_conditioned()
    how_base, how = pipeline._split_negative(how)
    # One by one: each continues its own frames.
    low = np.stack(
      [
        pipeline._continue(
          video, text, times, context, how_base | {"seed": seed}
        )
        for text, seed in zip(prompts, seeds, strict=True)
      ]
    )
    inputs = SamplingInputs(low=jnp.asarray(low))
    how = with_settings(how, num_frames=low.shape[1])
    long = pipeline.sample(prompts, inputs=inputs, **how | {"seed": seeds})
    made = _pixels(long, prompt, how)
    if composited:
      made[..., : len(video), :, :, :] = video
    return made

  def _split_negative(
    self, how: SampleOptions
  ) -> tuple[SampleOptions, SampleOptions]:
    """Options of the base and of what follows, as these are sampled apart.

    Without the negative prompt where a stage ignores it.
    """
    negative, settings = how.get("negative_prompt", ""), settings_of(how)
    self.check_negative_prompt(negative, settings)
    if negative.strip():
      self._tell_unguided_base(settings)
    base, ssr = (
      how
      if name in self.stages and self.guides(name, settings)
      else how | {"negative_prompt": ""}
      for name in ("base", "ssr")
    )
    return base, ssr

  def _continue(
    self, video: Clip, prompt: str, times: int, context: int, how: SampleOptions
  ) -> Float[np.ndarray, "t h w 3"]:
    """The base's part of `extend`: the video and what follows, in [-1, 1]."""
    size, frames = self.sizes(settings_of(how))["base"], self.frames(how)
    how = with_settings(how, num_frames=frames, size=size)
    whole = lambda video: np.ones(video.shape[:3], bool)
    low, _ = MaskedVideo(video=video, mask=whole(video)).at(size)
    for segment in range(times):
      seen = np.zeros((frames, *low.shape[1:]), np.uint8)
      seen[:context] = to_uint8(jnp.asarray(low[-context:]))
      mask = whole(seen)
      mask[context:] = False
      given = MaskedVideo(video=seen, mask=mask)
      inputs = SamplingInputs(given=given, segment=segment)
      made = self.base_alone.sample(prompt, inputs=inputs, **how)
      low = np.concatenate([low, np.asarray(made[0, context:])])
    return low

  def super_resolve(
    self, video: Clip, *, prompt: str = "", **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "t H W 3"]:
    """Enlarges a video of any length and size, by super-resolution alone.

    It is processed in windows of time and, if it is larger than the model's
    frames, of space.

    Args:
      video: (t, h, w, 3) uint8.
      prompt: what the video shows; '' is "no caption".
    """
    check_options(self.super_resolve, how)
    if "ssr" not in self.stages:
      raise UserError(
        option("task", "super_resolve"),
        f"needs a super-resolution stage, and {option('model')} has none",
        "name the bundle of one too",
      )
    check_video(video, option("video"))
    low = pad_to_windows(self.stages["ssr"].config, video)
    floats = jnp.asarray(low, jnp.float32)[None] / 127.5 - 1.0
    count = len(pair_up(prompt, how.get("seed", 0))[0])
    inputs = SamplingInputs(low=jnp.repeat(floats, count, axis=0))
    size = tuple(side * self.upscale for side in low.shape[1:3])
    how = with_settings(how, num_frames=len(low), size=size)
    made = _pixels(self.sample(prompt, inputs=inputs, **how), prompt, how)
    height, width = (side * self.upscale for side in video.shape[1:3])
    return made[..., : len(video), :height, :width, :]

  @property
  def base_alone(self) -> "Pipeline":
    """The same pipeline without super-resolution."""
    stages = {"base": self.stages["base"]}
    return Pipeline(self.text, stages, self.mesh, self._conditional)

  def resolution(
    self, settings: Settings = DEFAULT_SETTINGS
  ) -> tuple[int, int]:
    """(height, width) of the finished videos."""
    return self.sizes(settings)[list(self.stages)[-1]]

  def frames(self, how: SampleOptions) -> int:
    """Number of frames of the videos."""
    trained = self.stages["base"].config.video.num_frames
    return settings_of(how).num_frames or trained

  @property
  def takes_pixels(self) -> bool:
    """Whether there is a pixel-conditioned base."""
    channels = self.stages["base"].config.model.cond_channels
    return bool(channels) or self._conditional is not None

  def _pixel_conditioned(self) -> "Pipeline":
    """The pipeline with the pixel-conditioned base."""
    if self.stages["base"].config.model.cond_channels:
      return self
    if self._conditional is None:
      raise UserError(
        option("model"),
        "has no pixel-conditioned base, which this task needs",
        "name the bundle of a 'conditional' stage, trained by "
        f"{option('config', 'configs/conditional.py')}",
      )
    stages = self.stages | {"base": self._conditional()}
    return Pipeline(self.text, stages, self.mesh)

  def _video(self, video: Clip, how: SampleOptions) -> Clip:
    """A user's video at the model's size, and at most of its length."""
    return video_of_size(
      video,
      self.resolution(settings_of(how)),
      self.frames(how),
      self.stages["base"].config.model.temporal_factor,
      option("video"),
    )

  def _make_given(
    self,
    prompt: Prompt,
    given: MaskedVideo,
    how: SampleOptions,
    composited: bool,
    feather: int = 0,
  ) -> np.ndarray:
    how = with_settings(how, num_frames=len(given.video))
    inputs = SamplingInputs(given=given)
    video = self._pixel_conditioned().sample(prompt, inputs=inputs, **how)
    made = _pixels(video, prompt, how)
    if not composited:
      return made
    stacked = made.reshape(-1, *given.video.shape)
    return composite(stacked, given, feather).reshape(made.shape)


def _pixels(video: Video, prompt: Prompt, how: SampleOptions) -> np.ndarray:
  """uint8 videos, or one where prompt and seed are single."""
  made = np.array(to_uint8(video))
  seed = how.get("seed", 0)
  single = isinstance(prompt, str) and isinstance(seed, int | np.integer)
  return made[0] if single else made
