"""LoRA adapters of DeepFloyd IF's U-Net in the formats of diffusers and PEFT.

For each layer such a file holds two matrices, `down` to the rank and `up` from
it. The layer gets the correction scale * up @ down, with scale = alpha / rank.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers.hf_checkpoint import describe_faults
from lumiere_jax.models.importers.unet_diffusers import (
  is_fused,
  spatial_leaves,
  tensor_names,
  to_diffusers,
  transpose_kernel,
)
from lumiere_jax.models.lora import PREFIX, axes
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

PEFT_PREFIX = "base_model.model."

# A module, then the suffix of PEFT (X.lora_A.weight), of diffusers
# (X.lora.down.weight) or of its old attention processors (X_lora.down.weight).
_MODULE = rf"(?:unet\.|{re.escape(PEFT_PREFIX)})?(?P<module>.+?)"
_DIFFUSERS = r"(?P<old>_lora)|\.lora(?:_linear_layer)?"

_HALF = re.compile(
  rf"{_MODULE}(?:\.lora_(?P<peft>[AB])(?:\.\w+)?"
  rf"|(?:{_DIFFUSERS})\.(?P<half>down|up))\.weight"
)

_ALPHA = re.compile(
  rf"{_MODULE}(?:(?:\.lora_[AB]|(?:{_DIFFUSERS})(?:\.(?:down|up))?)"
  r"(?:\.weight)?)?\.(?:network_)?alpha"
)

_METADATA = "lora_adapter_metadata"
_OF_TEXT = "text_encoder"

# Other names of PEFT's keys in the header of a file.
_ALIASES = {
  **dict.fromkeys(("alpha", "network_alpha", "ss_network_alpha"), "lora_alpha"),
  **dict.fromkeys(("rank", "lora_rank", "network_rank", "dim"), "r"),
  **dict.fromkeys(("lora_dim", "network_dim", "ss_network_dim"), "r"),
}

# Header keys that may change the result; titles, dates and the like do not.
_DECISIVE = re.compile(
  r"(^|[._])(r|ranks?|dims?|scal\w*|multiplier|dora|rs_?lora|bias)"
  r"($|[._])|alpha(?!bet)"
  r"|(lora|peft|adapter|loftq)_?(config|settings|metadata|pattern)"
  r"|rank_pattern|modules_to_save|fan_in_fan_out|layer_replication"
)

# Tensors of other methods.
_OTHERS = {
  "a DoRA": re.compile(r"lora_magnitude_vector|\.dora_scale"),
  "a LoHa": re.compile(r"\.hada_"),
  "a LoKr": re.compile(r"\.lokr_"),
  "an OFT": re.compile(r"\.b?oft_"),
  "a LoRA with biases": re.compile(r"\.lora_B(\.\w+)?\.bias$"),
}

_DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32)

# Keys of a PEFT config without effect on a trained adapter. All other keys that
# are not read here must be off.
_IGNORED = {
  *("auto_mapping", "base_model_name_or_path", "eva_config"),
  *("exclude_modules", "inference_mode", "layers_pattern", "peft_version"),
  *("layers_to_transform", "lora_dropout", "megatron_core", "revision"),
  *("qalora_group_size", "rank_dropout", "runtime_config", "target_modules"),
  *("scale_weight_norms", "task_type"),
}

# Other initialisations change the base weights.
_SUPPORTED = {
  "peft_type": ("LORA", None),
  "bias": ("none", None),
  "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """The correction of one diffusers layer.

  Attributes:
    down: (rank, in, *window).
    up: (out, rank), or (out, rank, 1, 1) for a convolution.
    names: of the two in the file.
    scale: of their product.
  """

  down: LazyArray
  up: LazyArray
  names: tuple[str, str]
  scale: float = 1.0

  @property
  def rank(self) -> int:
    """The rank of the correction."""
    return self.down.shape[0]


def read_layers(
  tensors: Mapping[str, LazyArray],
  settings: Mapping[str, Any] | None,
  name: str,
) -> dict[str, Layer]:
  """Layer name -> correction, of a plain LoRA file.

  Args:
    tensors: of the whole file, float16, bfloat16 or float32.
    settings: of the adapter, see `settings_of`. They or tensors state alpha,
      which is the rank by default.
    name: of the file, for errors.
  """
  halves, alphas, faults = _sort(tensors)
  whole = {m: (h["down"], h["up"]) for m, h in halves.items() if len(h) == 2}
  faults["present without the rest of the layer"] = [
    *(t for m, h in halves.items() if m not in whole for t in h.values()),
    *(t for m, t in alphas.items() if m not in halves),
  ]
  faults["of incompatible shapes"] = [
    f"{t} {tensors[t].shape}"
    for names in whole.values()
    if not _is_product(*(tensors[t] for t in names))
    for t in names
  ]
  if problems := describe_faults(faults):
    raise UserError(f"{name}:", problems, "give a plain LoRA of DeepFloyd IF")
  if not whole:
    raise UserError(f"{name}:", "holds no tensors", "give a LoRA")
  ranks = {m: tensors[down].shape[0] for m, (down, _) in whole.items()}
  scales = {
    m: float(np.asarray(tensors[t]).item()) / ranks[m]
    for m, t in alphas.items()
  }
  stated = _scales(settings, ranks, name) if settings else {}
  twice = [
    alphas[m]
    for m in stated.keys() & scales.keys()
    if not math.isclose(stated[m], scales[m], rel_tol=1e-3)
  ]
  if twice:
    raise UserError(
      f"{name}:",
      "alpha is given twice, by a PEFT config or header and by tensors "
      f"({', '.join(sorted(twice))})",
      "remove one of them",
    )
  scales = dict.fromkeys(ranks, 1.0) | scales | stated
  if wrong := [m for m, scale in scales.items() if not math.isfinite(scale)]:
    raise UserError(
      f"{name}:",
      f"alpha is not a finite number ({', '.join(wrong)})",
      "download it again",
    )
  return {
    module: Layer(
      down=tensors[down], up=tensors[up], names=(down, up), scale=scales[module]
    )
    for module, (down, up) in whole.items()
  }


def settings_of(
  metadata: Mapping[str, str],
  name: str,
  *,
  config: Mapping[str, Any] | None = None,
  alpha_tensors: bool = False,
) -> dict[str, Any]:
  """Settings of an adapter under PEFT's names, without those of no effect.

  They are in PEFT's config, in the header as diffusers writes it (JSON), or in
  single keys of the header: [unet.]lora_alpha, network_alpha, and so on.

  Args:
    metadata: the header of the file.
    name: of the file, for errors.
    config: the content of adapter_config.json, if there is one.
    alpha_tensors: whether the file has any. What kohya-ss's programs record
      in the header (ss_network_alpha) then has no effect, as in these programs.
  """
  whole = [config or {}, _json_in_header(metadata, name)]
  single = (
    (key, _parse(value))
    for key, value in metadata.items()
    if _decides(key, alpha_tensors)
  )
  args = {} if alpha_tensors else _parse(metadata.get("ss_network_args", "{}"))
  if isinstance(args, dict):
    named = {k: _parse(str(v)) for k, v in args.items()}
    whole.append({k: v for k, v in named.items() if _DECISIVE.search(k)})
  settings: dict[str, Any] = {}
  for key, value in (*(x for part in whole for x in part.items()), *single):
    key = _ALIASES.get(_bare(key), _bare(key))
    if key in _IGNORED or value is None:
      continue
    if key in settings and settings[key] != value:
      raise UserError(
        f"{name}:",
        f"{key} is given twice, as {settings[key]!r} and {value!r}",
        "remove one of them from its header or adapter_config.json",
      )
    settings[key] = value
  if any(whole[:2]):
    settings.setdefault("lora_alpha", 8)  # PEFT's default
  return settings


def _json_in_header(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
  """The PEFT config in the header of a file written by diffusers, if any."""
  try:
    settings = dict(json.loads(metadata.get(_METADATA, "{}")))
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{name}:",
      f"{_METADATA} in its header is not a JSON object ({error})",
      "download it again",
    ) from error
  unet = {k: v for k, v in settings.items() if k.startswith("unet.")}
  rest = {k: v for k, v in settings.items() if not k.startswith(_OF_TEXT)}
  return unet or rest


def _decides(key: str, alpha_tensors: bool) -> bool:
  """Whether a single key of a header may change the result."""
  if key == _METADATA or key.startswith((_OF_TEXT, "modelspec.")):
    return False
  if key.startswith("ss_"):
    return not alpha_tensors and key in _ALIASES
  key = _bare(key)
  return bool(key in _ALIASES or key in _SUPPORTED or _DECISIVE.search(key))


def _bare(key: str) -> str:
  return key.removeprefix("unet.").lower().replace("-", "_")


def _parse(value: str) -> Any:
  """The value of a string in a header."""
  try:
    return json.loads(value)
  except ValueError:
    return {"True": True, "False": False, "None": None}.get(value, value)


def misfits(layers: Mapping[str, Layer], config: UNetConfig) -> str:
  """One line about the tensors that do not fit a network; '' if all do."""
  shapes = {
    tensor.removesuffix(".weight"): lazy.shape
    for tensor, lazy in to_diffusers(spatial_leaves(config), config).items()
  }
  places = _places(config)
  wrong = []
  for module, layer in layers.items():
    if module not in places:
      continue
    out, fan_in, *window = shapes[module]
    expected = (
      (layer.rank, fan_in, *window),
      (out, layer.rank, *(1 for _ in window)),
    )
    for tensor, half, shape in zip(
      layer.names, (layer.down, layer.up), expected, strict=True
    ):
      if half.shape != shape:
        wrong.append(f"{tensor} {half.shape} instead of {shape}")
  unknown = [t for m, x in layers.items() if m not in places for t in x.names]
  return describe_faults(
    {"of unknown layers": unknown, "of the wrong shape": wrong}
  )


def from_diffusers(
  layers: Mapping[str, Layer], config: UNetConfig, name: str
) -> FlatParams:
  """Adapter leaves in float32, as of `lora.init_adapter`.

  The layers of a fused kernel are concatenated along the rank; each affects its
  own part of the output. `name` is their file, for errors.
  """
  if problems := misfits(layers, config):
    raise UserError(f"{name}:", problems, "give an adapter of this network")
  places = _places(config)
  parts: dict[str, dict[int, Layer]] = {}
  for module, layer in layers.items():
    path, number = places[module]
    parts.setdefault(path, {})[number] = layer
  leaves = spatial_leaves(config)
  flat = {}
  for path, given in parts.items():
    inner, outer = axes(path, leaves[path].shape)
    down, up = [], []
    for number, layer in sorted(given.items()):
      kernel = transpose_kernel(np.asarray(layer.down, np.float32))
      down.append(kernel.reshape(*inner, layer.rank))
      half = np.asarray(layer.up, np.float32).reshape(-1, layer.rank).T
      block = np.zeros((layer.rank, *outer), np.float32)
      part = block[:, number] if is_fused(path) else block
      part[...] = (layer.scale * half).reshape(part.shape)
      up.append(block)
    flat[f"{PREFIX}{path}/a"] = np.concatenate(down, axis=-1)
    flat[f"{PREFIX}{path}/b"] = np.concatenate(up)
  return flat


def _sort(
  tensors: Mapping[str, LazyArray],
) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, list[str]]]:
  """Tensor names of both halves and of alpha of each layer, and faults."""
  halves: dict[str, dict[str, str]] = {}
  alphas: dict[str, str] = {}
  faults: dict[str, list[str]] = {
    "not part of a plain LoRA": [],
    **{f"not part of a plain LoRA but of {kind}": [] for kind in _OTHERS},
    "duplicated under another name": [],
    "not a single number": [],
    "not float16, bfloat16 or float32": [],
  }
  unknown, *others, duplicate, no_number, other_type = faults.values()
  for tensor, lazy in tensors.items():
    if match := _HALF.fullmatch(tensor):
      key = match["half"] or {"A": "down", "B": "up"}[match["peft"]]
      place = halves.setdefault(_module(match), {})
    elif match := _ALPHA.fullmatch(tensor):
      key, place = _module(match), alphas
      if lazy.size != 1:
        no_number.append(tensor)
    else:
      methods = zip(others, _OTHERS.values(), strict=True)
      fits = (names for names, kind in methods if kind.search(tensor))
      next(fits, unknown).append(tensor)
      continue
    if key in place:
      duplicate.append(tensor)
    if lazy.dtype not in _DTYPES:
      other_type.append(f"{tensor} {lazy.dtype}")
    place[key] = tensor
  return halves, alphas, faults


def _module(match: re.Match) -> str:
  """The name of a tensor's layer in the network."""
  module = match["module"].replace(".processor.", ".")
  is_short = match["old"] and module.endswith(".to_out")
  return f"{module}.0" if is_short else module


def _is_product(down: LazyArray, up: LazyArray) -> bool:
  """Whether both matrices have the same rank."""
  return min(down.ndim, up.ndim) > 1 and 0 < down.shape[0] == up.shape[1]


def _scales(
  settings: Mapping[str, Any], ranks: Mapping[str, int], name: str
) -> dict[str, float]:
  """The scale of each layer: alpha / rank or / sqrt(rank); {} if not stated."""
  read: dict[str, Any] = {
    "r": None,
    "lora_alpha": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "peft_type": "LORA",
    "bias": "none",
    "init_lora_weights": True,
  }
  values = {k: settings.get(k, default) for k, default in read.items()}
  known = {*read, *_IGNORED}
  unsupported = {k: v for k, v in settings.items() if v and k not in known}
  for key, supported in _SUPPORTED.items():
    if values[key] not in supported:
      unsupported[key] = values[key]
  if unsupported:
    refused = ", ".join(f"{key}={x!r}" for key, x in unsupported.items())
    raise UserError(
      f"{name}:",
      f"its PEFT config or header has {refused}, which is not supported",
      "give an adapter without",
    )
  given = lambda rank: {**values, "r": values["r"] or rank}
  expected = {
    m: _pattern(given(rank), "rank_pattern", "r", m, name)
    for m, rank in ranks.items()
  }
  wrong = [
    f"{m} {rank} instead of {expected[m]:g}"
    for m, rank in ranks.items()
    if rank != expected[m]
  ]
  if wrong:
    raise UserError(
      f"{name}:",
      f"ranks differ from its PEFT config or header ({', '.join(wrong)})",
      "download both again, together",
    )
  if not settings.keys() & {"lora_alpha", "alpha_pattern", "use_rslora"}:
    return {}
  root = math.sqrt if values["use_rslora"] else float
  return {
    m: _pattern(values, "alpha_pattern", "lora_alpha", m, name) / root(rank)
    for m, rank in ranks.items()
  }


def _pattern(
  values: Mapping[str, Any], patterns: str, default: str, module: str, name: str
) -> float:
  """The value of the first regex that matches a layer, or the default."""
  try:
    for key, value in (values[patterns] or {}).items():
      if re.match(rf"(.*\.)?({key})$", module):
        return float(value)
    return float(values[default])
  except (AttributeError, TypeError, ValueError, re.error) as error:
    raise UserError(
      f"{name}:",
      f"{patterns} or {default} of its PEFT config or header is malformed "
      f"({error})",
      "download it again",
    ) from error


def _places(config: UNetConfig) -> dict[str, tuple[str, int]]:
  """Layer of diffusers -> the path of the kernel and the part of it."""
  return {
    tensor.removesuffix(".weight"): (path, number)
    for path, names in tensor_names(config).items()
    if path.endswith("/kernel")
    for number, tensor in enumerate(names)
  }
