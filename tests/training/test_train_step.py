"""One step: averaging, skipping, accumulation, optimizers, frozen leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lumiere_jax.models.params import split
from lumiere_jax.training import train_step as step_module
from lumiere_jax.training.config import OPTIMIZERS, TrainConfig
from lumiere_jax.training.optimizer import learning_rate, make_optimizer
from lumiere_jax.training.param_overview import block_of, by_block
from lumiere_jax.training.state import (
  TrainState,
  apply_gradients,
  ema_decay,
  init_state,
)
from lumiere_jax.training.train_step import loss_and_gradients, make_train_step
from tests.conftest import replace
from tests.training.conftest import (
  BASE,
  CONDITIONAL,
  T2I,
  make_batch,
  make_task,
)

SGD = optax.sgd(0.5)
JOINT = replace(BASE, data={"images": "DIR"}, train={"trainable": ".*"})


@functools.cache
def fresh(experiment):
  """Random leaves: zero projections would hide the layers before them."""
  task = make_task(experiment)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype)
  return jax.tree.map(draw, shapes)


def config(**changes) -> TrainConfig:
  return replace(BASE, train=changes).train


def tiny_state() -> TrainState:
  return init_state({"w": jnp.array([1.0, -2.0])}, SGD)


def test_accumulating_equals_the_whole_batch():
  """4 x 2 equals 8: loss and gradients, to rounding."""
  whole = replace(CONDITIONAL, train={"batch_size": 8})
  parts = replace(whole, train={"accumulate": 4})
  trainable, frozen = split(fresh(whole), whole.train.trainable)
  task, batch = make_task(whole), make_batch(whole, 8)
  draws = task.draw(batch, jax.random.key(1))
  loss, grads = (
    jax.jit(loss_and_gradients(e, make_task(e)))(
      trainable, frozen, batch, draws
    )
    for e in (whole, parts)
  )
  np.testing.assert_allclose(loss[0], grads[0], rtol=1e-6)
  assert loss[1].keys() == trainable.keys()
  scale = max(float(jnp.abs(leaf).max()) for leaf in loss[1].values())
  for path, leaf in loss[1].items():
    np.testing.assert_allclose(
      leaf, grads[1][path], atol=1e-6 * scale, err_msg=path
    )


def test_the_average_has_its_closed_form():
  """ema_n = sum over steps of (1 - d_k) w_k, times the decays after them."""
  state, weights = tiny_state(), []
  start = state.ema["w"]
  settings = config(ema_decay=0.35, ema_warmup=10.0)
  for step in range(6):
    grads = {"w": jnp.array([0.1 * step, -1.0])}
    state = apply_gradients(state, grads, SGD, settings)
    weights.append(state.trainable["w"])
  ds = [min(0.35, (1 + k) / (10 + k)) for k in range(6)]
  assert (ds[0], ds[-1]) == (0.1, 0.35)  # during and after the warm-up
  closed = start * np.prod(ds) + sum(
    (1 - ds[k]) * weights[k] * np.prod(ds[k + 1 :]) for k in range(6)
  )
  np.testing.assert_allclose(state.ema["w"], closed, rtol=1e-6)


@pytest.mark.parametrize("warmup", [1.0, 10.0, 100.0])
def test_ema_warm_up_is_configured(warmup):
  decay = lambda step: float(ema_decay(np.int32(step), 0.999, warmup))
  assert decay(0) == pytest.approx(min(0.999, 1 / warmup))
  assert decay(10**6) == pytest.approx(0.999)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_gradients_change_nothing(bad):
  adam = make_optimizer(config())
  state = init_state({"w": jnp.array([1.0, -2.0])}, adam)
  good, broken = {"w": jnp.array([0.3, 0.1])}, {"w": jnp.array([bad, 0.1])}
  take = lambda s, g: apply_gradients(s, g, adam, config())
  one = take(state, good)
  after = take(take(one, broken), broken)
  for before, now in zip(
    jax.tree.leaves((one.trainable, one.ema, one.opt_state)),
    jax.tree.leaves((after.trainable, after.ema, after.opt_state)),
    strict=True,
  ):
    np.testing.assert_array_equal(before, now)
  counts = lambda s: (int(s.step), int(s.skipped), int(s.skipped_in_a_row))
  assert counts(after) == (3, 2, 2)
  assert counts(take(after, good)) == (4, 2, 0)


def test_images_train_only_spatial_layers():
  """Weights, moments and averages of temporal leaves do not change."""
  experiment = replace(JOINT, train={"warmup_steps": 1})
  optimizer = make_optimizer(experiment.train, joint=True)
  step = jax.jit(make_train_step(experiment, make_task(experiment)))
  state = init_state(fresh(experiment), optimizer)
  key = jax.random.key(0)
  video = make_batch(experiment, 2)
  images = make_batch(experiment, 2, seed=1, frames=1)
  moved, _ = step(state, {}, video, key)  # so that moments are not zero
  after, metrics = step(moved, {}, images, key)
  temporal = {k for k in state.trainable if k.startswith("temporal_")}
  assert temporal

  def leaves(state):
    """(path, leaf) of weights, averages and moments."""
    flat = jax.tree_util.tree_leaves_with_path(
      (state.trainable, state.ema, state.opt_state)
    )
    key = lambda path: next((k.key for k in path if hasattr(k, "key")), None)
    return [(key(path), leaf) for path, leaf in flat]

  still = [
    (a[0], np.array_equal(a[1], b[1]))
    for a, b in zip(leaves(moved), leaves(after), strict=True)
  ]
  for path, same in still:
    if path in temporal:
      assert same, path
  spatial = {path for path, same in still if path and path not in temporal}
  assert not [p for p, same in still if p in spatial and same]
  for block, norm in metrics["grad_norms"].items():
    assert (float(norm) > 0) == (not block.startswith("temporal_"))


LEAVES = ("stem/kernel", "temporal_mid/proj/kernel")

# v: videos, p: images; x, y: the same with non-finite gradients.
STEPS = "vpxvppyvxpvv"


def gradients_of(kinds: str) -> list[dict[str, np.ndarray]]:
  """Gradients of each step; images bypass the temporal leaf."""
  rng = np.random.default_rng(3)
  steps = []
  for kind in kinds:
    grads = {k: rng.standard_normal((2, 3)).astype(np.float32) for k in LEAVES}
    if kind in "py":
      grads[LEAVES[1]] *= 0
    if kind in "xy":
      grads[LEAVES[0]][0, 0] = np.nan
    steps.append(grads)
  return steps


def take_steps(experiment, kinds, grads, monkeypatch):
  """States and metrics of steps with these gradients."""
  gradients = lambda trainable, frozen, batch, draws: (0.0, batch["grads"])
  monkeypatch.setattr(step_module, "loss_and_gradients", lambda *_: gradients)
  optimizer = make_optimizer(experiment.train, joint=experiment.joint)
  state = init_state({k: jnp.ones((2, 3)) for k in LEAVES}, optimizer)
  step = jax.jit(make_train_step(experiment, make_task(experiment)))
  results = []
  for kind, grad in zip(kinds, grads, strict=True):
    frames = 1 if kind in "py" else 4
    batch = {"video": np.zeros((1, frames, 2, 2, 3), np.uint8), "grads": grad}
    state, metrics = step(state, {}, batch, jax.random.key(0))
    results.append((state, metrics))
  return results


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_counts_the_updates_of_each_leaf(decay, monkeypatch):
  """Against Adam in float64, with the steps that each leaf takes."""
  experiment = replace(
    JOINT,
    train={
      "learning_rate": 0.05,
      "warmup_steps": 3,
      "cooldown_steps": 8,
      "steps": len(STEPS),
      "clip_norm": 1e9,
      "weight_decay": decay,
    },
  )
  c = experiment.train
  grads = gradients_of(STEPS)
  weights = {k: np.ones((2, 3)) for k in LEAVES}
  first, second = ({k: np.zeros((2, 3)) for k in LEAVES} for _ in range(2))
  count, applied = dict.fromkeys(LEAVES, 0), 0
  results = take_steps(experiment, STEPS, grads, monkeypatch)
  rates = []
  for kind, grad, (state, metrics) in zip(STEPS, grads, results, strict=True):
    down = (c.steps - applied) / c.cooldown_steps
    rate = 0.05 * min((applied + 1) / 3, down, 1.0)
    rates.append(rate)
    assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-5)
    applied += kind in "vp"
    moved = {"v": LEAVES, "p": LEAVES[:1]}.get(kind, ())
    for k in moved:
      g = grad[k].astype(np.float64)
      count[k] += 1
      first[k] = c.b1 * first[k] + (1 - c.b1) * g
      second[k] = c.b2 * second[k] + (1 - c.b2) * g**2
      unbiased = first[k] / (1 - c.b1 ** count[k])
      scale = np.sqrt(second[k] / (1 - c.b2 ** count[k])) + c.eps
      weights[k] -= rate * (unbiased / scale + decay * weights[k])
    for k in LEAVES:
      np.testing.assert_allclose(state.trainable[k], weights[k], atol=2e-5)
  assert count == {LEAVES[0]: 9, LEAVES[1]: 5}
  assert len(set(rates)) > 5  # with warm-up and cool-down
  assert int(results[-1][0].skipped) == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_temporal_leaves_train_as_without_images(name, monkeypatch):
  """With every optimizer."""
  settings = {"optimizer": name, "learning_rate": 0.1, "warmup_steps": 1}
  experiment = replace(JOINT, train={**settings, "clip_norm": 1e9})
  grads = gradients_of(STEPS)
  mixed = take_steps(experiment, STEPS, grads, monkeypatch)
  videos = [g for kind, g in zip(STEPS, grads, strict=True) if kind == "v"]
  alone = take_steps(
    replace(experiment, data={"images": ""}), "v" * 5, videos, monkeypatch
  )
  spatial, added = LEAVES
  got, expected = mixed[-1][0].trainable, alone[-1][0].trainable
  np.testing.assert_allclose(got[added], expected[added], rtol=1e-6)
  assert np.abs(got[added] - 1).min() > 0
  assert np.abs(got[spatial] - expected[spatial]).max() > 1e-3


def test_only_joint_training_has_a_second_count():
  """So that older checkpoints of other runs can be restored."""
  structure = lambda **kwargs: jax.tree.structure(
    make_optimizer(BASE.train, **kwargs).init({"w": jnp.zeros(2)})
  )
  assert structure().num_leaves == 4  # two moments, two counts
  assert structure(joint=True).num_leaves == 5
  assert not BASE.joint
  assert not T2I.joint  # trains only on images
  assert JOINT.joint
  assert replace(BASE, data={"buckets": "1x8x8"}).joint


def test_the_logged_learning_rate_is_the_one_used(monkeypatch):
  """SGD with gradients of 1: each step is the rate."""
  experiment = replace(
    BASE,
    train={
      "optimizer": "sgd",
      "learning_rate": 0.5,
      "warmup_steps": 4,
      "decay": "rsqrt",
      "clip_norm": 1e9,
    },
  )
  kinds = "vxvvxxvvv"
  one = {k: np.ones((2, 3), np.float32) for k in LEAVES}
  broken = {k: np.full((2, 3), np.inf, np.float32) for k in LEAVES}
  grads = [broken if kind == "x" else one for kind in kinds]
  before, rates = np.ones((2, 3)), []
  steps = take_steps(experiment, kinds, grads, monkeypatch)
  for kind, (state, metrics) in zip(kinds, steps, strict=True):
    now = np.asarray(state.trainable[LEAVES[0]])
    if kind == "v":
      rates.append(float(metrics["learning_rate"]))
      np.testing.assert_allclose(before - now, rates[-1], atol=1e-6)
    before = now
  expected = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5 * (4 / 5) ** 0.5]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_frozen_leaves_have_no_gradient_moment_or_average():
  """The compiled step's memory against sizes by hand."""
  experiment = replace(BASE, model={"channels": (128,), "norm_groups": 4})
  trainable, frozen = split(fresh(experiment), "temporal_mid/")
  size = lambda flat: sum(leaf.size for leaf in flat.values())
  assert size(frozen) > 10 * size(trainable)
  batch = make_batch(experiment, 1)

  def compiled(trainable, frozen):
    step = make_train_step(experiment, make_task(experiment))
    state = init_state(trainable, make_optimizer(experiment.train))
    lowered = jax.jit(step, donate_argnums=0).lower(
      state, frozen, batch, jax.random.key(0)
    )
    return lowered.compile().memory_analysis()

  memory = compiled(trainable, frozen)
  batch_bytes = sum(x.nbytes for x in batch.values())
  # Weights, average and two moments of trainable leaves; the rest once.
  state_bytes = 4 * 4 * size(trainable)
  held = state_bytes + 4 * size(frozen) + batch_bytes
  assert held <= memory.argument_size_in_bytes <= held + 256
  # The only output is the state, in the donated buffers.
  assert state_bytes <= memory.output_size_in_bytes <= state_bytes + 2048
  assert memory.alias_size_in_bytes >= state_bytes
  # No gradient of frozen leaves is computed, as it is if all leaves train.
  all_train = compiled(fresh(experiment), {})
  saved = all_train.temp_size_in_bytes - memory.temp_size_in_bytes
  assert saved > 4 * size(frozen)


def test_the_learning_rate_warms_up_decays_and_cools_down():
  rate = lambda step, **c: float(
    learning_rate(config(learning_rate=1.0, steps=100, **c))(step)
  )
  assert rate(0, warmup_steps=10) == pytest.approx(0.1)
  assert rate(9, warmup_steps=10) == pytest.approx(1.0)
  assert rate(50, warmup_steps=10) == 1.0
  cosine = {"warmup_steps": 10, "decay": "cosine", "final_learning_rate": 0.2}
  assert rate(10, **cosine) == pytest.approx(1.0)
  assert rate(55, **cosine) == pytest.approx(0.6)  # half way
  assert rate(100, **cosine) == pytest.approx(0.2)
  rsqrt = {"warmup_steps": 16, "decay": "rsqrt"}
  assert rate(16, **rsqrt) == pytest.approx(1.0)
  assert rate(64, **rsqrt) == pytest.approx(0.5)
  assert rate(99, cooldown_steps=10) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adam", "adafactor", "muon"])
def test_optimizers_descend_and_decay_only_kernels(name):
  settings = config(
    optimizer=name, learning_rate=0.1, warmup_steps=1, weight_decay=0.5
  )
  optimizer = make_optimizer(settings)
  kernel = "k/kernel"
  state = init_state({kernel: jnp.ones((2, 2)), "b": jnp.ones(2)}, optimizer)
  down = {kernel: jnp.full((2, 2), 0.1), "b": jnp.full(2, 0.1)}
  moved = apply_gradients(state, down, optimizer, settings).trainable
  assert (moved["b"] < 1).all()
  still = jax.tree.map(jnp.zeros_like, down)
  decayed = apply_gradients(state, still, optimizer, settings).trainable
  np.testing.assert_allclose(decayed[kernel], 1 - 0.1 * 0.5, rtol=1e-6)
  np.testing.assert_allclose(decayed["b"], 1.0)


def muon_step(leaves, grads):
  settings = config(
    optimizer="muon", learning_rate=0.1, warmup_steps=1, muon_rms=0.5
  )
  optimizer = make_optimizer(settings)
  state = init_state(leaves, optimizer)
  new = apply_gradients(state, grads, optimizer, settings).trainable
  return {k: np.asarray(leaves[k] - new[k]) / 0.1 for k in leaves}


def test_muon_orthogonalises_matrices():
  """A gradient U S V^T gives an update along U V^T, of fixed size."""
  rng = np.random.default_rng(0)
  shapes = {
    "a/kernel": (16, 8),
    "a/conv/kernel": (3, 3, 4, 8),
    "temporal_a/qkv/kernel": (16, 3, 2, 4),
  }
  grads = {k: rng.normal(size=v).astype("f") for k, v in shapes.items()}
  grads["temporal_a/qkv/kernel"][:, 1] *= 1e-3  # keys scale separately
  moved = muon_step(jax.tree.map(jnp.zeros_like, grads), grads)
  for path, grad in grads.items():
    matrices = {
      "a/kernel": lambda x: [x],
      "a/conv/kernel": lambda x: [x.reshape(-1, 8)],
      "temporal_a/qkv/kernel": lambda x: list(
        x.swapaxes(0, 1).reshape(3, 16, 8)
      ),
    }[path]
    for step, matrix in zip(matrices(moved[path]), matrices(grad), strict=True):
      u, _, vt = np.linalg.svd(matrix, full_matrices=False)
      # Five Newton-Schulz steps give singular values of 0.7 to 1.2.
      along = np.diag(u.T @ step @ vt.T) / (0.5 * max(matrix.shape) ** 0.5)
      assert (along > 0.6).all() and (along < 1.3).all()
      assert np.square(step).mean() ** 0.5 == pytest.approx(0.5, rel=0.25)


@pytest.mark.parametrize(
  "path",
  ["stem/kernel", "head/kernel", "cond_in/kernel", "a/bias", "a/position_bias"],
)
def test_muon_uses_adam_for_other_leaves(path):
  grad = jnp.asarray([[0.3, -0.1], [0.002, 0.5]])
  grads = {path: grad, "b/kernel": grad}
  moved = muon_step(jax.tree.map(jnp.zeros_like, grads), grads)
  alike = moved[path] / jnp.sign(grad)  # Adam's first step is a sign
  np.testing.assert_allclose(alike, alike[0, 0], rtol=1e-3)
  assert alike[0, 0] > 0.9
  assert np.ptp(abs(moved["b/kernel"])) > 0.1


def test_gradients_are_clipped_by_their_global_norm():
  """Seen in Adam's first moment; its update is scale-invariant."""
  settings = config(clip_norm=1.0, learning_rate=1.0, warmup_steps=1)
  optimizer = make_optimizer(settings)
  state = init_state({"w": jnp.zeros(2)}, optimizer)
  new = apply_gradients(
    state, {"w": jnp.array([30.0, 40.0])}, optimizer, settings
  )
  moments = [
    leaf["w"]
    for leaf in jax.tree.leaves(
      new.opt_state, is_leaf=lambda x: isinstance(x, dict)
    )
    if isinstance(leaf, dict)
  ]
  # (1 - b1) g, with g scaled to norm 1.
  np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


@pytest.mark.parametrize(
  ("path", "block"),
  [
    ("down_0_1/conv_0/kernel", "down_0"),
    ("down_2_0_attention/qkv/kernel", "down_2"),
    ("up_1_resample/conv_0/kernel", "up_1"),
    ("temporal_down_0_1/proj/kernel", "temporal_down_0"),
    ("temporal_mid/attention_0/qkv/kernel", "temporal_mid"),
    ("mid_attention/out/kernel", "mid"),
    ("text_pool/query/kernel", "text"),
    ("text_proj/kernel", "text"),
    ("head_norm/scale", "head"),
    ("stem/kernel", "stem"),
    ("cond_in/kernel", "cond_in"),
    ("lora/mid_0/conv_0/kernel/a", "mid"),
  ],
)
def test_every_leaf_has_a_block(path, block):
  assert block_of(path) == block


def test_blocks_partition_all_leaves():
  flat = fresh(T2I)
  blocks = by_block(flat)
  assert sum(map(len, blocks.values())) == len(flat)
  assert {"stem", "down_0", "mid", "up_0", "head", "text"} <= blocks.keys()
