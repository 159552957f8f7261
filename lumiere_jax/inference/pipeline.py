"""Everything Lumiere makes, as methods of a loaded cascade."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import os
from typing import TypedDict, Unpack

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Bool, Float, UInt8
import numpy as np

from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.cascade import Cascade, Stage
from lumiere_jax.inference.compositing import (
  check_video,
  composite,
  mask_of_size,
  picture_of_size,
  video_of_size,
)
from lumiere_jax.inference.loading import load
from lumiere_jax.inference.sampling_inputs import (
  NO_INPUTS,
  OnProgress,
  SamplingInputs,
)
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import read_style
from lumiere_jax.inference.styles import styled as blend_in
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.conditioning import MaskedVideo, to_uint8
from lumiere_jax.typing import Clip, Video

Picture = UInt8[np.ndarray, "h w 3"]


Mask = Bool[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"]


class SampleOptions(TypedDict, total=False):
  """What every task takes.

  Attributes:
    seed: one seed, one video; several, one video each.
    negative_prompt: what to steer away from, instead of "no caption".
    settings: how to sample.
    on_progress: called every few steps, besides the progress bar.
  """

  seed: int | Sequence[int]
  negative_prompt: str
  settings: Settings | None
  on_progress: OnProgress | None


class Pipeline(Cascade):
  """A cascade and what can be made with it.

  Prompts are one text or several. One text with one seed gives one video,
  uint8 (t, h, w, 3); otherwise they are stacked, (b, t, h, w, 3), and a text
  that is alone is used for all seeds. Pictures and videos of any size are
  made to cover the model's, and cut at their centre.
  """

  def __init__(
    self,
    text: TextEncoder,
    stages: dict[str, Stage],
    mesh: Mesh | None = None,
    conditional: Callable[[], Stage] | None = None,
  ):
    """Puts it together.

    Args:
      text: what reads the prompts.
      stages: 'base' and, if there is one, 'ssr'.
      mesh: devices to sample on.
      conditional: gives the base that is told pixels, where it is another.
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
      paths: of the bundles, or names of repositories on the Hugging Face
        hub; each adds the stages, or the text encoder, that others lack.
      adapters: low-rank adapters to merge into the stages they belong to.
      adapter_scale: how much of them; 1 is as trained.
      mesh: how to share the work among the devices of all processes; None:
        one device does it.

    Raises:
      UserError: a bundle or an adapter is missing or damaged, or they do not
        fit together.
    """
    loaded = load(paths, adapters, adapter_scale, mesh)
    return cls(loaded.text, loaded.pair(), loaded.mesh, loaded.conditional)

  def styled(self, style: str | os.PathLike, alpha: float) -> "Pipeline":
    """The same with a style blended into its spatial layers (section 4.1).

    Args:
      style: a fine-tuned image model or adapter; see `styles.read_style`.
      alpha: how much of it: 0 is none, 1 all, up to 1.5 is beyond it.

    Raises:
      UserError: it is missing, of another architecture, or alpha is outside.
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
    self, prompt: str | Sequence[str], **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Makes videos of what the prompts say.

    Raises:
      UserError: a prompt is empty, or lengths, sizes or windows do not fit.
    """
    return self._make(prompt, NO_INPUTS, **how)

  def text_to_image(
    self, prompt: str | Sequence[str], **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "... h w 3"]:
    """Makes pictures, by the spatial layers alone.

    With an imported DeepFloyd IF this is IF: its steps, its learned variance,
    its thresholds and the empty caption come with the bundle.

    Raises:
      UserError: a prompt is empty, or settings do not fit.
    """
    images = {name: stage.as_image() for name, stage in self.stages.items()}
    settings = how.get("settings") or Settings()
    one = {"settings": dataclasses.replace(settings, num_frames=1, window=0)}
    video = Pipeline(self.text, images, self.mesh).text_to_video(
      prompt, **(how | one)
    )
    return video[..., 0, :, :, :]

  def panorama(
    self,
    prompt: str | Sequence[str],
    *,
    width: int,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Videos wider than the model makes by itself, by MultiDiffusion.

    Args:
      prompt: holds for every part of the frame.
      width: in pixels.
      how: see `SampleOptions`.

    Raises:
      UserError: the width does not fit.
    """
    settings = how.get("settings") or Settings()
    height = self.resolution(settings)[0]
    wide = {"settings": dataclasses.replace(settings, size=(height, width))}
    return self.text_to_video(prompt, **(how | wide))

  def image_to_video(
    self,
    prompt: str | Sequence[str],
    image: Picture | None,
    *,
    last_image: Picture | None = None,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Videos that begin with a picture, or end with one, or both.

    Args:
      prompt: what happens.
      image: the first frame; None: it is free.
      last_image: the last one.
      composited: whether the pictures are put back into the finished video.
      how: see `SampleOptions`.

    Raises:
      UserError: there is no conditional base, or no picture.
    """
    frames, size = self.frames(how), self.resolution(how.get("settings"))
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
        option("image"), "is missing", "give the picture to begin with"
      )
    given = MaskedVideo(video=video, mask=mask)
    return self._make_given(prompt, given, composited=composited, **how)

  def inpaint(
    self,
    prompt: str | Sequence[str],
    video: Clip,
    mask: Mask,
    *,
    feather: int = 0,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Videos with a part of their pixels made anew.

    Args:
      prompt: what is to be seen there.
      video: (t, h, w, 3) uint8.
      mask: True where pixels are made anew; see `inputs.mask_of_size`.
      feather: pixels over which the edge fades; see `compositing.composite`.
      composited: whether the other pixels are put back as they were.
      how: see `SampleOptions`.

    Raises:
      UserError: there is no conditional base, or video or mask do not do.
    """
    video = self._video(video, how)
    given = mask_of_size(mask, video.shape[1:3], len(video))
    return self._make_given(
      prompt,
      MaskedVideo(video=video, mask=given),
      feather=feather,
      composited=composited,
      **how,
    )

  def outpaint(
    self,
    prompt: str | Sequence[str],
    video: Clip,
    expand: tuple[int, int, int, int],
    *,
    feather: int = 0,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Videos with more around them.

    Args:
      prompt: what the whole frame shows.
      video: (t, h, w, 3) uint8.
      expand: pixels of the video to add (left, top, right, bottom); the whole
        is then made as large as the model's.
      feather: pixels over which the edge fades.
      composited: whether its pixels are put back as they were.
      how: see `SampleOptions`.

    Raises:
      UserError: there is no conditional base, or nothing to add.
    """
    if min(expand) < 0 or not any(expand):
      raise UserError(
        f"{option('expand')}={','.join(map(str, expand))}",
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
    prompt: str | Sequence[str],
    image: Picture,
    mask: Bool[np.ndarray, "h w"],
    *,
    feather: int = 0,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """A picture that moves where a mask says so, and nowhere else.

    Args:
      prompt: what happens there.
      image: (h, w, 3) uint8, the first frame.
      mask: True where it moves.
      feather: pixels over which the edge fades.
      composited: whether the rest is put back to the last bit.
      how: see `SampleOptions`.

    Raises:
      UserError: there is no conditional base, or picture or mask do not do.
    """
    frames, size = self.frames(how), self.resolution(how.get("settings"))
    still = picture_of_size(image, size, option("image"))
    given = mask_of_size(mask, size, frames)
    given[0] = True
    video = np.broadcast_to(still, (frames, *still.shape))
    return self._make_given(
      prompt,
      MaskedVideo(video=video, mask=given),
      feather=feather,
      composited=composited,
      **how,
    )

  def video_to_video(
    self,
    prompt: str | Sequence[str],
    video: Clip,
    *,
    strength: float = 0.7,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Videos made over after a prompt: SDEdit (Lumiere, section 4.3).

    Args:
      prompt: what they show then.
      video: (t, h, w, 3) uint8.
      strength: in (0, 1]: how much is made over.
      how: see `SampleOptions`.

    Raises:
      UserError: the strength is outside, or the video does not do.
    """
    start = self._video(video, how)
    inputs = SamplingInputs(start=start, strength=strength)
    return self._make(prompt, inputs, **self._of_length(len(start), how))

  def extend(
    self,
    prompt: str | Sequence[str],
    video: Clip,
    *,
    times: int = 1,
    context: int = 16,
    composited: bool = True,
    **how: Unpack[SampleOptions],
  ) -> UInt8[np.ndarray, "... t h w 3"]:
    """Goes on with a video, as often as one likes.

    The base goes on from its last frames; super-resolution then sees the
    whole, in windows.

    Args:
      prompt: what happens.
      video: (t, h, w, 3) uint8.
      times: how often it is gone on with.
      context: last frames that are shown to the base each time.
      composited: whether the video is put back, where it was.
      how: see `SampleOptions`.

    Returns:
      The video with `times` times as many frames as the model makes, less
      `context`, behind it.

    Raises:
      UserError: there is no conditional base, or numbers do not do.
    """
    frames, size = self.frames(how), self.resolution(how.get("settings"))
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
        f"has {len(video)} frames, {option('context')}={context} are to "
        "be gone on from",
        f"give a longer video or a smaller {option('context')}",
      )
    prompts, seeds, alone = _requests(prompt, how)
    cascade = self._telling()
    # Each by itself: what it goes on from is its own.
    low = np.stack(
      [
        cascade._go_on(video, text, seed, times, context, how)
        for text, seed in zip(prompts, seeds, strict=True)
      ]
    )
    settings = how.get("settings") or Settings()
    long = {"settings": dataclasses.replace(settings, num_frames=low.shape[1])}
    made = cascade._pixels(
      prompts, seeds, SamplingInputs(low=jnp.asarray(low)), **(how | long)
    )
    if composited:
      made[:, : len(video)] = video
    return made[0] if alone else made

  def _go_on(
    self,
    video: Clip,
    prompt: str,
    seed: int,
    times: int,
    context: int,
    how: SampleOptions,
  ) -> Float[np.ndarray, "t h w 3"]:
    """The base's part of `extend`: the video and what follows, in [-1, 1]."""
    settings = how.get("settings") or Settings()
    base = Cascade(self.text, {"base": self.stages["base"]}, self.mesh)
    size = self.sizes(settings)["base"]
    whole = lambda video: np.ones(video.shape[:3], bool)
    low, _ = MaskedVideo(video=video, mask=whole(video)).at(size)
    frames = self.frames(how)
    small = dataclasses.replace(settings, num_frames=frames, size=size)
    for segment in range(times):
      seen = np.zeros((frames, *low.shape[1:]), np.uint8)
      seen[:context] = to_uint8(low[-context:])
      mask = whole(seen)
      mask[context:] = False
      made = base.sample(
        [prompt],
        seeds=[seed],
        negative_prompt=how.get("negative_prompt", ""),
        settings=small,
        inputs=SamplingInputs(
          given=MaskedVideo(video=seen, mask=mask), segment=segment
        ),
        on_progress=how.get("on_progress"),
      )
      low = np.concatenate([low, np.asarray(made[0, context:])])
    return low

  def super_resolve(
    self, video: Clip, *, prompt: str = "", **how: Unpack[SampleOptions]
  ) -> UInt8[np.ndarray, "t H W 3"]:
    """A video of any length and size, made larger by super-resolution alone.

    Seen in windows of time and, where it is larger than the model's, of space.

    Args:
      video: (t, h, w, 3) uint8.
      prompt: what it shows; '' is "no caption".
      how: see `SampleOptions`.

    Raises:
      UserError: there is no super-resolution stage.
    """
    if "ssr" not in self.stages:
      raise UserError(
        f"{option('task')}=super_resolve",
        f"needs a super-resolution stage, and {option('model')} has none",
        "name the bundle of one too",
      )
    check_video(video, option("video"))
    config = self.stages["ssr"].config
    seen = config.video.num_frames, *config.video.resolution
    model = config.model
    factors = [model.temporal_factor, *[model.spatial_factor] * 2]
    sides = [len(video), *(side * self.upscale for side in video.shape[1:3])]
    # What fits into one window has to divide; larger ones are covered by it.
    wanted = [
      side if side > window else math.ceil(side / factor) * factor
      for side, window, factor in zip(sides, seen, factors, strict=True)
    ]
    shares = (1, self.upscale, self.upscale)
    beyond = [
      (0, math.ceil(want / share) - have)
      for want, share, have in zip(wanted, shares, video.shape, strict=False)
    ]
    low = np.pad(video, (*beyond, (0, 0)), "edge")
    settings = dataclasses.replace(
      how.get("settings") or Settings(),
      num_frames=len(low),
      size=tuple(side * self.upscale for side in low.shape[1:3]),
    )
    prompts, seeds, alone = _requests(prompt, how)
    floats = jnp.asarray(low, jnp.float32)[None] / 127.5 - 1.0
    made = self._pixels(
      prompts,
      seeds,
      SamplingInputs(low=jnp.repeat(floats, len(seeds), axis=0)),
      **(how | {"settings": settings}),
    )[:, : sides[0], : sides[1], : sides[2]]
    return made[0] if alone else made

  @property
  def base_alone(self) -> "Pipeline":
    """The same without super-resolution."""
    stages = {"base": self.stages["base"]}
    return Pipeline(self.text, stages, self.mesh, self._conditional)

  def resolution(self, settings: Settings | None = None) -> tuple[int, int]:
    """(height, width) of the finished videos."""
    return self.sizes(settings or Settings())[list(self.stages)[-1]]

  def frames(self, how: SampleOptions) -> int:
    """Of the videos that are made."""
    settings = how.get("settings") or Settings()
    trained = self.stages["base"].config.video.num_frames
    return settings.num_frames or trained

  @property
  def takes_pixels(self) -> bool:
    """Whether there is a base that is told pixels."""
    channels = self.stages["base"].config.model.cond_channels
    return bool(channels) or self._conditional is not None

  def _telling(self) -> "Pipeline":
    """The cascade whose base is told pixels.

    Raises:
      UserError: there is none.
    """
    if self.stages["base"].config.model.cond_channels:
      return self
    if self._conditional is None:
      raise UserError(
        "",
        "this task needs a base that is told pixels, and "
        f"{option('model')} has none",
        "name the bundle of a 'conditional' stage, trained by "
        "--config=configs/conditional.py",
      )
    stages = self.stages | {"base": self._conditional()}
    return Pipeline(self.text, stages, self.mesh)

  def _video(self, video: Clip, how: SampleOptions) -> Clip:
    """A user's video as large as the model's, and no longer."""
    return video_of_size(
      video,
      self.resolution(how.get("settings")),
      self.frames(how),
      self.stages["base"].config.model.temporal_factor,
      option("video"),
    )

  def _of_length(self, frames: int, how: SampleOptions) -> SampleOptions:
    settings = how.get("settings") or Settings()
    return how | {"settings": dataclasses.replace(settings, num_frames=frames)}

  def _make_given(
    self,
    prompt: str | Sequence[str],
    given: MaskedVideo,
    *,
    composited: bool,
    feather: int = 0,
    **how: Unpack[SampleOptions],
  ) -> np.ndarray:
    prompts, seeds, alone = _requests(prompt, how)
    made = self._telling()._pixels(
      prompts,
      seeds,
      SamplingInputs(given=given),
      **self._of_length(len(given.video), how),
    )
    made = composite(made, given, feather) if composited else made
    return made[0] if alone else made

  def _make(
    self,
    prompt: str | Sequence[str],
    inputs: SamplingInputs,
    **how: Unpack[SampleOptions],
  ) -> np.ndarray:
    prompts, seeds, alone = _requests(prompt, how)
    for text in prompts:
      if not text.strip():
        raise UserError(
          option("prompt"), "is empty", "say what the video should show"
        )
    made = self._pixels(prompts, seeds, inputs, **how)
    return made[0] if alone else made

  def _pixels(
    self,
    prompts: Sequence[str],
    seeds: Sequence[int],
    inputs: SamplingInputs,
    **how: Unpack[SampleOptions],
  ) -> np.ndarray:
    video: Video = self.sample(
      prompts,
      seeds=seeds,
      negative_prompt=how.get("negative_prompt", ""),
      settings=how.get("settings"),
      inputs=inputs,
      on_progress=how.get("on_progress"),
    )
    return np.array(to_uint8(video))


def _requests(
  prompt: str | Sequence[str], how: SampleOptions
) -> tuple[list[str], list[int], bool]:
  """Prompts and seeds, one each, and whether both were one alone.

  Raises:
    UserError: several of both, and not as many.
  """
  seed = how.get("seed", 0)
  prompts = [prompt] if isinstance(prompt, str) else list(prompt)
  seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
  count = max(len(prompts), len(seeds))
  if len(prompts) == 1:
    prompts *= count
  if isinstance(seed, int | np.integer):
    seeds = [seed + k for k in range(count)]
  if len(prompts) != len(seeds):
    raise UserError(
      "", f"{len(prompts)} prompts and {len(seeds)} seeds", "give one for each"
    )
  alone = isinstance(prompt, str) and isinstance(seed, int | np.integer)
  return prompts, seeds, alone
