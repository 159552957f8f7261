"""One step: averaging, skipping, accumulation, optimizers, frozen leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lumiere_jax.models.params import split
from lumiere_jax.training import train_step as step_module
from lumiere_jax.training.averaging import exponent, update_averages
from lumiere_jax.training.config import OPTIMIZERS, TrainConfig
from lumiere_jax.training.optimizer import learning_rate, make_optimizer
from lumiere_jax.training.param_overview import block_of, by_block
from lumiere_jax.training.state import apply_gradients, ema_decay, init_state
from lumiere_jax.training.train_step import loss_and_gradients, make_train_step
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, make_batch, make_task

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


def stepper(leaves, **changes):
  """A state, and a function that applies gradients to it."""
  settings = config(**changes)
  optimizer = make_optimizer(settings)
  take = lambda state, grads: apply_gradients(state, grads, optimizer, settings)
  return init_state(leaves, optimizer), take


def assert_leaves_equal(one, two):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(a, b)


def test_accumulating_equals_the_whole_batch():
  """4 x 2 equals 8: loss and gradients, to rounding."""
  given = {"model": {"cond_channels": 4}, "data": {"masks": "random_boxes"}}
  whole = replace(T2I, train={"batch_size": 8}, **given)
  parts = replace(whole, train={"accumulate": 4})
  trainable, frozen = split(fresh(whole), whole.train.trainable)
  batch = make_batch(whole, 8)
  draws = make_task(whole).draw(batch, jax.random.key(1))
  (loss, grads), (again, parted) = (
    jax.jit(loss_and_gradients(e, make_task(e)))(
      trainable, frozen, batch, draws
    )
    for e in (whole, parts)
  )
  np.testing.assert_allclose(loss, again, rtol=1e-6)
  assert grads.keys() == trainable.keys()
  atol = 1e-6 * max(float(jnp.abs(leaf).max()) for leaf in grads.values())
  for path, leaf in grads.items():
    np.testing.assert_allclose(leaf, parted[path], atol=atol, err_msg=path)


def test_the_average_has_its_closed_form():
  """ema_n = sum over steps of (1 - d_k) w_k, times the decays after them."""
  optimizer = optax.sgd(0.5)
  state, weights = init_state({"w": jnp.array([1.0, -2.0])}, optimizer), []
  start = state.ema["w"]
  settings = config(ema_decay=0.35, ema_warmup=10.0)
  for step in range(6):
    grads = {"w": jnp.array([0.1 * step, -1.0])}
    state = apply_gradients(state, grads, optimizer, settings)
    weights.append(state.trainable["w"])
  ds = [min(0.35, (1 + k) / (10 + k)) for k in range(6)]
  assert (ds[0], ds[-1]) == (0.1, 0.35)  # during and after the warm-up
  closed = start * np.prod(ds) + sum(
    (1 - ds[k]) * weights[k] * np.prod(ds[k + 1 :]) for k in range(6)
  )
  np.testing.assert_allclose(state.ema["w"], closed, rtol=1e-6)
  for warmup in (1.0, 100.0):
    decay = lambda step, w=warmup: float(ema_decay(np.int32(step), 0.999, w))
    assert decay(0) == pytest.approx(min(0.999, 1 / warmup))
    assert decay(10**6) == pytest.approx(0.999)


def test_power_function_averages_have_their_closed_form():
  """After t updates, those up to k have the share (k / t) ** (gamma + 1)."""
  stds, weights = (0.05, 0.1, 0.25), []
  settings = config()
  optimizer = optax.sgd(0.5)
  state = init_state({"w": jnp.array([1.0, -2.0])}, optimizer, len(stds))
  for step in range(9):
    bad = step in (0, 4)  # a skipped step does not count
    grads = {"w": jnp.array([np.nan if bad else 0.1 * step, -1.0])}
    new = apply_gradients(state, grads, optimizer, settings)
    new = update_averages(state, new, stds)
    if bad:
      assert_leaves_equal(new.averages, state.averages)
    else:
      weights.append(new.trainable["w"])
    state = new
  for std, average in zip(stds, state.averages, strict=True):
    gamma = exponent(std)
    assert std == pytest.approx(
      ((gamma + 1) / (gamma + 2) ** 2 / (gamma + 3)) ** 0.5
    )
    shares = np.diff((np.arange(8) / 7) ** (gamma + 1))
    closed = np.tensordot(shares, np.stack(weights), 1)
    np.testing.assert_allclose(average["w"], closed, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_gradients_change_nothing(bad):
  state, take = stepper({"w": jnp.array([1.0, -2.0])})
  good, broken = {"w": jnp.array([0.3, 0.1])}, {"w": jnp.array([bad, 0.1])}
  one = take(state, good)
  after = take(take(one, broken), broken)
  kept = lambda s: (s.trainable, s.ema, s.opt_state)
  assert_leaves_equal(kept(one), kept(after))
  counts = lambda s: (int(s.step), int(s.skipped), int(s.skipped_in_a_row))
  assert counts(after) == (3, 2, 2)
  assert counts(take(after, good)) == (4, 2, 0)


def test_images_train_only_spatial_layers():
  """Weights, moments and averages of temporal leaves do not change."""
  experiment = replace(JOINT, train={"warmup_steps": 1})
  optimizer = make_optimizer(experiment.train, joint=True)
  step = jax.jit(make_train_step(experiment, make_task(experiment)))
  # Moments that are not zero.
  old = jax.tree.map(
    lambda x: x + jnp.ones((), x.dtype),
    init_state(fresh(experiment), optimizer),
  )
  images = make_batch(experiment, 2, frames=1)
  new, metrics = step(old, {}, images, jax.random.key(0))

  def leaves(state):
    """(name, leaf) of weights, averages and moments."""
    flat = jax.tree_util.tree_leaves_with_path(
      (state.trainable, state.ema, state.opt_state)
    )
    name = lambda path: next((k.key for k in path if hasattr(k, "key")), None)
    return [(name(path), leaf) for path, leaf in flat if name(path)]

  assert any(name.startswith("temporal_") for name, _ in leaves(old))
  for (name, before), (_, now) in zip(leaves(old), leaves(new), strict=True):
    same = np.array_equal(before, now)
    assert same == name.startswith("temporal_"), name
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


@pytest.fixture
def take_steps(monkeypatch):
  """States and metrics of steps with given gradients."""
  gradients = lambda trainable, frozen, batch, draws: (0.0, batch["grads"])
  monkeypatch.setattr(step_module, "loss_and_gradients", lambda *_: gradients)

  def take(experiment, kinds, grads):
    optimizer = make_optimizer(experiment.train, joint=experiment.joint)
    state = init_state({k: jnp.ones((2, 3)) for k in LEAVES}, optimizer)
    step = jax.jit(make_train_step(experiment, make_task(experiment)))
    for kind, grad in zip(kinds, grads, strict=True):
      frames = 1 if kind in "py" else 4
      batch = {"video": np.zeros((1, frames, 2, 2, 3), np.uint8), "grads": grad}
      state, metrics = step(state, {}, batch, jax.random.key(0))
      yield state, metrics

  return take


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_counts_the_updates_of_each_leaf(decay, take_steps):
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
  c, grads = experiment.train, gradients_of(STEPS)
  weights = {k: np.ones((2, 3)) for k in LEAVES}
  first, second = ({k: np.zeros((2, 3)) for k in LEAVES} for _ in range(2))
  count, applied, rates = dict.fromkeys(LEAVES, 0), 0, set()
  for kind, grad, (state, metrics) in zip(
    STEPS, grads, take_steps(experiment, STEPS, grads), strict=True
  ):
    down = (c.steps - applied) / c.cooldown_steps
    rate = 0.05 * min((applied + 1) / 3, down, 1.0)
    rates.add(rate)
    assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-5)
    applied += kind in "vp"
    for k in {"v": LEAVES, "p": LEAVES[:1]}.get(kind, ()):
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
  assert len(rates) > 5  # with warm-up and cool-down
  assert int(state.skipped) == 3


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_schedule_free_has_its_closed_form(decay, take_steps):
  """Against Defazio et al. in float64: gradients at y, evaluation at x."""
  experiment = replace(
    JOINT,
    train={
      "optimizer": "schedule_free",
      "learning_rate": 0.05,
      "warmup_steps": 3,
      "clip_norm": 1e9,
      "weight_decay": decay,
    },
  )
  c, grads = experiment.train, gradients_of(STEPS)
  x, y, z = ({k: np.ones((2, 3)) for k in LEAVES} for _ in range(3))
  second = {k: np.zeros((2, 3)) for k in LEAVES}
  count, total, applied = dict.fromkeys(LEAVES, 0), dict.fromkeys(LEAVES, 0), 0
  for kind, grad, (state, metrics) in zip(
    STEPS, grads, take_steps(experiment, STEPS, grads), strict=True
  ):
    rate = 0.05 * min((applied + 1) / 3, 1.0)
    assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-5)
    applied += kind in "vp"
    for k in {"v": LEAVES, "p": LEAVES[:1]}.get(kind, ()):
      g = grad[k].astype(np.float64)
      count[k] += 1
      second[k] = c.b2 * second[k] + (1 - c.b2) * g**2
      scale = np.sqrt(second[k] / (1 - c.b2 ** count[k])) + c.eps
      z[k] = z[k] - rate * (g / scale + decay * y[k])
      total[k] += rate**2
      share = rate**2 / total[k]
      x[k] = (1 - share) * x[k] + share * z[k]
      y[k] = c.b1 * x[k] + (1 - c.b1) * z[k]
    for k in LEAVES:
      np.testing.assert_allclose(state.trainable[k], y[k], atol=2e-5)
      np.testing.assert_allclose(state.ema[k], x[k], atol=2e-5)
  assert count == {LEAVES[0]: 9, LEAVES[1]: 5}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_temporal_leaves_train_as_without_images(name, take_steps):
  settings = {"optimizer": name, "learning_rate": 0.1, "warmup_steps": 1}
  experiment = replace(JOINT, train={**settings, "clip_norm": 1e9})
  alone = replace(experiment, data={"images": ""})
  grads = gradients_of(STEPS)
  videos = [g for kind, g in zip(STEPS, grads, strict=True) if kind == "v"]
  *_, (mixed, _) = take_steps(experiment, STEPS, grads)
  *_, (expected, _) = take_steps(alone, "v" * 5, videos)
  got, expected = mixed.trainable, expected.trainable
  spatial, added = LEAVES
  np.testing.assert_allclose(got[added], expected[added], rtol=1e-6)
  assert np.abs(got[added] - 1).min() > 0
  assert np.abs(got[spatial] - expected[spatial]).max() > 1e-3


def test_only_joint_training_has_a_second_count():
  """So that older checkpoints of other runs can be restored."""
  for joint, leaves in ((False, 4), (True, 5)):  # two moments, two counts
    state = make_optimizer(BASE.train, joint=joint).init({"w": np.ones(2)})
    assert len(jax.tree.leaves(state)) == leaves
  assert not BASE.joint
  assert not T2I.joint  # trains only on images
  assert JOINT.joint
  assert replace(BASE, data={"buckets": "1x8x8"}).joint


def test_the_logged_learning_rate_is_the_one_used(take_steps):
  """SGD with gradients of 1: each step is the rate."""
  sgd = {"optimizer": "sgd", "learning_rate": 0.5, "clip_norm": 1e9}
  experiment = replace(BASE, train={**sgd, "warmup_steps": 4, "decay": "rsqrt"})
  kinds = "vxvvxxvvv"
  grads = [
    {k: np.full((2, 3), np.inf if x == "x" else 1.0, "f") for k in LEAVES}
    for x in kinds
  ]
  before, rates = np.ones((2, 3)), []
  for kind, (state, metrics) in zip(
    kinds, take_steps(experiment, kinds, grads), strict=True
  ):
    now = np.asarray(state.trainable[LEAVES[0]])
    if kind == "v":
      rates.append(float(metrics["learning_rate"]))
      np.testing.assert_allclose(before - now, rates[-1], atol=1e-6)
    before = now
  expected = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5 * (4 / 5) ** 0.5]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_frozen_leaves_have_no_gradient_moment_or_average():
  """The compiled step's memory against sizes by hand."""
  experiment = replace(T2I, model={"channels": (128,)})
  trainable, frozen = split(fresh(experiment), "mid_attention/")
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


COSINE = {"warmup_steps": 10, "decay": "cosine", "final_learning_rate": 0.2}
RSQRT = {"warmup_steps": 16, "decay": "rsqrt"}


@pytest.mark.parametrize(
  ("step", "changes", "rate"),
  [
    (0, {"warmup_steps": 10}, 0.1),
    (9, {"warmup_steps": 10}, 1.0),
    (50, {"warmup_steps": 10}, 1.0),
    (10, COSINE, 1.0),
    (55, COSINE, 0.6),  # half way
    (100, COSINE, 0.2),
    (16, RSQRT, 1.0),
    (64, RSQRT, 0.5),
    (99, {"cooldown_steps": 10}, 0.1),
  ],
  ids=str,
)
def test_learning_rates(step, changes, rate):
  schedule = learning_rate(config(learning_rate=1.0, steps=100, **changes))
  assert float(schedule(step)) == pytest.approx(rate)


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"sgd"}))
def test_optimizers_descend_and_decay_only_kernels(name):
  kernel = "k/kernel"
  state, take = stepper(
    {kernel: jnp.ones((2, 2)), "b": jnp.ones(2)},
    optimizer=name,
    learning_rate=0.1,
    warmup_steps=1,
    weight_decay=0.5,
  )
  ones = state.ema
  down, still = (jax.tree.map(lambda x, g=g: g * x, ones) for g in (0.1, 0.0))
  assert (take(state, down).trainable["b"] < 1).all()
  decayed = take(state, still).trainable
  np.testing.assert_allclose(decayed[kernel], 1 - 0.1 * 0.5, rtol=1e-6)
  np.testing.assert_allclose(decayed["b"], 1.0)


def muon_step(grads):
  state, take = stepper(
    jax.tree.map(jnp.zeros_like, grads),
    optimizer="muon",
    learning_rate=0.1,
    warmup_steps=1,
    muon_rms=0.5,
  )
  new = take(state, grads).trainable
  return {k: np.asarray(-new[k]) / 0.1 for k in grads}


def test_muon_orthogonalises_matrices():
  """A gradient U S V^T gives an update along U V^T, of fixed size."""
  rng = np.random.default_rng(0)
  matrices_of = {
    "a/kernel": lambda x: [x],
    "a/conv/kernel": lambda x: [x.reshape(-1, 8)],
    "temporal_a/qkv/kernel": lambda x: [*x.swapaxes(0, 1).reshape(3, 16, 8)],
  }
  shapes = (16, 8), (3, 3, 4, 8), (16, 3, 2, 4)
  grads = {
    k: rng.normal(size=shape).astype("f")
    for k, shape in zip(matrices_of, shapes, strict=True)
  }
  grads["temporal_a/qkv/kernel"][:, 1] *= 1e-3  # keys scale separately
  moved = muon_step(grads)
  for path, matrices in matrices_of.items():
    for step, matrix in zip(
      matrices(moved[path]), matrices(grads[path]), strict=True
    ):
      u, _, vt = np.linalg.svd(matrix, full_matrices=False)
      # Five Newton-Schulz steps give singular values of 0.7 to 1.2.
      along = np.diag(u.T @ step @ vt.T) / (0.5 * max(matrix.shape) ** 0.5)
      assert (along > 0.6).all() and (along < 1.3).all()
      assert np.square(step).mean() ** 0.5 == pytest.approx(0.5, rel=0.25)


def test_muon_uses_adam_for_other_leaves():
  others = ["stem/kernel", "head/kernel", "cond_in/kernel", "a/bias", "a/scale"]
  grad = jnp.asarray([[0.3, -0.1], [0.002, 0.5]])
  moved = muon_step(dict.fromkeys([*others, "b/kernel"], grad))
  for path in others:
    alike = moved[path] / jnp.sign(grad)  # Adam's first step is a sign
    np.testing.assert_allclose(alike, alike[0, 0], rtol=1e-3, err_msg=path)
    assert alike[0, 0] > 0.9
  assert np.ptp(abs(moved["b/kernel"])) > 0.1


def test_gradients_are_clipped_by_their_global_norm():
  """Seen in Adam's first moment; its update is scale-invariant."""
  state, take = stepper({"w": jnp.zeros(2)}, clip_norm=1.0)
  new = take(state, {"w": jnp.array([30.0, 40.0])})
  moment = optax.tree.get(new.opt_state, "mu")["w"]
  # (1 - b1) g, with g scaled to norm 1.
  np.testing.assert_allclose(moment, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


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
    ("head_norm/scale", "head"),
    ("stem/kernel", "stem"),
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
