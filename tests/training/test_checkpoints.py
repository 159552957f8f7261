"""Checkpoints: which are kept, damaged ones, full disks."""

import contextlib
import dataclasses
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import OPTIMIZERS
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import TrainState, apply_gradients, init_state
from tests.conftest import replace
from tests.training.conftest import BASE

ADAM = optax.adam(0.1)


def settings(**changes):
  return replace(BASE, train={"eval_clips": 1} | changes).train


def state_at(step: int, optimizer=ADAM) -> TrainState:
  leaves = {"a/b": jnp.full(300, float(step)), "c": jnp.arange(3.0) + step}
  state = init_state(leaves, optimizer)
  return dataclasses.replace(state, step=jnp.int32(step))


def assert_equal(one, two):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


def save(workdir, steps, held_out=None, **changes):
  checkpoints = Checkpoints(workdir, settings(**changes))
  for step in steps:
    checkpoints.save(state_at(step), "frozen", (held_out or {}).get(step))
  checkpoints.close()


def restore(workdir, like=None):
  """The newest state and the name of its frozen weights."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    like or state_at(0),
  )
  with contextlib.closing(Checkpoints(workdir, settings())) as checkpoints:
    return checkpoints.restore(abstract)


def kept(workdir):
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  return sorted(int(name) for name in names if name.isdigit())


def test_the_restored_state_equals_the_saved_one(tmp_path):
  save(tmp_path, [3, 7])
  state, frozen = restore(tmp_path)
  assert frozen == "frozen"
  assert_equal(state_at(7), state)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("joint", [False, True])
def test_a_restored_run_goes_on_bit_for_bit(tmp_path, name, joint):
  leaves = {"stem/kernel": jnp.ones(3), "temporal_mid/kernel": jnp.ones(2)}
  config = settings(optimizer=name, warmup_steps=3, learning_rate=0.1)
  optimizer = make_optimizer(config, joint=joint)

  def steps(state, first):
    for step in range(first, first + 3):
      grads = jax.tree.map(lambda x, s=step: jnp.sin(x + s), leaves)
      state = apply_gradients(state, grads, optimizer, config)
    return state

  half = steps(init_state(leaves, optimizer), 0)
  with contextlib.closing(Checkpoints(tmp_path, settings())) as checkpoints:
    checkpoints.save(half, "frozen")
  read, _ = restore(tmp_path, init_state(leaves, optimizer))
  assert_equal(half, read)
  assert_equal(steps(half, 3), steps(read, 3))


@pytest.mark.parametrize("name", ["adam", "schedule_free"])
@pytest.mark.parametrize("before", [False, True])
def test_a_run_may_start_or_stop_joint_training(tmp_path, before, name):
  """As may a joint run from before the separate count existed."""
  leaves = {"stem/kernel": jnp.ones(3), "temporal_mid/kernel": jnp.ones(2)}
  grads = jax.tree.map(jnp.ones_like, leaves)
  config = settings(optimizer=name)
  optimizers = [make_optimizer(config, joint=j) for j in (False, True)]
  state = init_state(leaves, optimizers[before])
  for _ in range(5):
    state = apply_gradients(state, grads, optimizers[before], config)
  with contextlib.closing(Checkpoints(tmp_path, settings())) as checkpoints:
    checkpoints.save(state, "frozen")
  like = init_state(leaves, optimizers[not before])
  read, _ = restore(tmp_path, like)
  assert jax.tree.structure(read) == jax.tree.structure(like)
  # The separate count starts at the count of all updates, or is dropped.
  joint, plain = (state, read) if before else (read, state)
  assert int(joint.opt_state.count) == 5
  opt_state = joint.opt_state.state
  assert_equal(dataclasses.replace(joint, opt_state=opt_state), plain)
  # No buffer is in it twice: all are donated.
  step = jax.jit(lambda s: s, donate_argnums=0)
  assert int(step(read).step) == 5


@pytest.mark.parametrize(
  ("keep", "keep_best", "steps"),
  [(2, 0, [6, 7]), (2, 1, [4, 6, 7]), (1, 2, [3, 4, 7])],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, keep_best, steps):
  losses = {2: 0.5, 3: 0.4, 4: 0.3, 6: 0.6, 7: 0.9}
  save(tmp_path, range(1, 8), losses, keep=keep, keep_best=keep_best)
  assert kept(tmp_path) == steps


def test_the_best_is_still_known_after_a_restart(tmp_path):
  save(tmp_path, [1, 2], {1: 0.1, 2: 0.5}, keep=1, keep_best=1)
  save(tmp_path, [3, 4], {3: 0.4, 4: 0.6}, keep=1, keep_best=1)
  assert kept(tmp_path) == [1, 4]


def damage(workdir, step):
  """Truncates every file of a checkpoint, as a power cut may."""
  for path in (workdir / "checkpoints" / str(step)).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("held_out", [{}, {7: 0.5}])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, capsys, held_out):
  save(tmp_path, [3, 7], held_out)
  damage(tmp_path, 7)
  state, _ = restore(tmp_path)
  assert int(state.step) == 3
  assert "checkpoint 7 is damaged" in capsys.readouterr().err
  assert kept(tmp_path) == [3]
  assert (tmp_path / "checkpoints" / "damaged-7").is_dir()  # nothing is lost
  save(tmp_path, [7])  # and the step can be saved again
  assert int(restore(tmp_path)[0].step) == 7


def test_if_all_are_damaged_it_is_an_error(tmp_path):
  save(tmp_path, [3])
  damage(tmp_path, 3)
  for _ in range(2):  # and does not silently start a new run
    with pytest.raises(UserError, match="every checkpoint is damaged"):
      restore(tmp_path)


def test_unfinished_checkpoints_are_removed(tmp_path):
  assert restore(tmp_path) is None
  save(tmp_path, [3])
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "3", folder / "5.orbax-checkpoint-tmp")
  assert int(restore(tmp_path)[0].step) == 3
  assert [path.name for path in folder.iterdir()] == ["3"]


def test_another_optimizer_is_an_error(tmp_path):
  save(tmp_path, [3])
  with pytest.raises(UserError, match="with another config"):
    restore(tmp_path, state_at(0, optax.sgd(0.1, momentum=0.9)))
  assert kept(tmp_path) == [3]


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 6 MiB."""
  folder = tmp_path / "small"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
  if os.geteuid() or subprocess.run(mount, check=False).returncode:
    pytest.skip("needs to be root to mount a small disk")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_loses_no_checkpoint(small_disk):
  save(small_disk, [3])
  filler = small_disk / "filler"
  free = shutil.disk_usage(small_disk).free
  filler.write_bytes(bytes(free - 2**16))
  with pytest.raises(UserError, match=r"1 MiB are needed and 0 MiB"):
    save(small_disk, [5])
  assert int(restore(small_disk)[0].step) == 3
  filler.unlink()
  save(small_disk, [5])
  assert int(restore(small_disk)[0].step) == 5


def test_errors_of_orbax_become_one_line(tmp_path, monkeypatch):
  """It writes in the background and raises at the next call."""
  save(tmp_path, [3])
  checkpoints = Checkpoints(tmp_path, settings())

  def fail(*args, **kwargs):
    raise ValueError(
      'RESOURCE_EXHAUSTED: Failed writing: "x": Failed to write 9 bytes to '
      "file 9: No space left on device [os_error_code='28']"
    )

  monkeypatch.setattr(checkpoints._manager, "save", fail)
  words = r"written \(No space left on device\); .* resumes from step 3$"
  with pytest.raises(UserError, match=words):
    checkpoints.save(state_at(5), "frozen")
