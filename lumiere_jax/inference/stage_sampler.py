"""Samples one stage, from noise to clips, in jitted chunks of steps."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
import numpy as np

from lumiere_jax.diffusion.guidance import (
  Part,
  check_countable,
  guide,
  interval,
  oscillate,
  threshold,
)
from lumiere_jax.diffusion.multidiffusion import (
  AXES,
  multi_diffusion,
  window_starts,
)
from lumiere_jax.diffusion.noise import INITIAL, Keys, frame_noise
from lumiere_jax.diffusion.prediction import add_noise
from lumiere_jax.diffusion.samplers import Sampler, State
from lumiere_jax.diffusion.sampling_loop import chunk_size, sample, sample_chunk
from lumiere_jax.diffusion.sharded_multidiffusion import (
  Division,
  Tables,
  divide,
  multi_diffusion_over_devices,
)
from lumiere_jax.inference.settings import DEFAULT_SETTINGS, Settings
from lumiere_jax.inference.windowing import Windows
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.backend import compiler_options
from lumiere_jax.parallel.sharding import VIDEO, fit_spec
from lumiere_jax.stages.config import SamplingConfig, StageConfig
from lumiere_jax.stages.denoiser import network_denoiser
from lumiere_jax.typing import Cond, FlatParams, Video

_WINDOWS = "data"  # The mesh axis that windows are distributed over.
T = TypeVar("T")

Traced = dict[str, Any]
"""Settings as float32 arrays, by name: changing them does not recompile."""

TRACED = (
  *("guidance_scale", "guidance_rescale", "guidance_interval"),
  *("oscillate_after", "oscillate_low", "percentile", "max_value"),
)
"""Names of the settings that are traced."""


def traced(
  sampling: SamplingConfig, settings: Settings = DEFAULT_SETTINGS
) -> Traced:
  """The traced settings of a stage; `sampling` is `settings.of` the stage."""
  values = vars(settings) | vars(sampling)
  return {name: jax.tree.map(jnp.float32, values[name]) for name in TRACED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """The static part of a sampling program; checks that the windows fit.

  Attributes:
    config: of the stage, at the size of the video.
    rule: step rule.
    num_frames: of the video.
    windows: over frames; None: all frames at once.
    rows, columns: windows over the pixels of frames; None: all at once.
    devices: that windows are distributed over, the mesh's data axis.
  """

  config: StageConfig
  rule: Sampler
  num_frames: int
  windows: Windows | None = None
  rows: Windows | None = None
  columns: Windows | None = None
  devices: int = 1

  def __post_init__(self):
    frames, (height, width) = self.num_frames, self.config.video.resolution
    sides = [frames, height, width]
    for k, windows in enumerate((self.windows, self.rows, self.columns)):
      if windows:
        self.starts(k + 1)
        sides[k] = windows.size
    check_countable(frames * height * width * 3)
    self.config.model.check_video(*sides)

  def starts(self, axis: int = 1) -> tuple[int, ...]:
    """First frames of the windows; or first rows (axis 2) or columns (3).

    Rows and columns are multiples of the upscale, so that a window starts at a
    whole pixel of the low-resolution frame, as crops do in training.
    """
    windows = (self.windows, self.rows, self.columns)[axis - 1]
    if windows is None:
      return (0,)
    size, overlap = windows.size, windows.overlap
    model, video = self.config.model, self.config.video
    if axis == 1:
      factor = model.temporal_factor
      return window_starts(self.num_frames, size, overlap, factor)
    return window_starts(
      video.resolution[axis - 2],
      size,
      overlap,
      model.spatial_factor,
      unit=AXES[axis],
      grid=video.upscale,
    )

  @property
  def division(self) -> Division | None:
    """Which frames each device holds; None: each holds the whole canvas."""
    windows = self.windows
    if windows is None or self.devices == 1:
      return None
    frames, weights = self.num_frames, windows.weights
    return divide(self.starts(), windows.size, frames, self.devices, weights)


def run_chunk(
  params: FlatParams,
  state: State,
  log_snrs: Float[Array, "n"],
  first_step: Array,
  keys: Keys,
  cond: Cond,
  null_cond: Cond,
  guidance: Traced,
  tables: Tables | None = None,
  *,
  program: Program,
) -> State:
  """`sample_chunk` of a stage, on one device or on a mesh.

  Where windows are distributed, `state` and `cond` hold frames in the order of
  `Division.frames`; inside `shard_map`, `tables` are a device's part of
  `Division.tables`.
  """
  division = program.division
  if division and tables is None:
    rest = (state, log_snrs, first_step, keys, cond, null_cond, guidance)
    cut = jax.tree.map(
      lambda x: P(None, _WINDOWS) if x.ndim == 5 else P(), rest
    )
    owned = jax.tree.map(lambda _: P(_WINDOWS), division.tables)
    return jax.shard_map(
      functools.partial(run_chunk, program=program),
      in_specs=(P(), *cut, owned),
      out_specs=cut[0],
      axis_names={_WINDOWS},
      check_vma=False,
    )(params, *rest, division.tables)
  config, windows = program.config, program.windows
  high, low = guidance["guidance_scale"], guidance["oscillate_low"]
  scale = oscillate(
    high, low, guidance["oscillate_after"], log_snrs, first_step
  )
  schedule = config.diffusion.make_schedule()
  clean, noisy = guidance["guidance_interval"]
  scale = interval(scale, clean, noisy, schedule)
  network = network_denoiser(config, params)
  denoiser = guide(network, scale, null_cond, guidance["guidance_rescale"])
  for axis, tiles in ((2, program.rows), (3, program.columns)):
    if tiles:
      starts = program.starts(axis)
      denoiser = multi_diffusion(
        denoiser, starts, tiles.size, tiles.chunk, tiles.weights, axis
      )
  part, first_frame = None, 0
  if windows and division and tables:
    part = Part(
      axis=_WINDOWS, owned=tables["counts"][0], num_frames=program.num_frames
    )
    first_frame = tables["first"][0]
    denoiser = multi_diffusion_over_devices(
      denoiser, division, tables, _WINDOWS, windows.chunk
    )
  elif windows:
    denoiser = multi_diffusion(
      denoiser, program.starts(), windows.size, windows.chunk, windows.weights
    )
  denoiser = threshold(
    denoiser, guidance["percentile"], guidance["max_value"], part
  )
  return sample_chunk(
    denoiser, program.rule, state, log_snrs, first_step, keys, cond, first_frame
  )


@functools.cache
def jitted_chunk() -> Any:
  """`run_chunk` jitted; a function, because it queries the backend."""
  return jax.jit(
    run_chunk,
    static_argnames="program",
    compiler_options=compiler_options(jax.default_backend()),
  )


_draw = jax.jit(frame_noise, static_argnums=(2, 3))

_ahead: dict[Hashable, Future] = {}
"""Programs compiled ahead, by program and shapes of the arguments."""

# No daemon threads: exiting within the compiler would crash the process.
_compiler = ThreadPoolExecutor()


def compile_ahead(
  program: Program,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  *,
  guidance: Traced,
  steps: int,
  chunk: int,
) -> None:
  """Compiles, in a thread, what `sample_stage` will run on one device.

  So the next stage compiles while the one before it samples. The arguments are
  those of `sample_stage`; only their shapes matter.
  """
  size = program.config.video.resolution
  clip = (keys.shape[0], program.num_frames, *size, 3)
  arguments = jax.eval_shape(
    lambda *arguments: arguments,
    params,
    jax.eval_shape(program.rule.init, jax.ShapeDtypeStruct(clip, jnp.float32)),
    np.zeros(chunk_size(steps, chunk) + 1, np.float32),
    np.int32(0),
    *(keys, cond, null_cond, guidance),
  )
  key = _shapes(program, arguments)
  if key not in _ahead:
    compile_ = lambda: (
      jitted_chunk().lower(*arguments, program=program).compile()
    )
    _ahead[key] = _compiler.submit(compile_)


def _shapes(program: Program, arguments: tuple) -> Hashable:
  leaves, structure = jax.tree.flatten(arguments)
  return program, structure, tuple((x.shape, x.dtype) for x in leaves)


def sample_stage(
  program: Program,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  *,
  log_snrs: Float[np.ndarray, "n"],
  guidance: Traced,
  start: Video | None = None,
  chunk: int = 10,
  callback: Callable[[int, Video], bool | None] | None = None,
  mesh: Mesh | None = None,
) -> Video:
  """Samples clips from one stage.

  Args:
    params: weights; with a mesh, as laid out by `lay_out_weights`.
    cond: conditioning of every clip.
    null_cond: text of "no caption", or of a negative prompt.
    keys: (b,) one key per clip; see `noise.sample_keys`.
    log_snrs: (steps + 1,) noise levels, see `StageConfig.levels`.
    guidance: guidance and thresholding; see `traced`.
    start: (b, t, h, w, 3) in [-1, 1], a video to start from, noised to the
      first level (SDEdit, Meng et al. 2021); None: pure noise.
    chunk: steps between two returns to the host, at most.
    callback: see `sampling_loop.sample`.
    mesh: devices: windows are distributed over its data axis, weights sharded
      over fsdp, rows of pixels over space. None: one device.

  Returns:
    (b, t, h, w, 3) in about [-1, 1].
  """
  size = program.config.video.resolution
  z = _draw(keys, INITIAL, program.num_frames, (*size, 3))
  if start is not None:
    z = add_noise(start, z, jnp.full(len(z), log_snrs[0]))
  if mesh:
    z, cond = _laid_out(mesh, program.division, (z, cond))
  rest = (keys, cond, null_cond, guidance)
  run = functools.partial(jitted_chunk(), program=program)
  levels = log_snrs[: chunk_size(len(log_snrs) - 1, chunk) + 1]
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    state = program.rule.init(z)
    first = (params, state, levels, np.int32(0), *rest)
    if not mesh and (compiled := _ahead.get(_shapes(program, first))):
      run = compiled.result()
    steps = lambda state, levels, number: run(
      params, state, levels, number, *rest
    )
    video = sample(steps, state, log_snrs, chunk, callback)
  if mesh is None:
    return video
  video = multihost.to_host(video)
  return video[:, program.division.places] if program.division else video


def layout(tree: T, mesh: Mesh, *, divided: bool) -> T:
  """Shardings of a sampling program: videos sharded, the rest replicated.

  Args:
    tree: of arrays or shapes.
    mesh: devices.
    divided: whether windows are distributed; then frames are sharded, else
      samples.
  """
  video = P(None, _WINDOWS, "space") if divided else VIDEO
  spec = lambda x: fit_spec(video, x.shape, mesh) if x.ndim == 5 else P()
  return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), tree)


def _laid_out(mesh: Mesh, division: Division | None, tree: T) -> T:
  """`tree` on the mesh, as `layout` says."""

  def whole(x: Array) -> Any:
    x = multihost.to_host(x)
    return x[:, division.frames] if division and x.ndim == 5 else x

  tree = jax.tree.map(whole, tree)
  where = layout(tree, mesh, divided=division is not None)
  return multihost.lay_out(tree, where)
