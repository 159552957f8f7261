"""Serves a web page that generates videos and pictures.

python -m lumiere_jax.app --model=BUNDLE

It needs more packages: pip install -r requirements-app.txt. docs/app.md says
what the server protects and what it does not.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.contrib.web.options import (
  Address,
  Limits,
  Options,
  Source,
  parse_styles,
)
from lumiere_jax.contrib.web.server import start
from lumiere_jax.flags import MeshParser, fields_of

MODEL = flags.DEFINE_multi_string(
  "model",
  [],
  "Bundle, workdir of a run, or name on the Hugging Face hub; repeat it to add "
  "missing stages: base, conditional, super-resolution, text encoder.",
)


ADAPTER = flags.DEFINE_multi_string(
  "adapter", [], "Low-rank adapter; STAGE=PATH names the stage it is for."
)


ADAPTER_SCALE = flags.DEFINE_float(
  "adapter_scale", 1.0, "Weight of the adapters; 1 is as trained."
)


MESH = flags.DEFINE(
  MeshParser(),
  "mesh",
  None,
  "DATA,FSDP,SPACE: mesh of this machine's devices; default: one device.",
)


STYLE = flags.DEFINE_multi_string(
  "style", [], "NAME=PATH of a style to offer; repeat it for more."
)


HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "Address to listen on; 0.0.0.0: all interfaces."
)


PORT = flags.DEFINE_integer(
  "port",
  7860,
  "Port to listen on; 0: any free port.",
  lower_bound=0,
  upper_bound=65535,
)


NAME = flags.DEFINE_multi_string(
  "name", [], "Host name of a reverse proxy; repeat it for more."
)


ROOT_PATH = flags.DEFINE_string(
  "root_path", "", "Path prefix that a reverse proxy strips: /lumiere."
)


QUEUE = flags.DEFINE_integer("queue", Options.queue, "Jobs that may wait.")


JOBS = flags.DEFINE_integer(
  "jobs", Options.jobs, "Jobs that are sampled at the same time."
)


LIMITS = {
  "max_side": flags.DEFINE_integer(
    "max_side",
    Limits.max_side,
    "Pixels per side of uploads and results.",
  ),
  "max_seconds": flags.DEFINE_float(
    "max_seconds", Limits.max_seconds, "Length of uploads and results."
  ),
  "max_mb": flags.DEFINE_float(
    "max_mb", Limits.max_mb, "Megabytes of an uploaded file."
  ),
  "max_mpixels": flags.DEFINE_float(
    "max_mpixels",
    Limits.max_mpixels,
    "Megapixels over all frames of a video that is read or generated.",
  ),
  "max_steps": flags.DEFINE_integer(
    "max_steps", Limits.max_steps, "Sampling steps per stage."
  ),
}


def main(argv: list[str]) -> None:
  """Serves the page with the options in the flags."""
  del argv
  source = Source(
    models=tuple(MODEL.value),
    adapters=tuple(ADAPTER.value),
    adapter_scale=ADAPTER_SCALE.value,
    mesh=MESH.value,
  )
  options = Options(
    limits=fields_of(Limits, LIMITS),
    styles=parse_styles(STYLE.value),
    queue=QUEUE.value,
    jobs=JOBS.value,
  )
  address = Address(
    host=HOST.value,
    port=PORT.value,
    names=tuple(NAME.value),
    root_path=ROOT_PATH.value,
  )
  start(source, options, address)


if __name__ == "__main__":
  cli.run(main)
