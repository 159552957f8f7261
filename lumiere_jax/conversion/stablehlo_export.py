"""Exports the sampler by `jax.export`, to be called without this package.

sampler.stablehlo     text encoder and cascade as one function
weights.safetensors   its first argument
tokenizer.model       sentencepiece
signature.json        shapes, frames per second, cleaning of captions
call.py               loads and calls it; needs jax, numpy, safetensors and
                      sentencepiece
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from lumiere_jax.conversion.lazy_stage import progress_bar
from lumiere_jax.diffusion.noise import INITIAL, frame_noise, stream_keys
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.stage_sampler import run_chunk, traced
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5Encoder
from lumiere_jax.stages.config import SLOTS, StageConfig
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import require_space, write_json, writing
from lumiere_jax.typing import Cond, FlatParams, Video

FILES = (
  *("sampler.stablehlo", "weights.safetensors", "tokenizer.model"),
  *("signature.json", "call.py"),
)
PLATFORMS = ("cpu", "cuda", "tpu")
_TEXT = "text/"


def write_artefact(
  pipeline: Pipeline, settings: Settings, folder: Path, batch: int = 1
) -> list[str]:
  """Writes the files above; returns lines that describe them to the user.

  Guidance scales stay arguments; all other settings become constants.
  """
  pipeline = _portable(pipeline)
  weights = _weights(pipeline)
  total = sum(x.nbytes for x in weights.values())
  folder.mkdir(parents=True, exist_ok=True)
  require_space(folder, total)
  sampler, inputs = sampler_of(pipeline, settings, batch)
  exported = export.export(jax.jit(sampler), platforms=PLATFORMS)(
    {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in weights.items()},
    inputs,
  )
  with writing(folder / "sampler.stablehlo") as file:
    file.write(exported.serialize())
  with progress_bar(total, "weights") as counted:
    safetensors.save(folder / "weights.safetensors", counted(weights))
  with writing(folder / "tokenizer.model") as file:
    file.write(pipeline.text.tokenizer.to_bytes())
  shape = list(exported.out_avals[0].shape)
  signature = {
    "platforms": list(PLATFORMS),
    "fps": pipeline.fps,
    "cleaning": pipeline.text.cleaning,
    "guidance_scale": float(inputs["guidance_scale"][0]),
    "ssr_guidance_scale": float(inputs["guidance_scale"][1]),
    "inputs": {
      k: {"shape": list(np.shape(v)), "dtype": str(v.dtype)}
      for k, v in inputs.items()
    },
    "output": {"shape": shape, "dtype": "float32"},
  }
  write_json(folder / "signature.json", signature)
  with writing(folder / "call.py") as file:
    file.write((Path(__file__).parent / "assets" / "call.py").read_bytes())
  size = "x".join(map(str, shape))
  return [
    f"{folder}: a sampler for {', '.join(PLATFORMS)} that makes {size}",
    f'python {folder / "call.py"} --prompt="..." --seed=1 --out=x.npy',
  ]


def sampler_of(
  pipeline: Pipeline, settings: Settings, batch: int
) -> tuple[Callable[[FlatParams, dict[str, Any]], Video], dict[str, Any]]:
  """The cascade as a function of weights and inputs, and example inputs.

  Inputs are `tokens`, `mask`, `negative_tokens` and `negative_mask` (b, l),
  `negative` (whether the second text is a negative prompt; else it is the empty
  caption), `seeds` (b,) and `guidance_scale` (base, ssr). The function returns
  (b, t, h, w, 3) in about [-1, 1].
  """
  plans = pipeline.plan(settings)

  def sampler(weights: FlatParams, inputs: dict[str, Any]) -> Video:
    encode = _encoder(pipeline, weights)
    text = encode(inputs["tokens"], inputs["mask"])
    empty = encode(inputs["negative_tokens"], inputs["negative_mask"])
    prompted = Cond(text=text, text_mask=inputs["mask"])
    scales = dict(zip(SLOTS, inputs["guidance_scale"], strict=True))
    video = None
    for i, (name, plan) in enumerate(plans.items()):
      program, keys = plan.program, stream_keys(inputs["seeds"], i)
      size = (*program.config.video.resolution, 3)
      noise = frame_noise(keys, INITIAL, program.num_frames, size)
      video = run_chunk(
        _part(weights, f"{name}/"),
        program.rule.init(noise),
        jnp.asarray(plan.log_snrs),
        jnp.int32(0),
        keys,
        plan.condition(prompted, video, keys),
        _null(program.config, empty, inputs),
        traced(plan.sampling, settings) | {"guidance_scale": scales[name]},
        program=program,
      ).z
    assert video is not None
    return video

  scale_of = lambda slot: (
    plans[slot].sampling.guidance_scale if slot in plans else 1.0
  )
  size = (batch, pipeline.text.tokenizer.max_length)
  return sampler, {
    "tokens": np.zeros(size, np.int32),
    "mask": np.ones(size, bool),
    "negative_tokens": np.zeros(size, np.int32),
    "negative_mask": np.ones(size, bool),
    "negative": np.zeros((), bool),
    "seeds": np.zeros(batch, np.uint32),
    "guidance_scale": np.array([*map(scale_of, SLOTS)], np.float32),
  }


def _portable(pipeline: Pipeline) -> Pipeline:
  """The same without kernels for one platform only."""
  stages = {}
  for name, stage in pipeline.stages.items():
    execution = dataclasses.replace(
      stage.config.execution, attention_kernel="chunked", remat=()
    )
    config = dataclasses.replace(stage.config, execution=execution)
    stages[name] = dataclasses.replace(stage, config=config)
  return Pipeline(pipeline.text, stages)


def _weights(pipeline: Pipeline) -> FlatParams:
  """All parameters in one flat dict."""
  flat = {_TEXT + k: v for k, v in flatten(pipeline.text.params).items()}
  for name, stage in pipeline.stages.items():
    flat |= {f"{name}/{k}": v for k, v in stage.params.items()}
  return flat


def _part(weights: FlatParams, prefix: str) -> FlatParams:
  return {
    k.removeprefix(prefix): v
    for k, v in weights.items()
    if k.startswith(prefix)
  }


def _encoder(pipeline: Pipeline, weights: FlatParams) -> Callable:
  """(tokens, mask) -> features, one caption at a time like `TextEncoder`."""
  network = T5Encoder(pipeline.text.config)
  variables = {"params": unflatten(_part(weights, _TEXT))}
  one = lambda row: network.apply(variables, row[0][None], row[1][None])[0]
  return lambda tokens, mask: jax.lax.map(one, (tokens, mask))


def _null(
  config: StageConfig, empty: jax.Array, inputs: dict[str, Any]
) -> Cond:
  """The unconditional text: the negative prompt, or the stage's null text."""
  mask = inputs["negative_mask"]
  if config.diffusion.null_text == "zeros":
    empty = jnp.where(inputs["negative"], empty, 0.0)
    mask = jnp.where(inputs["negative"], mask, True)
  return Cond(text=empty, text_mask=mask)
