"""The smallest experiments as a config file, for the command line."""

from configs import common
from tests.conftest import replace
from tests.training.conftest import BASE, T2I


def get_config(size: str):
  evaluated = replace(BASE, train={"eval_clips": 2})
  return common.choose(size, {"t2i": T2I, "base": evaluated})
