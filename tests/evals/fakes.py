"""Fake pipelines that draw what the prompt says, or something wrong."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from lumiere_jax.diffusion.multidiffusion import window_starts
from lumiere_jax.evals.measures import bicubic
from lumiere_jax.evals.scenes import TaskRun
from lumiere_jax.inference.settings import DEFAULT_SETTINGS
from lumiere_jax.inference.windowing import Windows
from lumiere_jax.stages.config import SamplingConfig
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.scenes import (
  BACKGROUNDS,
  COLOURS,
  MOTIONS,
  SIZES,
  Description,
  Scene,
  Sprite,
  render,
)


def unseen(pipeline, count, seed=0, settings=DEFAULT_SETTINGS, **options):
  """The scenes of a task's run."""
  run = TaskRun(pipeline=pipeline, count=count, settings=settings, seed=seed)
  return run.scenes(**options)


def scene_of(prompt, centre=(0.5, 0.5)):
  """A scene of one object that a caption describes."""
  (words,), background = parse_caption(prompt)
  motion = MOTIONS[words.motion or "still"]
  return Scene(
    sprites=(
      Sprite(
        description=dataclasses.replace(words, motion=words.motion or "still"),
        centre=centre,
        reach=motion.reach,
        radius=SIZES[words.size or "large"],
        rate=np.mean(motion.rates[words.speed]),
        phase=np.mean(motion.start),
      ),
    ),
    background=background,
  )


def recoloured(video, old, new, background):
  """The video with one colour replaced, antialiased edges included."""
  behind = np.array(BACKGROUNDS[background], float)
  ray = np.array(COLOURS[old]) - behind
  cover = (video - behind) @ ray / (ray @ ray)
  painted = behind + cover[..., None] * (np.array(COLOURS[new]) - behind)
  return np.clip(np.rint(painted), 0, 255).astype(np.uint8)


class Right:
  """Right in every attribute, for prompts of one object."""

  fps, upscale, takes_pixels = 16.0, 4, True

  def __init__(self, side=32, frames=32):
    self.side, self.length = side, frames
    self.calls = []
    config = SimpleNamespace(defaults=SamplingConfig())
    self.stages = {k: SimpleNamespace(config=config) for k in ("base", "ssr")}

  def resolution(self, settings=None):
    return settings.size or (self.side, self.side)

  def frames(self, how):
    return how["settings"].num_frames or self.length

  def plan(self, settings):
    windows = Windows(size=self.length // 4, overlap=settings.overlap)
    starts = lambda: window_starts(self.length, windows.size, windows.overlap)
    program = SimpleNamespace(windows=windows, starts=starts)
    return {"ssr": SimpleNamespace(program=program)}

  def draw(self, scene):
    return render(scene, self.length, self.side, self.fps)

  def text_to_video(self, prompt, *, seed, settings):
    self.calls.append(("text_to_video", prompt, seed, settings))
    if isinstance(prompt, str):
      return self.draw(scene_of(prompt))
    return np.stack([self.draw(scene_of(text)) for text in prompt])

  def image_to_video(self, prompt, image, *, composited, seed, settings):
    assert not composited
    for first in range(seed + 1):  # finds the scene
      scenes = unseen(self, seed + 1, first, settings)
      video = scenes.clip(seed - first)
      if np.array_equal(video[0], image):
        return video
    raise AssertionError("not the first frame of a scene")

  def extend(self, prompt, video, *, context, seed, settings):
    """Plays the given frames back and forth."""
    assert len(video) == context
    there_and_back = np.concatenate([video, video[::-1]])
    return np.concatenate([there_and_back] * 9)[: self.length]

  @property
  def base_alone(self):
    return Right(self.side // self.upscale, self.length)

  def inpaint(self, prompt, video, mask, *, seed, settings):
    """The object of the prompt, still, in the middle of the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    middle = [(where.mean() + 0.5) / self.side for where in (columns, rows)]
    scene = scene_of(prompt, tuple(middle))
    (sprite,) = scene.sprites
    words = dataclasses.replace(sprite.description, motion="still")
    sprite = dataclasses.replace(sprite, description=words)
    made = self.draw(dataclasses.replace(scene, sprites=(sprite,)))
    return np.where(mask[..., None], made, video)

  def cinemagraph(self, prompt, image, mask, *, seed, settings):
    video = np.repeat(image[None], self.length, 0)
    video[1::2, mask] = 128
    return video

  def video_to_video(self, prompt, video, *, seed, settings, strength=0.7):
    self.calls.append(("video_to_video", prompt, seed, strength))
    (words,), background = parse_caption(prompt)
    return self.paint(video, words, background)

  def paint(self, video, words: Description, background):
    away = np.linalg.norm(video - np.array(BACKGROUNDS[background]), axis=-1)
    best = video.reshape(-1, 3)[away.argmax()]
    miss = {k: np.abs(best - np.array(v)).sum() for k, v in COLOURS.items()}
    old = min(miss, key=miss.get)
    return recoloured(video, old, words.colour, background)

  def super_resolve(self, video, *, prompt, seed, settings):
    return bicubic(video, self.upscale)


class Whole(Right):
  """Super-resolution sees the whole video at once."""

  def plan(self, settings):
    program = SimpleNamespace(windows=None)
    return {"ssr": SimpleNamespace(program=program)}


class WrongColour(Right):
  """Right except for the colour, which is the next of the list."""

  def draw(self, scene):
    (sprite,) = scene.sprites
    names = list(COLOURS)
    words = sprite.description
    colour = names[(names.index(words.colour) + 1) % len(names)]
    words = dataclasses.replace(words, colour=colour)
    sprite = dataclasses.replace(sprite, description=words)
    return super().draw(dataclasses.replace(scene, sprites=(sprite,)))

  def paint(self, video, words, background):
    return video


class Standing(Right):
  """Repeats the first frame."""

  def draw(self, scene):
    return np.repeat(super().draw(scene)[:1], self.length, 0)

  def image_to_video(self, prompt, image, **how):
    return np.repeat(image[None], self.length, 0)

  def cinemagraph(self, prompt, image, mask, **how):
    return np.repeat(image[None], self.length, 0)

  def paint(self, video, words, background):
    return np.repeat(super().paint(video, words, background)[:1], len(video), 0)


class Noise(Right):
  """Random bytes."""

  def draw(self, scene):
    return self.noise()

  def noise(self, *_, **__):
    size = self.length, self.side, self.side, 3
    return np.random.default_rng(0).integers(0, 256, size, np.uint8)

  image_to_video = extend = inpaint = cinemagraph = video_to_video = noise
  super_resolve = noise


class Leaking(Right):
  """One byte of one frame outside the cinemagraph's region is off by one."""

  def cinemagraph(self, prompt, image, mask, **how):
    video = super().cinemagraph(prompt, image, mask, **how)
    row, column = np.argwhere(~mask)[-1]
    video[self.length // 2, row, column, 1] ^= 1
    return video
