"""A small DeepFloyd IF cascade, to run in diffusers and here on equal noise."""

from pathlib import Path

import jax
import numpy as np

from lumiere_jax.diffusion.noise import INITIAL, frame_noise, sample_keys
from lumiere_jax.models.t5 import T5Config, init_params
from lumiere_jax.models.tokenizer import Tokenizer, default_tokenizer_path
from tests.references import unets
from tests.references.t5 import params_to_hf

FOLDER = Path(__file__).parent / "trajectories"
PROMPTS = ["A small red circle moves left", "blue star"]
SEEDS = [3, 4]
STEPS = 10
SCALES = {"IF-I": 7.0, "IF-II": 4.0}

NOISE_LEVEL = 250
"""Step of the noise on the low-resolution input of the second stage."""

STAGES = {
  "IF-I": unets.IF_I | {"sample_size": 8},
  "IF-II": unets.IF_II | {"sample_size": 32},
}

SCHEDULER = {
  "_class_name": "DDPMScheduler",
  "beta_schedule": "squaredcos_cap_v2",
  "clip_sample": True,
  "dynamic_thresholding_ratio": 0.95,
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "thresholding": True,
  "variance_type": "learned_range",
}

SCHEDULERS = {
  "IF-I": SCHEDULER | {"sample_max_value": 1.5},
  "IF-II": SCHEDULER | {"sample_max_value": 1.0},
}

T5 = T5Config(
  vocab_size=1024, d_model=48, d_ff=96, num_heads=4, d_kv=12, num_layers=2
)


def tokens(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask (b, 77) of texts as IF tokenizes them."""
  return Tokenizer(default_tokenizer_path(), 77).encode(texts)


def t5_tensors() -> dict[str, np.ndarray]:
  """The encoder's weights, under Hugging Face names."""
  return params_to_hf(init_params(T5))


def noises(stage: str) -> list[np.ndarray]:
  """The noise that a pipeline of diffusers draws, in order: (b, h, w, 3) each.

  The initial z; for the second stage the noise on its low-resolution input;
  then one for each step except the last.
  """
  number = list(STAGES).index(stage)
  side = STAGES[stage]["sample_size"]
  keys = sample_keys(SEEDS, stream=number)
  draw = lambda keys, step: frame_noise(keys, step, 1, (side, side, 3))[:, 0]
  drawn = [draw(keys, INITIAL)]
  if number:
    low_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, INITIAL)
    drawn.append(draw(low_keys, INITIAL))
  drawn += [draw(keys, step) for step in range(STEPS - 1)]
  return [np.asarray(noise) for noise in drawn]
