"""Settings that must stand before JAX is imported, here and in subprocesses.

Nearly all the time of the suite is compilation of small programs. LLVM's
optimisations halve its speed and are of no use to programs that run twice; the
older emitters of fusions, where there still are any, compile in half the time.
What one test compiled another, or a process it starts, need not.
"""

from importlib.metadata import version
import os
import pathlib

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache"
_FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
  _FLAGS += " --xla_cpu_use_fusion_emitters=false"
  _FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
for _name, _value in {
  "XLA_FLAGS": _FLAGS,
  "JAX_COMPILATION_CACHE_DIR": str(_CACHE / "compiled"),
  "XDG_CACHE_HOME": str(_CACHE / "user"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}.items():
  os.environ.setdefault(_name, _value)
