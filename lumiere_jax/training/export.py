"""The bundle that a run keeps up to date: its newest averaged weights."""

from pathlib import Path

import jax

from lumiere_jax.data.text import TextEncoder
from lumiere_jax.io import bundle as bundles
from lumiere_jax.io import safetensors
from lumiere_jax.pipelines.text import write_text_part
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.state import TrainState


def save_bundle(
  folder: Path,
  experiment: Experiment,
  state: TrainState,
  checkpoints: Checkpoints,
  frozen: str,
  text: TextEncoder,
) -> None:
  """Writes averaged and frozen weights, text encoder and configs.

  Frozen weights and the text encoder are the same for a whole run: they are
  linked or written the first time alone.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tensors = []
  if frozen:
    tensors.append(f"{experiment.stage}-frozen-{frozen}")
    bundles.link(checkpoints.frozen_path(frozen), folder / tensors[0])
  step = int(state.step)
  tensors.append(f"{experiment.stage}-ema-{step:08d}.safetensors")
  safetensors.save(folder / tensors[-1], jax.device_get(state.ema))
  data = experiment.data
  trained_on = data.path if data.source == "files" else data.source
  stage = bundles.Part(
    meta={
      **experiment.sampling.to_meta(),
      "step": step,
      "trained_on": trained_on,
      "licence": experiment.licence or "not stated",
    },
    tensors=tuple(tensors),
  )
  parts = {"text": write_text_part(folder, text), experiment.stage: stage}
  bundles.write(folder, parts, {"made_by": "lumiere_jax"})
