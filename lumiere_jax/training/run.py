"""An open run: data, text encoder, weights and checkpoints of one stage."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lumiere_jax.data.loader import Loader, LoadTimer, batches, held_out_batches
from lumiere_jax.data.sources.base import Source
from lumiere_jax.data.sources.registry import open_sources, open_text_shards
from lumiere_jax.data.text_features import TextCache
from lumiere_jax.inference.adapters import write_adapter
from lumiere_jax.models import lora, t5
from lumiere_jax.models.text_encoder import (
  null_text,
  open_text_encoder,
  write_text_part,
)
from lumiere_jax.parallel import multihost
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.training.averaging import drop_snapshots_after, write_snapshot
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import (
  check_text_width,
  init_or_restore,
)
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.training.workdir import TEXT_CACHE


class Run:
  """Everything the training loop works with.

  Attributes:
    text: the text encoder; if it trains, in its initial state.
    sources: training clips and held-out clips.
    state: the training state; all else is constant.
    frozen: weights that do not train.
    frozen_name: the name they are saved under; '' is none.
    load_timer: times how long clips take to load.
  """

  def __init__(
    self, experiment: Experiment, workdir: Path, mesh: jax.sharding.Mesh
  ):
    """Opens data, text encoder and weights; resumes from a checkpoint."""
    self.experiment, self.workdir, self.mesh = experiment, workdir, mesh
    self.load_timer = LoadTimer()
    self.sources = open_sources(
      experiment.data,
      seed=experiment.seed,
      report=workdir / "data_report.jsonl",
    )
    config = experiment.text
    self.text = open_text_encoder(
      config.tokenizer,
      config.weights,
      config.max_length,
      config.dtype,
      config.cleaning,
    )
    check_text_width(experiment, self.text)
    self._captions = TextCache(
      self.text,
      config.cache or workdir / TEXT_CACHE,
      shards=open_text_shards(experiment.data),
    )
    if not config.train:
      _encode(self._captions, _all_captions(experiment, self.sources))
      self.text.offload()
    null, mask = null_text(self.text, experiment.diffusion.null_text)
    self.task = Task(
      experiment=experiment,
      null_text=jnp.asarray(null),
      null_mask=jnp.asarray(mask),
      text_encoder=self.text.config if config.train else None,
    )
    self.checkpoints = Checkpoints(workdir, experiment.train)
    self.state, self.frozen, self.frozen_name = init_or_restore(
      experiment, self.task, self.checkpoints, mesh, self.text
    )
    if multihost.is_primary():
      drop_snapshots_after(workdir, self.step)

  @property
  def step(self) -> int:
    """Steps taken; waits for the device."""
    return int(self.state.step)

  def batches(self) -> Generator[Batch, None, None]:
    """Endless batches on the devices, from the current step on."""
    size = self.experiment.train.batch_size
    yield from batches(
      self._loader(self.sources[0]),
      batch_size=size,
      start_step=self.step,
      num_threads=self.experiment.data.threads,
      num_workers=self.experiment.data.workers,
      places=multihost.local_rows(self.mesh, size),
      finish=self._to_devices,
    )

  def held_out_batches(self) -> list[tuple[Batch, int]]:
    """The held-out clips on the devices, and how many of each batch count."""
    config = self.experiment.train
    clips = held_out_batches(
      self._loader(self.sources[1]),
      config.eval_clips,
      config.batch_size,
      multihost.local_rows(self.mesh, config.batch_size),
    )
    return [(self._to_devices(batch), real) for batch, real in clips]

  def preview_batch(self) -> tuple[Batch, list[str]]:
    """Held-out clips of the first shape, on every device, and captions."""
    count = self.experiment.preview.clips
    batch, real = held_out_batches(self._loader(self.sources[1]), count, count)[
      0
    ]
    clips = {k: v[:real] for k, v in self._arrays(batch).items()}
    return multihost.replicate(self.mesh, clips), batch["caption"][:real]

  def encode_text(self, captions: list[str]) -> dict[str, Any]:
    """Text features, or tokens if the text encoder trains; and their mask."""
    if self.task.text_encoder:
      name, (text, mask) = "tokens", self.text.tokenize(captions)
    else:
      name, (text, mask) = "text", self._captions(captions)
    return {name: text, "text_mask": mask}

  def export(self, name: str = "bundle") -> None:
    """Writes averaged and frozen weights, text encoder and configs.

    Frozen weights are hard-linked, and a frozen text encoder is written once.
    All processes must call it.
    """
    experiment, folder = self.experiment, self.workdir / name
    step, ema = self.step, multihost.to_host(self.state.ema)
    if not multihost.is_primary():  # the others only took part in fetching
      return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = []
    if self.frozen_name:
      frozen = self.checkpoints.frozen_path(self.frozen_name)
      name = f"{experiment.stage}-frozen-{self.frozen_name}"
      tensors.append(bundles.link(frozen, folder, name))
    tensors.append(f"{experiment.stage}-ema-{step:08d}.safetensors")
    trained, ema = t5.split_params(ema)
    text = self.text.with_params(trained) if trained else self.text
    weights = lora.scaled(ema, experiment.lora.scale)
    safetensors.save(folder / tensors[-1], weights)
    meta = {
      **experiment.sampling.to_meta(),
      "step": step,
      "trained_on": experiment.data.name,
      "licence": experiment.licence or "not stated",
    }
    stage = bundles.Part(meta=meta, tensors=tuple(tensors))
    parts = {"text": write_text_part(folder, text), experiment.stage: stage}
    bundles.write(folder, parts, {"made_by": "lumiere_jax"})
    for old in folder.glob(f"{experiment.stage}-ema-{'[0-9]' * 8}.safetensors"):
      if old.name != tensors[-1]:  # of an export that was killed
        old.unlink()
    if experiment.lora.rank:
      write_adapter(
        self.workdir / "adapter.safetensors",
        weights,
        stage=experiment.stage,
        base=self.frozen_name.removesuffix(".safetensors"),
        base_name=experiment.init_from,
        step=step,
      )

  def save_averages(self) -> None:
    """Writes snapshots of `state.averages`; all processes must call it."""
    step, config = self.step, self.experiment
    counts = {"step": step, "updates": step - int(self.state.skipped)}
    stds = config.train.ema_stds
    for std, average in zip(stds, self.state.averages, strict=True):
      leaves = lora.scaled(multihost.to_host(average), config.lora.scale)
      if multihost.is_primary():
        write_snapshot(self.workdir, config.stage, std, leaves, **counts)

  def close(self) -> None:
    """Waits until all checkpoints are saved."""
    self.checkpoints.close()

  def _loader(self, source: Source) -> Loader:
    data, seed = self.experiment.data, self.experiment.seed
    return Loader(
      source=source, seed=seed, masks=data.mask_mix, timer=self.load_timer
    )

  def _arrays(self, batch: dict[str, Any]) -> dict[str, Any]:
    pixels = {k: batch[k] for k in ("video", "mask") if k in batch}
    return pixels | self.encode_text(batch["caption"])

  def _to_devices(self, batch: dict[str, Any]) -> Batch:
    size = self.experiment.train.batch_size
    return multihost.to_devices(self.mesh, self._arrays(batch), size)


def _encode(cache: TextCache, captions: Iterator[str]) -> None:
  """Each host encodes its share; then those not in a shared cache folder."""
  unique = list(dict.fromkeys(captions))
  cache.fill(unique[jax.process_index() :: jax.process_count()])
  multihost.barrier("captions")
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
