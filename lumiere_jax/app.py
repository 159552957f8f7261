"""Serves a web page that makes videos and pictures from bundles.

python -m lumiere_jax.app --model=BUNDLE

It needs packages of its own: pip install -r requirements-app.txt. See
docs/app.md for what it lets in and for what it does not protect from.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.contrib.web.options import Limits, Options, parse_styles
from lumiere_jax.contrib.web.start import Source, start
from lumiere_jax.flags import MeshParser, fields_of

MODEL = flags.DEFINE_multi_string(
  "model",
  [],
  "Bundle, workdir of a run, or name on the Hugging Face hub; give it again to "
  "add what is lacking: base, conditional, super-resolution, text encoder.",
)


ADAPTER = flags.DEFINE_multi_string(
  "adapter", [], "Low-rank adapter; STAGE=PATH says which stage it is for."
)


ADAPTER_SCALE = flags.DEFINE_float(
  "adapter_scale", 1.0, "How much of the adapters; 1 is as trained."
)


MESH = flags.DEFINE(
  MeshParser(),
  "mesh",
  None,
  "DATA,FSDP,SPACE: devices of this machine that share the work; default: one.",
)


STYLE = flags.DEFINE_multi_string(
  "style", [], "NAME=PATH of a style to offer; give it again for another."
)


HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "Address to listen to; 0.0.0.0: all of the machine's."
)


PORT = flags.DEFINE_integer(
  "port",
  7860,
  "Port to listen to; 0: any that is free.",
  lower_bound=0,
  upper_bound=65535,
)


NAME = flags.DEFINE_multi_string(
  "name", [], "Name that a reverse proxy is asked for; give it again for more."
)


ROOT_PATH = flags.DEFINE_string(
  "root_path", "", "What a reverse proxy has before the paths: /lumiere."
)


QUEUE = flags.DEFINE_integer("queue", Options.queue, "Jobs that may wait.")


JOBS = flags.DEFINE_integer(
  "jobs", Options.jobs, "Jobs that are sampled at a time."
)


LIMITS = {
  "max_side": flags.DEFINE_integer(
    "max_side",
    Limits.max_side,
    "Pixels of a side, of what is uploaded or made.",
  ),
  "max_seconds": flags.DEFINE_float(
    "max_seconds", Limits.max_seconds, "Length of what is uploaded or made."
  ),
  "max_mb": flags.DEFINE_float(
    "max_mb", Limits.max_mb, "Megabytes of an uploaded file."
  ),
  "max_mpixels": flags.DEFINE_float(
    "max_mpixels",
    Limits.max_mpixels,
    "Millions of pixels in all frames of a video, read or made.",
  ),
  "max_steps": flags.DEFINE_integer(
    "max_steps", Limits.max_steps, "Sampling steps of a stage."
  ),
}


def main(argv: list[str]) -> None:
  """Reads the flags and serves the page."""
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
  start(
    source,
    options,
    host=HOST.value,
    port=PORT.value,
    names=NAME.value,
    root_path=ROOT_PATH.value,
  )


if __name__ == "__main__":
  cli.run(main)
