"""An open run: data, text encoder, weights and checkpoints of one stage."""

from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lumiere_jax.data.loader import Loader, LoadTimer, batches, held_out_batches
from lumiere_jax.data.sources.base import Source
from lumiere_jax.data.sources.registry import open_sources, open_text_shards
from lumiere_jax.data.text_features import TextCache
from lumiere_jax.models.text_encoder import (
  TextEncoder,
  null_text,
  open_text_encoder,
)
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.multihost import barrier
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.evaluation import HeldOut
from lumiere_jax.training.export import Exporter
from lumiere_jax.training.initialization import (
  check_text_width,
  init_or_restore,
)
from lumiere_jax.training.previews import (
  Previews,
  held_out_inputs,
  prompt_inputs,
)
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.training.workdir import TEXT_CACHE
from lumiere_jax.typing import FlatParams


@dataclasses.dataclass(kw_only=True)
class Run:
  """Everything the training loop works with.

  Attributes:
    sources: training clips and held-out clips.
    state: the training state; all else is constant.
    frozen: weights that do not train.
    frozen_name: the name they are saved under.
    load_timer: times how long clips take to load.
  """

  experiment: Experiment
  workdir: Path
  mesh: jax.sharding.Mesh
  task: Task
  text: TextEncoder
  captions: TextCache
  sources: tuple[Source, Source]
  checkpoints: Checkpoints
  state: TrainState
  frozen: FlatParams
  frozen_name: str
  load_timer: LoadTimer = dataclasses.field(default_factory=LoadTimer)

  @classmethod
  def open(
    cls, experiment: Experiment, workdir: Path, mesh: jax.sharding.Mesh
  ) -> "Run":
    """Opens data, text encoder and weights; resumes from a checkpoint."""
    sources = open_sources(
      experiment.data,
      seed=experiment.seed,
      report=workdir / "data_report.jsonl",
    )
    config = experiment.text
    text = open_text_encoder(
      config.tokenizer,
      config.weights,
      config.max_length,
      config.dtype,
      config.cleaning,
    )
    check_text_width(experiment, text)
    captions = TextCache(
      text,
      config.cache or workdir / TEXT_CACHE,
      shards=open_text_shards(experiment.data),
    )
    if not config.train:
      _encode(captions, _all_captions(experiment, sources))
      text.offload()
    null, mask = null_text(text, experiment.diffusion.null_text)
    task = Task(
      experiment=experiment,
      null_text=jnp.asarray(null),
      null_mask=jnp.asarray(mask),
      text_encoder=text.config if config.train else None,
    )
    checkpoints = Checkpoints(workdir, experiment.train)
    state, frozen, name = init_or_restore(
      experiment, task, checkpoints, mesh, text
    )
    return cls(
      experiment=experiment,
      workdir=workdir,
      mesh=mesh,
      task=task,
      text=text,
      captions=captions,
      sources=sources,
      checkpoints=checkpoints,
      state=state,
      frozen=frozen,
      frozen_name=name,
    )

  @property
  def step(self) -> int:
    """Steps taken; waits for the device."""
    return int(self.state.step)

  def batches(self) -> Iterator[Batch]:
    """Endless batches on the devices, from the current step on."""
    size = self.experiment.train.batch_size
    return batches(
      self._loader(self.sources[0]),
      batch_size=size,
      start_step=self.step,
      num_threads=self.experiment.data.threads,
      num_workers=self.experiment.data.workers,
      places=multihost.local_rows(self.mesh, size),
      finish=self._to_devices,
    )

  def held_out(self) -> HeldOut:
    """The held-out evaluation."""
    config = self.experiment.train
    clips = held_out_batches(
      self._loader(self.sources[1]),
      config.eval_clips,
      config.batch_size,
      multihost.local_rows(self.mesh, config.batch_size),
    )
    return HeldOut(
      self.task, self.mesh, [(self._to_devices(b), real) for b, real in clips]
    )

  def previews(self) -> Previews:
    """The preview sampler."""
    config = self.experiment.preview
    if config.prompts:
      prompts = list(config.prompts)
      inputs = prompt_inputs(self.task, self._encode_text(prompts), prompts)
    else:
      # Clips of the first shape; every device samples all of them.
      batch, real = held_out_batches(
        self._loader(self.sources[1]), config.clips, config.clips
      )[0]
      clips = {k: v[:real] for k, v in self._arrays(batch).items()}
      clips = multihost.replicate(self.mesh, clips)
      inputs = held_out_inputs(self.task, clips, batch["caption"][:real])
    return Previews(self.task, inputs, self.workdir / "previews")

  def exporter(self) -> Exporter:
    """The bundle writer."""
    return Exporter(
      experiment=self.experiment,
      workdir=self.workdir,
      checkpoints=self.checkpoints,
      frozen=self.frozen_name,
      text=self.text,
    )

  def close(self) -> None:
    """Waits until all checkpoints are saved."""
    self.checkpoints.close()

  def _loader(self, source: Source) -> Loader:
    experiment = self.experiment
    return Loader(
      source=source,
      seed=experiment.seed,
      masks=experiment.data.mask_mix,
      timer=self.load_timer,
    )

  def _arrays(self, batch: dict[str, Any]) -> dict[str, Any]:
    pixels = {k: batch[k] for k in ("video", "mask") if k in batch}
    return pixels | self._encode_text(batch["caption"])

  def _encode_text(self, captions: list[str]) -> dict[str, Any]:
    """Text features, or tokens if the text encoder trains."""
    if self.task.text_encoder:
      name, (text, mask) = "tokens", self.text.tokenize(captions)
    else:
      name, (text, mask) = "text", self.captions(captions)
    return {name: text, "text_mask": mask}

  def _to_devices(self, batch: dict[str, Any]) -> Batch:
    size = self.experiment.train.batch_size
    return multihost.to_devices(self.mesh, self._arrays(batch), size)


def _encode(cache: TextCache, captions: Iterator[str]) -> None:
  """Each host encodes its share; then those not in a shared cache folder."""
  unique = list(dict.fromkeys(captions))
  cache.fill(unique[jax.process_index() :: jax.process_count()])
  barrier("captions")
  cache.fill(unique)


def _all_captions(
  experiment: Experiment, sources: tuple[Source, Source]
) -> Iterator[str]:
  """Preview prompts and captions of all clips that the run uses."""
  clips, held_out = sources
  yield from experiment.preview.prompts
  num_held_out = max(experiment.train.eval_clips, experiment.preview.clips)
  for source, count in ((clips, len(clips)), (held_out, num_held_out)):
    for index in range(min(count, len(source))):
      yield from source.captions(index)
