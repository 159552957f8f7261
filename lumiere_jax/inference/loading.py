"""Loads cascades from bundles."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.adapters import apply_adapters, read_adapter
from lumiere_jax.inference.cascade import Stage
from lumiere_jax.models import lora
from lumiere_jax.models.text_encoder import TextEncoder, text_encoder_of
from lumiere_jax.parallel.mesh import MeshConfig, make_mesh
from lumiere_jax.stages.config import CONDITIONAL, SLOTS, StageConfig
from lumiere_jax.stages.denoiser import lay_out_weights
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.typing import FlatParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """Contents of bundles; weights move to devices when a stage is requested.

  Attributes:
    text: the text encoder.
    configs: of the stages, by name.
    weights: of the stages, lazy.
    mesh: devices; None: one.
  """

  text: TextEncoder
  configs: Mapping[str, StageConfig]
  weights: Mapping[str, FlatParams]
  mesh: Mesh | None

  def stage(self, name: str) -> Stage:
    """A stage with its weights on the devices."""
    config = self.configs[name]
    params = jax.tree.map(np.asarray, self.weights[name])
    params = (
      lay_out_weights(config.execution.dtype, params, self.mesh)
      if self.mesh
      else jax.device_put(params)
    )
    return Stage(config=config, params=params)

  def pair(self) -> dict[str, Stage]:
    """The stages for text-to-video, by slot."""
    return {k: self.stage(name) for k, name in choose(self.configs).items()}

  @property
  def conditional(self) -> Callable[[], Stage] | None:
    """Loads the pixel-conditioned base, if there is one."""
    if CONDITIONAL not in self.configs:
      return None
    return functools.cache(lambda: self.stage(CONDITIONAL))


def load(
  paths: Sequence[str | os.PathLike],
  adapters: Sequence[str | os.PathLike] = (),
  adapter_scale: float = 1.0,
  mesh: MeshConfig | None = None,
) -> Loaded:
  """Opens bundles; see `Pipeline.from_pretrained`."""
  opened = [bundles.open_bundle(path) for path in paths]
  bundles.check_same_text(opened)
  configs: dict[str, StageConfig] = {}
  weights: dict[str, Any] = {}
  for bundle in opened:
    for name in bundle.parts:
      if name in (bundles.TEXT, *configs):
        continue
      configs[name], weights[name] = read_stage(bundle, name)
  models = {name: config.model for name, config in configs.items()}
  read = [*map(read_adapter, adapters)]
  choose(configs)  # fails early where a stage is missing
  return Loaded(
    text=find_text_encoder(opened),
    configs=configs,
    weights=apply_adapters(read, weights, models, adapter_scale),
    mesh=None if mesh is None else make_mesh(mesh),
  )


def read_stage(
  bundle: bundles.Bundle, name: str
) -> tuple[StageConfig, FlatParams]:
  """A stage's config and lazy weights, with its adapters merged into them."""
  where = f"{bundle.folder}: parts.{name}.meta"
  config = StageConfig.from_meta(bundle.parts[name].meta, where)
  return config, lora.merge(bundle.leaves(name))


def find_text_encoder(opened: Sequence[bundles.Bundle]) -> TextEncoder:
  """The text encoder of the first bundle that has one."""
  for bundle in opened:
    if bundles.TEXT in bundle.parts:
      return text_encoder_of(bundle)
  raise UserError(
    option("model", ", ".join(str(b.folder) for b in opened)),
    "holds no text encoder",
    "add a bundle with one, such as one made by python -m "
    "lumiere_jax.convert --from=t5 --src=T5_DIR --out=DIR",
  )


def choose(configs: Mapping[str, StageConfig]) -> dict[str, str]:
  """Slot -> name of the stage: base and, if there is one, ssr."""
  present = {
    slot: [name for name in names if name in configs]
    for slot, names in SLOTS.items()
  }
  chosen = {slot: names[0] for slot, names in present.items() if names}
  if "base" not in chosen:
    raise UserError(
      option("model"),
      f"holds {', '.join(configs) or 'no stage'}",
      "sampling needs a base (or t2i) stage: name its bundle too",
    )
  if "ssr" in chosen:
    base, ssr = (configs[chosen[slot]].video for slot in SLOTS)
    expected = tuple(side * ssr.upscale for side in base.resolution)
    if expected != ssr.resolution:
      raise UserError(
        option("model"),
        f"holds stages that do not fit: the base makes {base.resolution} "
        f"pixels, super-resolution takes {ssr.resolution} / {ssr.upscale}",
        "use stages trained for each other",
      )
  return chosen
