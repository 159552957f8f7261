"""T5 encoder weights in whichever form they are published."""

import os

import numpy as np

from lumiere_jax.io.lazy import Lazy
from lumiere_jax.models.inflate import unflatten
from lumiere_jax.models.t5 import T5Config
from lumiere_jax.models.t5_hf import open_hf
from lumiere_jax.models.t5x import is_t5x, open_t5x
from lumiere_jax.typing import Params


def open_t5(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, dict[str, Lazy]]:
  """An encoder whose arrays are read when they are asked for.

  Args:
    source: a folder or file of safetensors with config.json (Hugging Face), or
      the folder or msgpack file of a T5X checkpoint.
    dtype: "float32" or "bfloat16", what the weights are converted to.

  Returns:
    The config, and the leaves of `T5Encoder(config)` by path.

  Raises:
    UserError: files are missing, broken, or not a T5 v1.1 encoder.
  """
  return (open_t5x if is_t5x(source) else open_hf)(source, dtype)


def load_t5(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, Params]:
  """Reads what `open_t5` opens, one array at a time.

  Raises:
    UserError: files are missing, broken, or not a T5 v1.1 encoder.
  """
  config, leaves = open_t5(source, dtype)
  return config, unflatten({k: np.asarray(x) for k, x in leaves.items()})
