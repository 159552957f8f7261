"""The smallest experiments as a config file, for the command line."""

from configs import common
from tests.training.conftest import BASE, T2I


def get_config(size: str):
  return common.choose(size, {"t2i": T2I, "base": BASE})
