"""The least experiments as a config file, for the real command to run."""

from configs import common
from tests.training.conftest import BASE, T2I


def get_config(size: str):
  return common.choose(size, {"t2i": T2I, "base": BASE})
