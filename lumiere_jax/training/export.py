"""Writes bundles and adapter files of a run."""

import dataclasses
from pathlib import Path

from lumiere_jax.inference.adapters import write_adapter
from lumiere_jax.models import lora, t5
from lumiere_jax.models.text_encoder import TextEncoder, write_text_part
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exporter:
  """Writes the averaged weights of a run.

  Attributes:
    experiment: the stage.
    workdir: of the run.
    checkpoints: hold the frozen weights.
    frozen: the name of these; '' is none.
    text: the text encoder; if it trains, in its initial state.
  """

  experiment: Experiment
  workdir: Path
  checkpoints: Checkpoints
  frozen: str
  text: TextEncoder

  def save(self, state: TrainState, name: str = "bundle") -> None:
    """Writes averaged and frozen weights, text encoder and configs.

    Frozen weights are hard-linked, and a frozen text encoder is written once.
    All processes must call it.
    """
    experiment, folder = self.experiment, self.workdir / name
    step, ema = int(state.step), multihost.to_host(state.ema)
    if not is_primary():  # the others only took part in fetching
      return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = []
    if self.frozen:
      tensors.append(f"{experiment.stage}-frozen-{self.frozen}")
      bundles.link(
        self.checkpoints.frozen_path(self.frozen), folder / tensors[0]
      )
    tensors.append(f"{experiment.stage}-ema-{step:08d}.safetensors")
    trained, ema = t5.split_params(ema)
    text = self.text.with_params(trained) if trained else self.text
    weights = lora.scaled(ema, experiment.lora.scale)
    safetensors.save(folder / tensors[-1], weights)
    stage = bundles.Part(
      meta={
        **experiment.sampling.to_meta(),
        "step": step,
        "trained_on": experiment.data.name,
        "licence": experiment.licence or "not stated",
      },
      tensors=tuple(tensors),
    )
    parts = {"text": write_text_part(folder, text), experiment.stage: stage}
    bundles.write(folder, parts, {"made_by": "lumiere_jax"})
    if experiment.lora.rank:
      self._save_adapter(weights, step)

  def _save_adapter(self, weights: dict, step: int) -> None:
    write_adapter(
      self.workdir / "adapter.safetensors",
      weights,
      stage=self.experiment.stage,
      base=self.frozen.removesuffix(".safetensors"),
      base_name=self.experiment.init_from,
      step=step,
    )
