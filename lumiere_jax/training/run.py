"""A run under way: everything the loop touches, opened and checked."""

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
from lumiere_jax.training.initialization import check_text, start_or_resume
from lumiere_jax.training.previews import (
  Previews,
  held_out_scene,
  prompted_scene,
)
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.training.workdir import TEXT_CACHE
from lumiere_jax.typing import FlatParams


@dataclasses.dataclass(kw_only=True)
class Run:
  """See the module.

  Attributes:
    state: the only thing that changes.
    pace: how long clips take to load.
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
  pace: LoadTimer = dataclasses.field(default_factory=LoadTimer)

  @classmethod
  def open(
    cls, experiment: Experiment, workdir: Path, mesh: jax.sharding.Mesh
  ) -> "Run":
    """Opens data, text and weights; resumes where a checkpoint is.

    Raises:
      UserError: any of them cannot be used.
    """
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
    check_text(experiment, text)
    captions = TextCache(
      text,
      config.cache or workdir / TEXT_CACHE,
      shards=open_text_shards(experiment.data),
    )
    if not config.train:
      _encode(captions, _captions(experiment, sources))
      text.offload()
    null, mask = null_text(text, experiment.diffusion.null_text)
    task = Task(
      experiment=experiment,
      null_text=jnp.asarray(null),
      null_mask=jnp.asarray(mask),
      text_encoder=text.config if config.train else None,
    )
    checkpoints = Checkpoints(workdir, experiment.train)
    state, frozen, name = start_or_resume(
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
    """Steps taken; asks the device."""
    return int(self.state.step)

  def batches(self) -> Iterator[Batch]:
    """Endless batches on the devices, from the present step on."""
    size = self.experiment.train.batch_size
    return batches(
      self._loader(self.sources[0]),
      batch_size=size,
      start_step=self.step,
      num_threads=self.experiment.data.threads,
      num_workers=self.experiment.data.workers,
      places=multihost.places(self.mesh, size),
      finish=self._to_devices,
    )

  def held_out(self) -> HeldOut:
    """Measures the held-out loss."""
    config = self.experiment.train
    clips = held_out_batches(
      self._loader(self.sources[1]),
      config.eval_clips,
      config.batch_size,
      multihost.places(self.mesh, config.batch_size),
    )
    return HeldOut(
      self.task, self.mesh, [(self._to_devices(b), real) for b, real in clips]
    )

  def previews(self) -> Previews:
    """Samples clips to look at."""
    config = self.experiment.preview
    if config.prompts:
      prompts = list(config.prompts)
      scene = prompted_scene(self.task, self._told(prompts), prompts)
    else:
      # Clips of the first shape there is; each device makes all of them.
      batch, real = held_out_batches(
        self._loader(self.sources[1]), config.clips, config.clips
      )[0]
      shown = {k: v[:real] for k, v in self._arrays(batch).items()}
      held = multihost.replicate(self.mesh, shown)
      scene = held_out_scene(self.task, held, batch["caption"][:real])
    return Previews(self.task, scene, self.workdir / "previews")

  def exporter(self) -> Exporter:
    """Writes bundles."""
    return Exporter(
      experiment=self.experiment,
      workdir=self.workdir,
      checkpoints=self.checkpoints,
      frozen=self.frozen_name,
      text=self.text,
    )

  def close(self) -> None:
    """Waits until everything is saved; see `Checkpoints.close`."""
    self.checkpoints.close()

  def _loader(self, source: Source) -> Loader:
    experiment = self.experiment
    return Loader(
      source=source,
      seed=experiment.seed,
      masks=experiment.data.mask_mix,
      timer=self.pace,
    )

  def _arrays(self, batch: dict[str, Any]) -> dict[str, Any]:
    pixels = {k: batch[k] for k in ("video", "mask") if k in batch}
    return pixels | self._told(batch["caption"])

  def _told(self, captions: list[str]) -> dict[str, Any]:
    """Captions as the step takes them: tokens where the encoder trains."""
    if self.task.text_encoder:
      name, (text, mask) = "tokens", self.text.tokenize(captions)
    else:
      name, (text, mask) = "text", self.captions(captions)
    return {name: text, "text_mask": mask}

  def _to_devices(self, batch: dict[str, Any]) -> Batch:
    size = self.experiment.train.batch_size
    return multihost.to_devices(self.mesh, self._arrays(batch), size)


def _encode(cache: TextCache, captions: Iterator[str]) -> None:
  """Each host its share first, then what no folder they share shows it."""
  every = list(dict.fromkeys(captions))
  cache.fill(every[jax.process_index() :: jax.process_count()])
  barrier("captions")
  cache.fill(every)


def _captions(
  experiment: Experiment, sources: tuple[Source, Source]
) -> Iterator[str]:
  """All that will be needed: of training, and of the clips held out."""
  clips, held_out = sources
  yield from experiment.preview.prompts
  asked = max(experiment.train.eval_clips, experiment.preview.clips)
  for source, count in ((clips, len(clips)), (held_out, asked)):
    for index in range(min(count, len(source))):
      yield from source.captions(index)
