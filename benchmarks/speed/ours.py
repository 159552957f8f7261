"""Our networks as jobs of the speed benchmark."""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.speed.job import Job
from lumiere_jax.diffusion.multidiffusion import multi_diffusion
from lumiere_jax.models.config import TemporalConfig, UNetConfig
from lumiere_jax.models.importers.unet_diffusers import to_diffusers
from lumiere_jax.models.importers.unet_diffusers_config import (
  config_to_diffusers,
)
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.sharded_layers import convolve
from lumiere_jax.models.unet import UNet, abstract_params
from lumiere_jax.parallel.backend import compiler_options
from lumiere_jax.parallel.flops import count_flops
from lumiere_jax.stages.config import DiffusionConfig, StageConfig, VideoConfig
from lumiere_jax.stages.denoiser import network_denoiser
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import write_json
from lumiere_jax.typing import Cond, FlatParams

TOKENS = 77
OVERLAP = 2  # Frames that windows share, as in the paper.

# DeepFloyd IF's first stage with fewer channels.
MEDIUM = UNetConfig(
  channels=(96, 192, 256),
  num_res_blocks=(2, 2, 2),
  attention=("none", "self", "self"),
  text_dim=512,
  text_channels=256,
  pool_heads=8,
  out_channels=6,
  noise_embedding="squaredcos_cap_v2",
  mask_text=False,
)

SMALL = dataclasses.replace(
  MEDIUM,
  channels=(64, 96, 128),
  num_res_blocks=(1, 1, 1),
  text_channels=128,
  head_dim=32,
)
IMAGE = {"small": SMALL, "medium": MEDIUM}


def inflated(size: str) -> UNetConfig:
  """The Space-Time U-Net around an image model."""
  temporal = TemporalConfig(
    resample=(True, True), num_attentions=1, head_dim=IMAGE[size].head_dim
  )
  return dataclasses.replace(IMAGE[size], temporal=temporal).for_clips(80)


def weights(config: UNetConfig, seed: int) -> FlatParams:
  """Random weights without zeros, so that no layer is inactive.

  Not those of tests: their package makes XLA compile slow programs.
  """
  rng = np.random.default_rng(seed)
  drawn = {}
  for name, leaf in abstract_params(config).items():
    fan_in = max(leaf.size // leaf.shape[-1], 100)
    drawn[name] = fan_in**-0.5 * rng.standard_normal(leaf.shape, np.float32)
    if name.endswith("scale"):
      drawn[name] += 1
  return drawn


def inputs(
  batch: int, frames: int, side: int, text_dim: int, seed: int
) -> dict[str, np.ndarray]:
  """Noisy videos, times in steps of 1000, text and targets."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  return {
    "video": draw(batch, frames, side, side, 3),
    "time": rng.integers(0, 1000, batch),
    "text": draw(batch, TOKENS, text_dim),
    "target": draw(batch, frames, side, side, 3),
  }


def write_folder(
  folder: Path, size: str, *, batch: int, frames: int, side: int, seed: int
) -> None:
  """Writes an image model in the layout of diffusers, and its inputs."""
  config, unet = IMAGE[size], folder / "unet"
  unet.mkdir(parents=True, exist_ok=True)
  write_json(unet / "config.json", config_to_diffusers(config, side))
  safetensors.save(
    unet / "diffusion_pytorch_model.safetensors",
    to_diffusers(weights(config, seed), config),
    {"format": "pt"},
  )
  given = inputs(batch, frames, side, config.text_dim, seed)
  np.savez(folder / "inputs.npz", **given)
  write_json(folder / "convolutions.json", convolutions_of(config, given))


def convolutions_of(config: UNetConfig, given: dict) -> list[list[int]]:
  """The 3x3 convolutions of a pass: batch, side, channels in, out, count.

  Args:
    config: of the network.
    given: see `inputs`.
  """
  found = collections.Counter()

  def note(call, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.Conv) and tuple(module.kernel_size) == (3, 3):
      *batch, side, _, channels = args[0].shape
      found[math.prod(batch), side, channels, module.features] += 1
    return call(*args, **kwargs)

  params = abstract_params(config)
  with nn.intercept_methods(note):
    jax.eval_shape(functools.partial(predict, config), params, given)
  return [[*shape, times] for shape, times in found.items()]


def predict(config: UNetConfig, params: FlatParams, given: dict) -> jax.Array:
  """The output of a network with flat weights for `inputs`."""
  cond = Cond(text=given["text"])
  return UNet(config).apply(
    {"params": unflatten(params)}, given["video"], given["time"] / 1000, cond
  )


def compiled(function: Callable, **options: Any) -> Callable:
  """A function jitted with the compiler options of the library."""
  platform = jax.default_backend()
  return jax.jit(
    function, compiler_options=compiler_options(platform), **options
  )


def job(config: UNetConfig, params: FlatParams, given: dict, train: str) -> Job:
  """A network on inputs.

  Args:
    config: of the network.
    params: its weights.
    given: see `inputs`.
    train: substring of the paths of trained leaves; '': all.
  """
  given = {name: jnp.asarray(x) for name, x in given.items()}
  network = functools.partial(predict, config)

  def loss(trained: FlatParams, frozen: FlatParams, given: dict) -> jax.Array:
    out = network({**trained, **frozen}, given)[..., :3]
    return jnp.mean(jnp.square(out - given["target"]))

  optimizer = optax.adamw(1e-4)

  def step(trained, state, frozen, given):
    value, grads = jax.value_and_grad(loss)(trained, frozen, given)
    updates, state = optimizer.update(grads, state, trained)
    return optax.apply_updates(trained, updates), state, value

  parameters = sum(x.size for x in params.values())
  params = {name: jnp.array(x) for name, x in params.items()}
  trained = {k: params.pop(k) for k in list(params) if train in k}
  frozen = params
  forward = compiled(network)
  stepped = compiled(step, donate_argnums=(0, 1))
  held: dict[str, Any] = {"trained": trained}

  def train_once() -> None:
    if "state" not in held:
      held["state"] = optimizer.init(trained)
    held["trained"], held["state"], value = stepped(
      held["trained"], held["state"], frozen, given
    )
    jax.block_until_ready(value)

  def run() -> jax.Array:
    return jax.block_until_ready(forward(held["trained"] | frozen, given))

  return Job(
    forward=run,
    train=train_once,
    forward_flops=count_flops(network, trained | frozen, given),
    train_flops=count_flops(jax.value_and_grad(loss), trained, frozen, given),
    parameters=parameters,
    trained=sum(x.size for x in trained.values()),
    output=lambda: np.asarray(run()),
  )


def image_unet(
  *, size: str, batch: int, frames: int, side: int, seed: int, folder: str = ""
) -> Job:
  """The image model of `write_folder`; frames are independent images."""
  if folder:
    write_folder(
      Path(folder), size, batch=batch, frames=frames, side=side, seed=seed
    )
  config = IMAGE[size]
  given = inputs(batch, frames, side, config.text_dim, seed)
  return job(config, weights(config, seed), given, "")


def stunet(*, size: str, batch: int, frames: int, side: int, seed: int) -> Job:
  """The Space-Time U-Net; its temporal layers are trained."""
  config = inflated(size)
  given = inputs(batch, frames, side, config.text_dim, seed)
  return job(config, weights(config, seed), given, "temporal_")


def denoise(
  *, size: str, batch: int, frames: int, side: int, windows: int, seed: int
) -> Job:
  """A denoising evaluation of the Space-Time U-Net.

  Args:
    size: of the network.
    batch: videos.
    frames: of a window.
    side: of a frame.
    windows: of MultiDiffusion, in sequence; 1 is the plain network.
    seed: of weights and inputs.
  """
  config = inflated(size)
  stage = StageConfig(
    model=config,
    diffusion=DiffusionConfig(),
    video=VideoConfig(num_frames=frames, fps=8, resolution=(side, side)),
  )
  starts = [i * (frames - OVERLAP) for i in range(windows)]
  given = inputs(batch, starts[-1] + frames, side, config.text_dim, seed)

  def evaluate(params: FlatParams, video: jax.Array, text: jax.Array):
    denoiser = network_denoiser(stage, params)
    denoiser = multi_diffusion(denoiser, starts, frames)
    return denoiser(video, jnp.zeros(batch), Cond(text=text))

  params = weights(config, seed)
  return _calls([(evaluate, (params, given["video"], given["text"]), 1)])


def matmul(*, size: int, times: int, seed: int) -> Job:
  """Repeated products of two square matrices."""
  a, b = np.random.default_rng(seed).standard_normal((2, size, size), "f")
  return _calls([(jnp.dot, (a, b), times)])


def convolutions(*, shapes: Sequence[Sequence[int]], seed: int) -> Job:
  """3x3 convolutions, each its own program; see `convolutions_of`."""
  draw = np.random.default_rng(seed).standard_normal
  calls = []
  for pictures, side, before, after, times in shapes:
    x = draw((pictures, side, side, before), "f")
    kernel = draw((3, 3, before, after), "f")
    calls.append((convolve, (x, kernel), times))
  return _calls(calls)


def _calls(calls: Sequence[tuple[Callable, tuple, int]]) -> Job:
  """Runs (function, arguments, count) in sequence."""
  flops = sum(count_flops(f, *args) * times for f, args, times in calls)
  ready = [
    (compiled(f), jax.tree.map(jnp.asarray, args), times)
    for f, args, times in calls
  ]

  def forward() -> None:
    for function, args, times in ready:
      for _ in range(times):
        jax.block_until_ready(function(*args))

  return Job(forward=forward, forward_flops=flops)


JOBS: dict[str, Callable[..., Job]] = {
  "image_unet": image_unet,
  "stunet": stunet,
  "denoise": denoise,
  "matmul": matmul,
  "convolutions": convolutions,
}
