"""Published video U-Nets of other libraries, as jobs of the speed benchmark.

Runs in the environment of requirements-bench.txt. Each peer is imported when it
is built, so that a process only loads the libraries of its peer. Sizes are for
training on a CPU; all but `diffusers_unet` draw random weights and inputs.
"""

from collections.abc import Callable, Sequence
import functools
import importlib
from pathlib import Path
import types
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.job import Job

TEXT = (77, 768)
"""Tokens of a caption, and their width."""

_Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def diffusers_unet(
  *, batch: int, frames: int, side: int, seed: int, folder: str
) -> Job:
  """DeepFloyd IF's U-Net of `folder`/unet on `folder`/inputs.npz.

  Frames are images of one batch, each with the time and text of its clip.
  """
  del seed  # weights and inputs are in the folder
  model = _import("diffusers").UNet2DConditionModel.from_pretrained(
    Path(folder) / "unet", torch_dtype=torch.float32
  )
  with np.load(Path(folder) / "inputs.npz") as file:
    given = {name: torch.from_numpy(file[name]) for name in file.files}
  if given["video"].shape != (batch, frames, side, side, 3):
    raise ValueError(f"inputs.npz has videos {tuple(given['video'].shape)}")
  pictures = given["video"].flatten(0, 1).movedim(-1, 1).contiguous()
  time, text = (given[k].repeat_interleave(frames, 0) for k in ("time", "text"))

  def predict() -> torch.Tensor:
    out = model(pictures, time, text).sample
    return out.unflatten(0, (batch, frames)).transpose(1, 2)

  return _job(model, predict, given["target"].movedim(-1, 1))


def _lumiere_karras(side: int, **_: int) -> tuple[nn.Module, _Call]:
  """lumiere-pytorch over the U-Net of EDM2; no text."""
  karras_unet = _import("denoising_diffusion_pytorch.karras_unet")
  lumiere_pytorch = _import("lumiere_pytorch")
  unet = karras_unet.KarrasUnet(
    image_size=side,
    dim=48,
    channels=3,
    dim_max=192,
    num_downsamples=2,
    num_blocks_per_stage=2,
    attn_res=(side // 2, side // 4),
  )
  # It is initialised to 0 and frozen: earlier layers would have no gradient.
  nn.init.ones_(unet.output_block[-1].gain)
  model = lumiere_pytorch.MPLumiere(
    unet,
    image_size=side,
    unet_time_kwarg="time",
    conv_module_names=["downs.1", "ups.1", "downs.2", "ups.2"],
    attn_module_names=["mids.0"],
    upsample_module_names=["ups.2", "ups.1"],
    downsample_module_names=["downs.1", "downs.2"],
  )
  return model, lambda video, time, text: model(video, time=time)


def _lumiere_imagen(side: int, **_: int) -> tuple[nn.Module, _Call]:
  """lumiere-pytorch over imagen-pytorch's U-Net."""
  imagen_pytorch = _import("imagen_pytorch")
  lumiere_pytorch = _import("lumiere_pytorch")
  unet = imagen_pytorch.Unet(dim=64, **_IMAGEN)
  unet.final_conv.reset_parameters()  # starts at 0 as well
  model = lumiere_pytorch.Lumiere(
    unet,
    image_size=side,
    unet_time_kwarg="time",
    conv_module_names=["downs.0.1", "downs.1.1", "ups.0.0", "ups.1.0"],
    attn_module_names=["mid_block2"],
    downsample_module_names=["downs.0.4", "downs.1.4"],
    upsample_module_names=["ups.0.3", "ups.1.3"],
  )
  return model, lambda video, time, text: model(
    video, time=time, text_embeds=text
  )


def _imagen_unet3d(**_: int) -> tuple[nn.Module, _Call]:
  """imagen-pytorch's video U-Net."""
  model = _import("imagen_pytorch").Unet3D(
    dim=56, attn_heads=4, attn_dim_head=32, **_IMAGEN
  )
  return model, lambda video, time, text: model(video, time, text_embeds=text)


def _diffusers_3d(side: int, **_: int) -> tuple[nn.Module, _Call]:
  """The U-Net of ModelScope's text-to-video."""
  model = _import("diffusers").UNet3DConditionModel(
    **_diffusers("{}Block3D", side), attention_head_dim=32
  )
  return (
    model,
    lambda video, time, text: model(video, _steps(time), text).sample,
  )


def _diffusers_motion(side: int, frames: int) -> tuple[nn.Module, _Call]:
  """The U-Net of AnimateDiff."""
  model = _import("diffusers").UNetMotionModel(
    **_diffusers("{}BlockMotion", side),
    num_attention_heads=4,
    motion_num_attention_heads=4,
    motion_max_seq_length=max(frames, 32),
  )
  return (
    model,
    lambda video, time, text: (
      model(video, _steps(time), text.repeat_interleave(frames, 0)).sample
    ),
  )


def _make_a_video(**_: int) -> tuple[nn.Module, _Call]:
  """make-a-video-pytorch's U-Net; no text."""
  model = _import("make_a_video_pytorch").SpaceTimeUnet(
    dim=48,
    dim_mult=(1, 2, 4),
    resnet_block_depths=(1, 1, 2),
    temporal_compression=(False, True, True),
    self_attns=(False, False, True),
    condition_on_timestep=True,
  )
  return model, lambda video, time, text: model(video, timestep=time)


_IMAGEN = {
  "dim_mults": (1, 2, 4),
  "cond_dim": 128,
  "text_embed_dim": TEXT[1],
  "num_resnet_blocks": 1,
  "layer_attns": (False, False, True),
  "layer_cross_attns": (False, True, True),
}


def _diffusers(block: str, side: int) -> dict:
  """Shared arguments of the video U-Nets of diffusers."""
  names = ("Down", "CrossAttnDown", "CrossAttnDown")
  return {
    "sample_size": side,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (48, 96, 192),
    "norm_num_groups": 16,
    "layers_per_block": 1,
    "cross_attention_dim": TEXT[1],
    "down_block_types": [block.format(name) for name in names],
    "up_block_types": [
      block.format(name.replace("Down", "Up")) for name in reversed(names)
    ],
  }


def _steps(time: torch.Tensor) -> torch.Tensor:
  """Times in [0, 1) as steps of a thousand."""
  return (time * 1000).long()


def _video(make: Callable[..., tuple[nn.Module, _Call]]):
  """The builder of a peer that takes whole videos, (b, 3, t, h, w)."""

  def build(
    *, batch: int, frames: int, side: int, seed: int, folder: str | None = None
  ) -> Job:
    del folder
    torch.manual_seed(seed)
    model, call = make(side=side, frames=frames)
    video, target = torch.randn(2, batch, 3, frames, side, side)
    time, text = torch.rand(batch), torch.randn(batch, *TEXT)
    return _job(model, lambda: call(video, time, text), target)

  return build


def matmul(*, size: int, times: int, seed: int) -> Job:
  """Repeated products of two square matrices."""
  torch.manual_seed(seed)
  return _calls([(torch.mm, tuple(torch.randn(2, size, size)), times)])


def convolutions(*, shapes: Sequence[Sequence[int]], seed: int) -> Job:
  """3x3 convolutions: pictures, side, channels in and out, times of each."""
  torch.manual_seed(seed)
  calls = []
  for pictures, side, before, after, times in shapes:
    x = torch.randn(pictures, before, side, side)
    kernel = torch.randn(after, before, 3, 3)
    convolve = functools.partial(nn.functional.conv2d, padding=1)
    calls.append((convolve, (x, kernel), times))
  return _calls(calls)


PEERS: dict[str, Callable[..., Job]] = {
  "diffusers_unet": diffusers_unet,
  "lumiere_karras": _video(_lumiere_karras),
  "lumiere_imagen": _video(_lumiere_imagen),
  "imagen_unet3d": _video(_imagen_unet3d),
  "diffusers_3d": _video(_diffusers_3d),
  "diffusers_motion": _video(_diffusers_motion),
  "make_a_video": _video(_make_a_video),
  "matmul": matmul,
  "convolutions": convolutions,
}


def _calls(calls: Sequence[tuple[Callable, tuple, int]]) -> Job:
  """Functions of arrays, each as often as it says, one after the other."""

  @torch.no_grad()
  def forward() -> None:
    for function, args, times in calls:
      for _ in range(times):
        function(*args)

  return Job(forward=forward, forward_flops=_flops(forward))


def _job(
  model: nn.Module, predict: Callable[[], torch.Tensor], target: torch.Tensor
) -> Job:
  """Counts the FLOPs by one pass and one step, which changes no weight.

  Args:
    model: what the library freezes stays frozen.
    predict: gives (b, c, t, h, w), its first three channels trained.
    target: (b, 3, t, h, w).
  """
  # By the base class: `parameters` of lumiere-pytorch lists the trained alone.
  parameters = list(nn.Module.parameters(model))
  trained = [p for p in parameters if p.requires_grad]
  # Fused is the fastest that torch has.
  optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

  @torch.no_grad()
  def forward() -> torch.Tensor:
    model.eval()
    return predict()

  def backward() -> None:
    model.train()
    nn.functional.mse_loss(predict()[:, :3], target).backward()

  def train() -> None:
    backward()
    optimizer.step()
    optimizer.zero_grad()

  forward_flops, train_flops = _flops(forward), _flops(backward)
  optimizer.zero_grad()
  return Job(
    forward=forward,
    train=train,
    forward_flops=forward_flops,
    train_flops=train_flops,
    parameters=sum(p.numel() for p in parameters),
    trained=sum(p.numel() for p in trained),
    output=lambda: forward().movedim(1, -1).numpy(),
  )


def _flops(run: Callable[[], object]) -> int:
  # torch's counter does not know the fused attention of CPUs.
  with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
    run()
  return count.get_total_flops()


def _import(name: str) -> types.ModuleType:
  """Imports a library, around what keeps some from being imported here."""
  try:
    importlib.import_module("torchvision")
  except RuntimeError:
    # PyPI's torchvision beside a CPU build of torch finds no compiled operators
    # and stops at these two, which no peer calls. Declared is enough.
    for operator in ("nms", "qnms"):
      torch.library.define(
        f"torchvision::{operator}",
        "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
      )
  if name != "imagen_pytorch":
    return importlib.import_module(name)
  # It asks the hub for the width of T5 when imported.
  width = types.SimpleNamespace(d_model=TEXT[1])
  with mock.patch("transformers.T5Config.from_pretrained", lambda _: width):
    return importlib.import_module(name)
