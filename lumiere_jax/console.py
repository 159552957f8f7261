"""The installed commands: `lumiere-train` is python -m lumiere_jax.main, etc.

`runpy` runs the module as `python -m` does, so --help and errors are the same.
"""

from collections.abc import Callable
import runpy


def _command(module: str) -> Callable[[], None]:
  def run() -> None:
    name = f"lumiere_jax.{module}"
    runpy.run_module(name, run_name="__main__", alter_sys=True)

  return run


train = _command("main")
sample = _command("sample")
evaluate = _command("evaluate")
convert = _command("convert")
prepare = _command("prepare")
plan = _command("plan")
app = _command("app")
