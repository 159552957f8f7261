"""The U-Net: parameter tree and counts, padding, remat, patches, chunks."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, common, ssr, ssr_image, t2i
from lumiere_jax.errors import UserError
from lumiere_jax.models import blocks
from lumiere_jax.models.config import (
  ExecutionConfig,
  TemporalConfig,
  UNetConfig,
)
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet, abstract_params
from lumiere_jax.typing import Cond
from tests.conftest import (
  TEXT,
  apply,
  make_cond,
  random_leaves,
  random_params,
  run,
  small_config,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"


def count(config: UNetConfig) -> int:
  return sum(leaf.size for leaf in abstract_params(config).values())


def if_i(*channels: int) -> UNetConfig:
  return dataclasses.replace(
    common.IF_I_XL, channels=channels, text_channels=channels[-1]
  )


def test_parameter_counts_equal_the_published_if_models():
  # IF-I-XL: exactly the size of its weights file; M, L and IF-II-L: to the
  # digits their authors give.
  assert count(common.IF_I_XL) == 4_304_695_110
  assert round(count(if_i(192, 384, 576, 768)) / 1e6, 1) == 371.6
  assert round(count(if_i(320, 640, 960, 1280)) / 1e6, 1) == 935.4
  assert round(count(common.IF_II_L) / 1e6, 1) == 1243.3


@pytest.mark.parametrize(
  ("module", "millions"),
  [(t2i, 4304.7), (base, 5507.9), (ssr_image, 1136.2), (ssr, 1482.8)],
)
def test_paper_scale_counts_of_the_readme(module, millions):
  assert round(count(module.FULL.network) / 1e6, 1) == millions


def test_golden_tree():
  """Submodule names are an API: a change here breaks saved weights."""
  config = dataclasses.replace(
    base.TINY.model,
    temporal=dataclasses.replace(common.TINY_TEMPORAL, max_distance=16),
    in_channels=6,
    cond_channels=4,
    noise_conditioned=True,
  )
  tree = "".join(
    f"{path} {'x'.join(map(str, leaf.shape))}\n"
    for path, leaf in abstract_params(config).items()
  )
  assert tree == (GOLDEN / "unet.txt").read_text()


def padded(text, real: int, length: int, rng, scale: float = 3.0) -> Cond:
  """The first `real` tokens of a text, then garbage up to a length."""
  shape = (len(text), length - real, text.shape[-1])
  garbage = scale * rng.standard_normal(shape).astype(np.float32)
  return Cond(
    text=jnp.concatenate([text[:, :real], garbage], axis=1),
    text_mask=jnp.tile(jnp.arange(length) < real, (len(text), 1)),
  )


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_padding_has_no_effect_in_attention(rng, kind, kernel):
  x = rng.standard_normal((1, 2, 2, 3, 8)).astype(np.float32)
  text = rng.standard_normal((1, 7, 6)).astype(np.float32)
  block = blocks.TextAttention(
    small_config(head_dim=4, norm_groups=2),
    ExecutionConfig(attention_kernel=kernel),
    kind == "self",
  )
  params = random_params(block, rng, x, text, None, scale=0.5)
  compiled = jax.jit(block.apply)
  run = lambda text, mask: compiled({"params": params}, x, text, mask)
  exact = run(text, None)
  for length in (16, 48):
    cond = padded(text, 7, length, rng)
    out = run(cond.text, cond.text_mask)
    np.testing.assert_allclose(out, exact, atol=1e-6, rtol=1e-6)


def test_padding_has_no_effect_in_pooling(rng):
  text = rng.standard_normal((2, 7, 6)).astype(np.float32)
  block = blocks.TextPooling(
    small_config(pool_heads=2, text_dim=6), ExecutionConfig()
  )
  params = random_params(block, rng, text, None)
  compiled = jax.jit(block.apply)
  run = lambda text, mask: compiled({"params": params}, text, mask)
  for length in (16, 48):
    cond = padded(text, 7, length, rng)
    out = run(cond.text, cond.text_mask)
    np.testing.assert_allclose(out, run(text, None), atol=1e-6)


def test_padding_has_no_effect(rng):
  """Neither what it holds nor how much there is, and there may be none."""
  config = small_config()
  flat = random_leaves(config)
  z = rng.standard_normal((1, 4, 8, 8, 3)).astype(np.float32)
  text = rng.standard_normal((1, *TEXT)).astype(np.float32)
  exact = run(config, flat, z, Cond(text=jnp.asarray(text)))
  some = run(config, flat, z, padded(text, 5, 16, rng))
  for scale in (1.0, 1e30, np.nan):
    other = run(config, flat, z, padded(text, 5, 16, rng, scale))
    np.testing.assert_array_equal(other, some)
  close = {"rtol": 1e-6, "atol": 1e-6 * np.abs(exact).max()}
  np.testing.assert_allclose(some, exact, **close)
  fewer = run(config, flat, z, padded(text, 4, 16, rng))
  assert np.abs(fewer - exact).max() > 1e-3 * np.abs(exact).max()


def test_text_of_only_padding_is_finite_and_deterministic(rng):
  config = small_config()
  flat = random_leaves(config)
  z = rng.standard_normal((1, 4, 8, 8, 3)).astype(np.float32)
  text = np.zeros((1, 0, TEXT[1]), np.float32)
  out = [run(config, flat, z, padded(text, 0, n, rng)) for n in (5, 5, 16)]
  assert np.isfinite(out).all()
  np.testing.assert_array_equal(out[0], out[1])
  scale = np.abs(out[0]).max()
  np.testing.assert_allclose(out[2], out[0], rtol=1e-6, atol=1e-6 * scale)


def test_if_treats_padding_as_tokens(rng):
  """Its norms, attention and pooling take every token, whatever the mask."""
  config = small_config(mask_text=False)
  flat = random_leaves(config)
  z = rng.standard_normal((1, 4, 8, 8, 3)).astype(np.float32)
  cond = make_cond(1)
  assert not cond.text_mask.all()
  out = run(config, flat, z, cond)
  everything = run(small_config(), flat, z, cond.replace(text_mask=None))
  np.testing.assert_array_equal(out, everything)
  other = cond.replace(text=cond.text.at[:, 3:].add(1.0))
  assert np.abs(run(config, flat, z, other) - out).max() > 1e-3


def test_a_position_bias_has_the_offsets_of_the_clips_and_no_others():
  config = small_config(
    channels=(8, 16),
    num_res_blocks=(1, 1),
    attention=("none", "self"),
    temporal=TemporalConfig(resample=(True,), num_attentions=1, head_dim=8),
    text_channels=8,
  )
  for frames, longest in ((80, 39), (8, 3), (4, 1), (2, 1)):
    assert config.for_clips(frames).temporal.max_distance == longest
  # Each of them learns: of 8 frames 4 are left, -3 to 3 apart.
  fitting = config.for_clips(8)
  flat = random_leaves(fitting)
  flat = flat | {
    k: flat[k] + 0.1 * jnp.ones_like(v)
    for k, v in flat.items()
    if "/proj/" in k and v.ndim == 2
  }
  z = jax.random.normal(jax.random.key(1), (1, 8, 8, 8, 3))

  def loss(flat):
    out = apply(flat, z, jnp.full(1, 0.4), make_cond(1), config=fitting)
    return jnp.square(out).mean()

  grads = jax.jit(jax.grad(loss))(flat)
  biases = {k: v for k, v in grads.items() if k.endswith("position_bias")}
  assert len(biases) >= 4
  for path, grad in biases.items():
    assert len(grad) == 7
    assert (jnp.abs(grad).max(axis=1) > 0).all(), path
  # A number that is given stays, an image model has none.
  given = small_config()
  assert given.for_clips(16) is given
  image = small_config(temporal=None)
  assert image.for_clips(1) is image
  with pytest.raises(UserError, match=r"temporal\.max_distance=0 depends"):
    abstract_params(config)


def test_samples_do_not_see_each_other(rng):
  config = small_config()
  flat = random_leaves(config)
  z = rng.standard_normal((2, 4, 8, 8, 3)).astype(np.float32)
  cond, time = make_cond(2), jnp.array([0.2, 0.7])
  both = run(config, flat, z, cond, time)
  for i in range(2):
    one = jax.tree.map(lambda x, i=i: x[i : i + 1], cond)
    alone = run(config, flat, z[i : i + 1], one, time[i : i + 1])
    np.testing.assert_allclose(both[i], alone[0], atol=2e-5)


def test_bfloat16_computes_close(rng):
  config = small_config()
  z = np.float32(rng.normal(size=(1, 4, 8, 8, 3)))
  args = config, random_leaves(config), z
  exact = run(*args, make_cond(1))
  half = ExecutionConfig(dtype="bfloat16")
  rounded = run(*args, make_cond(1), execution=half)
  assert exact.dtype == rounded.dtype == np.float32
  error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
  assert 1e-5 < error < 0.05
  shapes = jax.eval_shape(
    UNet(config, half).init, jax.random.key(0), z, jnp.zeros(1), make_cond(1)
  )
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"attention": ("none", "self")}, "attention has 2 entries"),
    ({"attention": ("none", "crossed", "self")}, "'crossed' is not one of"),
    ({"low_resolution": "corner"}, 'low_resolution=.*mean "corners"'),
    (
      {"channels": (16, 24, 30)},
      "30, which is not a multiple of norm_groups=4",
    ),
    ({"head_dim": 12}, "32, which is not a multiple of head_dim=12"),
    ({"activation": "relu"}, "activation='relu' is not one of gelu, silu"),
    (
      {"temporal": TemporalConfig(resample=(True,), head_dim=8)},
      "resample has",
    ),
    (
      {"temporal": TemporalConfig(resample=(True, True), max_distance=-1)},
      "max_distance=-1 must be at least 0",
    ),
  ],
)
def test_bad_configs(changes, words):
  with pytest.raises(UserError, match=words):
    small_config(**changes)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"attention_kernel": "chunk"}, "attention_kernel='chunk' is not one of"),
    ({"remat": ("full", "fll", "none")}, "remat='fll' is not one of"),
    ({"remat": ("full",)}, r"remat has 1 entries, .*\.channels has 3"),
    ({"dtype": "half"}, "dtype='half' is not one of float32, bfloat16"),
    ({"frame_chunk": -1}, "frame_chunk=-1 must be at least 0"),
  ],
)
def test_bad_executions(changes, words):
  with pytest.raises(UserError, match=words):
    ExecutionConfig(**changes).check_levels(3)


@pytest.mark.parametrize(
  ("shape", "words"),
  [
    ((1, 6, 8, 8, 3), "num_frames=6 is not a multiple of 4.*use 4 or 8"),
    ((1, 4, 8, 10, 3), "width=10 is not a multiple of 4.*use 8 or 12"),
  ],
)
def test_sizes_that_do_not_divide(shape, words):
  config = small_config()
  with pytest.raises(UserError, match=words):
    run(
      config, random_leaves(config), np.zeros(shape, np.float32), make_cond(1)
    )


def test_remat_changes_no_gradient():
  """And it recomputes: convolutions of the blocks appear twice."""
  config = small_config(
    channels=(8, 16),
    num_res_blocks=(1, 1),
    attention=("none", "self"),
    text_channels=8,
    temporal=None,
  )
  flat = random_leaves(config)
  z = jax.random.normal(jax.random.key(1), (1, 1, 8, 8, 3))

  def gradient(*remat: str):
    execution = ExecutionConfig(remat=remat)
    args = z, jnp.full(1, 0.4), make_cond(1)

    def loss(flat):
      out = apply(flat, *args, config=config, execution=execution)
      return jnp.square(out).mean()

    return jax.jit(jax.grad(loss)).lower(flat)

  plain, mixed = gradient(), gradient("full", "none")
  convolutions = lambda lowered: lowered.as_text().count("convolution(")
  everything = convolutions(plain)
  assert convolutions(gradient("products", "products")) == everything
  for kind in ("full", "attention"):
    assert convolutions(gradient(kind, kind)) > 1.2 * everything
  assert everything < convolutions(mixed)
  expected, got = plain.compile()(flat), mixed.compile()(flat)
  for path, leaf in expected.items():
    scale = float(jnp.abs(leaf).max())
    np.testing.assert_allclose(
      got[path], leaf, atol=1e-5 * scale + 1e-9, err_msg=path
    )


def test_patch_model_shapes():
  config = small_config(patch=2, in_channels=6, cond_channels=4)
  shapes = abstract_params(config)
  assert shapes["stem/kernel"].shape == (3, 3, 6 * 4, 16)
  assert shapes["cond_in/kernel"].shape == (3, 3, 4 * 4, 16)
  assert shapes["head/kernel"].shape == (3, 3, 16, 3 * 4)
  z, cond = jnp.ones((1, 4, 16, 8, 3)), make_cond(1, jnp.ones((1, 4, 16, 8, 7)))
  out = jax.eval_shape(
    UNet(config).apply, {"params": unflatten(shapes)}, z, jnp.zeros(1), cond
  )
  assert out.shape == z.shape
  with pytest.raises(UserError, match="width=12 is not a multiple of 8"):
    config.check_video(4, 16, 12)


def test_frames_in_chunks_are_the_same(rng):
  config = small_config()
  z = np.float32(rng.normal(size=(1, 4, 8, 8, 3)))
  args = config, random_leaves(config), z, make_cond(1)
  whole = run(*args)
  # 2 of 4, then all
  chunked = run(*args, execution=ExecutionConfig(frame_chunk=3))
  np.testing.assert_allclose(chunked, whole, atol=2e-5)
  assert whole.std() > 0.1
