"""Settings that must stand before JAX is imported, here and in subprocesses.

Nearly all the time of the suite is compilation of small programs. LLVM's
optimisations halve its speed and are of no use to programs that run twice, and
what one test compiled another, or a process it starts, need not.
"""

import os
import pathlib

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache"
for _name, _value in {
  "XLA_FLAGS": "--xla_backend_optimization_level=0",
  "JAX_COMPILATION_CACHE_DIR": str(_CACHE / "compiled"),
  "XDG_CACHE_HOME": str(_CACHE / "user"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}.items():
  os.environ.setdefault(_name, _value)
