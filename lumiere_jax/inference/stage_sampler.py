"""Samples one stage, from noise to clips, in jitted chunks of steps."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future
import dataclasses
import functools
import threading
from typing import TypeVar

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
import numpy as np

from lumiere_jax.diffusion.guidance import (
  Part,
  Scalar,
  guide,
  interval,
  oscillate,
  threshold,
)
from lumiere_jax.diffusion.multidiffusion import multi_diffusion
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
from lumiere_jax.inference.windowing import (
  WHOLE,
  Tiles,
  Windows,
  check_canvas,
  plan_tiles,
  plan_windows,
)
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.backend import compiler_options
from lumiere_jax.parallel.sharding import VIDEO, fit_spec
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.stages.denoiser import network_denoiser
from lumiere_jax.typing import Cond, FlatParams, Video

_WINDOWS = "data"  # The mesh axis that windows are distributed over.


T = TypeVar("T")


@struct.dataclass
class GuidanceParams:
  """Traced parameters: they change without compiling again; see `Settings`."""

  guidance_scale: Scalar = 7.0
  guidance_rescale: Scalar = 0.0
  guidance_interval: tuple[Scalar, Scalar] = (0.0, 1.0)
  oscillate_after: Scalar = -1.0
  oscillate_low: Scalar = 1.0
  percentile: Scalar = 0.95
  max_value: Scalar = 1.5


_draw = jax.jit(frame_noise, static_argnums=(2, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """The static part of a sampling program; see `sample_stage`.

  Attributes:
    config: of the stage.
    rule: step rule.
    windows: over frames; None: all frames at once.
    num_frames: of the video.
    tiles: windows over pixels.
    devices: that windows are distributed over, the mesh's data axis.
  """

  config: StageConfig
  rule: Sampler
  windows: Windows | None
  num_frames: int
  tiles: Tiles = WHOLE
  devices: int = 1

  @property
  def starts(self) -> tuple[int, ...]:
    """First frames of the windows."""
    return plan_windows(self.config, self.windows, self.num_frames)

  @property
  def division(self) -> Division | None:
    """Which frames each device holds; None: each holds the whole canvas."""
    if not self.windows or self.devices == 1:
      return None
    return divide(
      self.starts,
      self.windows.size,
      self.num_frames,
      self.devices,
      self.windows.weights,
    )


def run_chunk(
  params: FlatParams,
  state: State,
  log_snrs: Float[Array, "n"],
  first_step: Array,
  keys: Keys,
  cond: Cond,
  null_cond: Cond,
  guidance_params: GuidanceParams,
  *,
  program: Program,
) -> State:
  """`samplers.sample_chunk` of a stage, on one device or on a mesh.

  Where windows are distributed, `state` and `cond` hold frames in the order of
  `Division.frames`.
  """
  division = program.division
  rest = (params, log_snrs, first_step, keys, null_cond, guidance_params)
  if division is None:
    return _chunk(program, None, {"first": [0]}, state, cond, *rest)
  cut = lambda tree: jax.tree.map(
    lambda x: P(None, _WINDOWS) if x.ndim == 5 else P(), tree
  )
  tables = division.tables
  owned = jax.tree.map(lambda _: P(_WINDOWS), tables)
  return jax.shard_map(
    functools.partial(_chunk, program, division),
    in_specs=(owned, cut(state), cut(cond), *(P() for _ in rest)),
    out_specs=cut(state),
    axis_names={_WINDOWS},
    check_vma=False,
  )(tables, state, cond, *rest)


def _chunk(
  program: Program,
  division: Division | None,
  tables: Tables,
  state: State,
  cond: Cond,
  params: FlatParams,
  log_snrs: Float[Array, "n"],
  first_step: Array,
  keys: Keys,
  null_cond: Cond,
  guidance_params: GuidanceParams,
) -> State:
  """A chunk of steps; with a `division`, one device's part of them."""
  config, windows = program.config, program.windows
  oscillating = oscillate(
    guidance_params.guidance_scale,
    guidance_params.oscillate_low,
    guidance_params.oscillate_after,
    log_snrs,
    first_step,
  )
  schedule = config.diffusion.make_schedule()
  scale = interval(oscillating, *guidance_params.guidance_interval, schedule)
  network = network_denoiser(config, params)
  denoiser = guide(network, scale, null_cond, guidance_params.guidance_rescale)
  for axis, part in program.tiles.by_axis.items():
    starts = plan_tiles(config, part, axis)
    denoiser = multi_diffusion(
      denoiser, starts, part.size, part.chunk, part.weights, axis
    )
  part = None
  if division:
    part = Part(
      axis=_WINDOWS, owned=tables["counts"][0], num_frames=program.num_frames
    )
    denoiser = multi_diffusion_over_devices(
      denoiser, division, tables, _WINDOWS, windows.chunk
    )
  elif windows:
    denoiser = multi_diffusion(
      denoiser, program.starts, windows.size, windows.chunk, windows.weights
    )
  denoiser = threshold(
    denoiser, guidance_params.percentile, guidance_params.max_value, part
  )
  return sample_chunk(
    denoiser,
    program.rule,
    state,
    log_snrs,
    first_step,
    keys,
    cond,
    tables["first"][0],
  )


def sample_at_once(
  config: StageConfig,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  num_frames: int,
  *,
  rule: Sampler,
  log_snrs: Float[np.ndarray, "n"],
  guidance_params: GuidanceParams,
  windows: Windows | None = None,
) -> Video:
  """`sample_stage` as one function of arrays, to be traced and exported.

  Args:
    log_snrs: (steps + 1,) all noise levels, see `StageConfig.levels`.

  The others, and what it returns, are those of `sample_stage`.
  """
  z = frame_noise(keys, INITIAL, num_frames, (*config.video.resolution, 3))
  program = Program(
    config=config, rule=rule, windows=windows, num_frames=num_frames
  )
  return run_chunk(
    params,
    rule.init(z),
    jnp.asarray(log_snrs),
    jnp.int32(0),
    keys,
    cond,
    null_cond,
    _as_arrays(guidance_params),
    program=program,
  ).z


@functools.cache
def jitted_chunk() -> Callable[..., State]:
  """`run_chunk` jitted; a function, because it queries the backend."""
  return jax.jit(
    run_chunk,
    static_argnames="program",
    compiler_options=compiler_options(jax.default_backend()),
  )


_ahead: dict[Hashable, Future] = {}
"""Programs compiled ahead, by program and shapes of the arguments."""


def compile_ahead(
  program: Program,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  *,
  steps: int,
  chunk: int,
) -> None:
  """Compiles, in a thread, what `sample_stage` will run on one device.

  So the next stage compiles while the one before it samples.

  Args:
    program: to compile. The other arguments are those of `sample_stage`; only
      their shapes matter.
  """
  size = program.config.video.resolution
  clip = (keys.shape[0], program.num_frames, *size, 3)
  arguments = jax.eval_shape(
    lambda *arguments: arguments,
    params,
    jax.eval_shape(program.rule.init, jax.ShapeDtypeStruct(clip, jnp.float32)),
    np.zeros(chunk_size(steps, chunk) + 1, np.float32),
    np.int32(0),
    keys,
    cond,
    null_cond,
    _as_arrays(GuidanceParams()),
  )
  key = _shapes(program, arguments)
  if key in _ahead:
    return
  compiled = _ahead[key] = Future()

  def work() -> None:
    try:
      lowered = jitted_chunk().lower(*arguments, program=program)
      compiled.set_result(lowered.compile())
    except BaseException as error:  # raised where it is awaited
      compiled.set_exception(error)

  # No daemon thread: exiting within the compiler would crash the process.
  threading.Thread(target=work).start()


def _shapes(program: Program, arguments: tuple) -> Hashable:
  leaves, structure = jax.tree.flatten(arguments)
  return program, structure, tuple((x.shape, x.dtype) for x in leaves)


def _as_arrays(guidance_params: GuidanceParams) -> GuidanceParams:
  """As traced arrays, so that changes do not recompile."""
  return jax.tree.map(
    functools.partial(jnp.asarray, dtype=jnp.float32), guidance_params
  )


def sample_stage(
  config: StageConfig,
  params: FlatParams,
  cond: Cond,
  null_cond: Cond,
  keys: Keys,
  num_frames: int,
  *,
  rule: Sampler,
  log_snrs: Float[np.ndarray, "n"],
  guidance_params: GuidanceParams,
  windows: Windows | None = None,
  tiles: Tiles = WHOLE,
  start: Video | None = None,
  chunk: int = 10,
  callback: Callable[[int, Video], bool | None] | None = None,
  mesh: Mesh | None = None,
) -> Video:
  """Samples clips from one stage.

  Args:
    config: of the stage.
    params: its weights; with a mesh, as laid out by `lay_out_weights`.
    cond: conditioning of every clip.
    null_cond: text of "no caption", or of a negative prompt.
    keys: (b,) one key per clip; see `noise.sample_keys`.
    num_frames: length of the clips.
    rule: step rule.
    log_snrs: (steps + 1,) noise levels, see `StageConfig.levels`.
    guidance_params: guidance and thresholding.
    windows: over frames; None: all frames at once.
    tiles: windows over pixels.
    start: (b, num_frames, h, w, 3) in [-1, 1], a video to start from, noised to
      the first level (SDEdit, Meng et al. 2021); None: pure noise.
    chunk: steps between two returns to the host, at most.
    callback: see `samplers.sample`.
    mesh: devices: windows are distributed over its data axis, weights sharded
      over fsdp, rows of pixels over space. None: one device.

  Returns:
    (b, num_frames, h, w, 3) in about [-1, 1].
  """
  check_canvas(config, num_frames, windows, tiles)
  program = Program(
    config=config,
    rule=rule,
    windows=windows,
    num_frames=num_frames,
    tiles=tiles,
    devices=mesh.shape[_WINDOWS] if mesh else 1,
  )
  z = _draw(keys, INITIAL, num_frames, (*config.video.resolution, 3))
  guidance_params = _as_arrays(guidance_params)
  if start is not None:
    z = add_noise(start, z, jnp.full(len(z), log_snrs[0]))

  def run(state: State, levels: np.ndarray, first: np.int32) -> State:
    rest = (keys, cond, null_cond, guidance_params)
    arguments = (params, state, levels, first, *rest)
    if compiled := _ahead.get(_shapes(program, arguments)):
      return compiled.result()(*arguments)
    return jitted_chunk()(*arguments, program=program)

  if mesh is None:
    return sample(run, rule.init(z), log_snrs, chunk, callback)
  z, cond = _laid_out(mesh, program.division, (z, cond))
  with jax.set_mesh(mesh):
    video = sample(run, rule.init(z), log_snrs, chunk, callback)
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

  def whole(x: Array) -> np.ndarray:
    x = multihost.to_host(x)
    return x[:, division.frames] if division and x.ndim == 5 else x

  tree = jax.tree.map(whole, tree)
  where = layout(tree, mesh, divided=division is not None)
  return multihost.lay_out(tree, where)
