"""What several processes have to be of one mind about."""

import jax
from jax.experimental import multihost_utils
import numpy as np


def is_first() -> bool:
  """Whether this process is the one that writes what is written once."""
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns when every process is here.

  Args:
    what: they are waiting for; a name that no two places share.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def as_the_first_says(value: bool) -> bool:
  """The first process's value; every process has to call."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))
