"""The cascade on random weights: seeds, windows, and no recompilation."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import base, conditional, ssr, t2i
from lumiere_jax.diffusion.guidance import threshold
from lumiere_jax.errors import UserError
from lumiere_jax.inference import cascade, stage_sampler
from lumiere_jax.inference.cascade import Stage
from lumiere_jax.inference.loading import choose
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.models.text_encoder import TextEncoder
from lumiere_jax.models.unet import abstract_params
from tests.conftest import replace
from tests.inference.fakes import replace_networks, tiny_pipeline

PROMPT = "a red circle moves left"

# Narrow: what is tested here does not depend on it, and time does.
NARROW = {"channels": (8, 16), "text_channels": 8, "head_dim": 8}
NARROW |= {"norm_groups": 4}

SHORT = Settings(steps=3, sampler="ddpm", num_frames=16, chunk=2)


def random_stage(experiment, seed=0):
  """A stage whose every leaf is random, so that nothing is trivially zero."""
  experiment = replace(experiment, model=NARROW)
  shapes = abstract_params(experiment.network)
  rng = np.random.default_rng(seed)
  draw = lambda x: np.float32(
    rng.standard_normal(x.shape) * 0.5 / np.sqrt(np.prod(x.shape[:-1]))
  )
  return Stage(config=experiment.sampling, params=jax.tree.map(draw, shapes))


@pytest.fixture(scope="module")
def pipeline():
  text = TextEncoder.random(max_length=48)
  return Pipeline(
    text, {"base": random_stage(base.TINY), "ssr": random_stage(ssr.TINY, 1)}
  )


@pytest.fixture(scope="module")
def base_only(pipeline):
  return pipeline.base_alone


def pair(stages):
  chosen = choose({name: stage.config for name, stage in stages.items()})
  return {slot: stages[name] for slot, name in chosen.items()}


def make(pipeline, seeds, **changes):
  settings = dataclasses.replace(SHORT, **changes)
  prompts = [PROMPT] * len(seeds)
  return pipeline.text_to_video(prompts, seed=seeds, settings=settings)


def test_text_becomes_a_video_through_both_stages(pipeline):
  reported = []
  video = pipeline.text_to_video(
    [PROMPT], seed=[1], settings=SHORT, on_progress=reported.append
  )
  assert [(p.stage, p.done, p.total) for p in reported] == [
    (stage, done, 3) for stage in ("base", "ssr") for done in (1, 2, 3)
  ]
  assert reported[0].canvas.shape == (1, 16, 16, 16, 3)
  assert video.shape == (1, 16, 32, 32, 3)
  assert video.dtype == np.uint8
  assert video.std() > 1
  np.testing.assert_array_equal(video, make(pipeline, [1]))
  assert (video != make(pipeline, [2])).mean() > 0.5


def test_one_seed_is_one_video_in_any_batch_and_chunking(pipeline):
  alone = pipeline.sample([PROMPT], seed=[3], settings=SHORT)[0]
  together = pipeline.sample(
    [PROMPT] * 4,
    seed=[9, 3, 5, 7],
    settings=dataclasses.replace(SHORT, window_batch=3),
  )[1]
  np.testing.assert_allclose(alone, together, atol=1e-4)


def test_nothing_compiles_again_when_values_change(pipeline):
  make(pipeline, [1])
  programs = lambda: (
    stage_sampler.jitted_chunk()._cache_size(),
    len(stage_sampler._ahead),
  )
  compiled = programs()
  for changes in (
    {"guidance_scale": 2.5, "ssr_guidance_scale": 1.0},
    {"percentile": 0.99, "max_value": 1.0, "noise_level": 0.3},
    {"guidance_rescale": 0.7, "guidance_interval": (0.2, 0.8)},
    {"oscillate_after": 1, "oscillate_low": 2.0},
  ):
    make(pipeline, [12], **changes)
  pipeline.text_to_video(
    ["a large blue star spins"],
    seed=[4],
    negative_prompt="grey",
    settings=SHORT,
  )
  assert programs() == compiled


def test_super_resolution_compiles_while_the_base_samples(
  pipeline, monkeypatch
):
  monkeypatch.setattr(stage_sampler, "_ahead", {})
  video = make(pipeline, [1])
  (compiled,) = stage_sampler._ahead.values()
  called = []
  compiled.result = lambda: lambda *args: called.append(args) or 1 / 0
  with pytest.raises(ZeroDivisionError):
    make(pipeline, [2])  # the one there is, not a second one
  assert len(called) == 1
  monkeypatch.setattr(cascade, "compile_ahead", lambda *_, **__: None)
  monkeypatch.setattr(stage_sampler, "_ahead", {})
  np.testing.assert_array_equal(video, make(pipeline, [1]))


def test_prompt_and_negative_prompt_matter(pipeline):
  one = make(pipeline, [1])
  other = pipeline.text_to_video(
    ["a blue star spins"], seed=[1], settings=SHORT
  )
  away = pipeline.text_to_video(
    [PROMPT], seed=[1], settings=SHORT, negative_prompt="a blue star"
  )
  assert (one != other).mean() > 0.1
  assert (one != away).mean() > 0.1


@pytest.mark.parametrize(
  ("changes", "used"),
  [
    ({}, "both"),
    ({"guidance_scale": 1.0, "ssr_guidance_scale": 1.0}, "none"),
    ({"guidance_scale": 4.0, "ssr_guidance_scale": 1.0}, "both"),
    ({"guidance_scale": 1.0, "ssr_guidance_scale": 2.0}, "ssr"),
    (
      {
        "guidance_scale": 1.0,
        "ssr_guidance_scale": 1.0,
        "oscillate_after": 0,
        "oscillate_low": 0.5,
      },
      "both",
    ),
    (
      {
        "guidance_scale": 1.0,
        "ssr_guidance_scale": 1.0,
        "oscillate_after": 9,
        "oscillate_low": 0.5,
      },
      "none",
    ),
  ],
)
@pytest.mark.parametrize("task", ["text_to_video", "extend", "super_resolve"])
def test_a_negative_prompt_that_changes_nothing(
  monkeypatch, capsys, changes, used, task
):
  calls, pipeline = replace_networks(monkeypatch), tiny_pipeline()
  settings = Settings(steps=2, num_frames=16, **changes)
  inputs = {"prompt": PROMPT}
  if task != "text_to_video":
    inputs["video"] = np.zeros((16, 32, 32, 3), np.uint8)
  if task == "extend":
    inputs["context"] = 4
  make = functools.partial(
    getattr(pipeline, task), **inputs, settings=settings, negative_prompt="grey"
  )
  # Super-resolution is sampled alone, and unguided.
  alone = task == "super_resolve" and changes.get("guidance_scale") == 4
  if used == "none" or alone:
    with pytest.raises(UserError, match="negative_prompt changes nothing"):
      make()
    assert not calls
    return
  make()
  told = "changes super-resolution alone" in capsys.readouterr().err
  assert told == (used == "ssr" and task != "super_resolve")


def test_negative_prompt_equal_to_the_prompt_cancels_guidance(base_only):
  """w eps(p) + (1 - w) eps(p) = eps(p), whatever w."""
  run = lambda scale: base_only.text_to_video(
    [PROMPT],
    seed=[1],
    negative_prompt=PROMPT if scale != 1 else "",
    settings=dataclasses.replace(SHORT, guidance_scale=scale),
  ).astype(int)
  assert np.abs(run(1.0) - run(9.0)).max() <= 1


def test_guidance_options_change_the_video(base_only):
  """Each applies to some of the 3 steps, at t = 1, 2/3 and 1/3."""
  strong = dataclasses.replace(SHORT, guidance_scale=50.0)
  sample = lambda **changes: base_only.sample(
    [PROMPT], seed=[1], settings=dataclasses.replace(strong, **changes)
  )
  plain = sample()
  for changes in (
    {"guidance_rescale": 0.7},
    {"guidance_interval": (0.5, 0.8)},
    {"oscillate_after": 1},
    {"oscillate_after": 1, "oscillate_low": 99.0},
  ):
    assert np.abs(sample(**changes) - plain).max() > 1e-3
  never = sample(oscillate_after=3, oscillate_low=0.0)
  np.testing.assert_array_equal(never, plain)
  nowhere = sample(guidance_interval=(0.4, 0.5), oscillate_after=0)
  np.testing.assert_array_equal(nowhere, sample(guidance_scale=1.0))


def test_windows_of_the_last_stage(base_only):
  """Without super-resolution, windows make a video longer than trained."""
  video = make(base_only, [1], num_frames=30, window=16, overlap=2)
  assert video.shape == (1, 30, 16, 16, 3)


def test_thresholds_are_of_whole_clips(pipeline, monkeypatch):
  """Not of the windows of frames and pixels that the network sees."""
  seen = set()

  def watched(denoiser, *args):
    thresholded = threshold(denoiser, *args)

    def watch(z, log_snr, cond):
      seen.add(z.shape)
      return thresholded(z, log_snr, cond)

    return watch

  def trace(*arguments, program):
    run = functools.partial(stage_sampler.run_chunk, program=program)
    return jax.eval_shape(run, *arguments) and arguments[1]

  monkeypatch.setattr(stage_sampler, "threshold", watched)
  monkeypatch.setattr(stage_sampler, "jitted_chunk", lambda: trace)
  monkeypatch.setattr(cascade, "compile_ahead", lambda *_, **__: None)
  make(pipeline, [1], num_frames=12, size=(32, 48), steps=1)
  assert seen == {(1, 12, 16, 24, 3), (1, 12, 32, 48, 3)}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"num_frames": 15}, "num_frames=15 is not a multiple of 2.*14 or 16"),
    ({"window": 18}, "window of 18 frames is longer than the video of 16"),
    ({"window": 8, "overlap": 8}, "overlap of 8 frames does not fit"),
    ({"window": 7}, "window of 7 frames is not a multiple"),
    ({"sampler": "euler"}, "sampler='euler' is not one of ddpm, ddim"),
    ({"steps": 0}, "steps=0"),
    ({"guidance_rescale": 1.5}, "guidance_rescale=1.5 must be"),
    ({"guidance_interval": (0.8, 0.2)}, "guidance_interval=0.8,0.2 is not"),
    ({"guidance_interval": (0.0, 1.1)}, "guidance_interval=0,1.1 is not"),
    ({"size": (0, 64)}, "size=0,64 must be at least 1,1"),
    ({"oscillate_after": -2}, "oscillate_after=-2 must be at least -1"),
    ({"oscillate_low": -1.0}, "oscillate_low=-1.0 must be at least 0"),
    ({"percentile": 1.5}, "percentile=1.5"),
    ({"noise_level": -0.1}, "noise_level=-0.1"),
    ({"max_value": 0.5}, "max_value=0.5"),
    ({"num_frames": 2**21}, "clip of .* values .* exceeds the 2147483647"),
    ({"num_frames": -4}, "num_frames=-4 must be at least 0"),
  ],
)
def test_settings_that_do_not_fit(pipeline, changes, words):
  with pytest.raises(UserError, match=words):
    make(pipeline, [1], **changes)


def test_conditional_stages_without_given_pixels_do_as_the_others(pipeline):
  """The same weights and some on the given pixels: the same video."""
  given = {}
  for slot, experiment in (
    ("conditional", conditional.TINY),
    ("ssr", conditional.SSR_TINY),
  ):
    stage = random_stage(experiment)
    of_pixels = stage.params["cond_in/kernel"]
    base_slot = "base" if slot == "conditional" else slot
    params = pipeline.stages[base_slot].params
    given[slot] = Stage(
      config=stage.config, params={**params, "cond_in/kernel": of_pixels}
    )
  other = Pipeline(pipeline.text, pair(given))
  videos = [make(p, [1], steps=2).astype(int) for p in (pipeline, other)]
  assert np.abs(videos[0] - videos[1]).max() <= 1


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_an_image_stage_makes_a_picture(pipeline, sampler):
  """Where there is no base, the text-to-image stage stands in for it."""
  image = Pipeline(pipeline.text, pair({"t2i": random_stage(t2i.TINY)}))
  settings = dataclasses.replace(SHORT, num_frames=0, sampler=sampler)
  video = image.text_to_video([PROMPT], seed=[1], settings=settings)
  assert video.shape == (1, 1, 16, 16, 3)
  assert video.std() > 1


def test_too_many_steps_of_a_later_stage_are_an_error_before_sampling(pipeline):
  discrete = replace(ssr.TINY, diffusion={"schedule": "squaredcos_cap_v2"})
  stages = pipeline.stages | {"ssr": random_stage(discrete)}
  started = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cascade, "sample_stage", lambda *args: started.append(args))
    with pytest.raises(UserError, match="steps=2000 is more than the 1000"):
      many = {"ssr_steps": 2000, "ssr_grid": "schedule"}
      make(Pipeline(pipeline.text, stages), [1], **many)
  assert not started


def test_each_prompt_needs_a_seed(pipeline):
  with pytest.raises(UserError, match="2 prompts and 1 seeds"):
    pipeline.sample([PROMPT] * 2, seed=[1], settings=SHORT)


def test_empty_prompts(pipeline):
  for prompt in ("", "  \n"):
    with pytest.raises(UserError, match="prompt is empty"):
      pipeline.text_to_video([prompt], seed=[1], settings=SHORT)


def test_stages_that_do_not_fit_each_other(pipeline):
  stage = pipeline.stages["ssr"]
  video = dataclasses.replace(stage.config.video, resolution=(64, 64))
  other = dataclasses.replace(
    stage, config=dataclasses.replace(stage.config, video=video)
  )
  with pytest.raises(UserError, match="use stages trained for each other"):
    pair({"base": pipeline.stages["base"], "ssr": other})
  with pytest.raises(UserError, match="sampling needs a base"):
    pair({"ssr": stage})
