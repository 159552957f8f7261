"""From what a user names to the page that is served."""

from collections.abc import Sequence
import dataclasses
import os

from lumiere_jax.contrib.web.options import Options
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.batch import ModelSource
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.styles import read_style
from lumiere_jax.storage.bundle import find


def start(
  source: ModelSource,
  options: Options,
  *,
  host: str,
  port: int,
  names: Sequence[str] = (),
  root_path: str = "",
) -> None:
  """Serves the page until it is interrupted.

  Args:
    source: what to load.
    options: of the page; files of the source and of styles are added to its
      secrets.
    host, port, names, root_path: see `server.serve`.

  Raises:
    UserError: Gradio is not there, a flag, a bundle or a style cannot be used,
      or the address cannot be listened to.
  """
  source.check()
  for path in options.styles.values():
    read_style(path)
  if root_path and (root_path[0] != "/" or root_path[-1] == "/"):
    raise UserError(
      option("root_path", root_path), "must begin with / and not end with it"
    )
  serve = _server()
  bundles = (find(path, option("model")) for path in source.models)
  blended = (*source.adapters, *options.styles.values())
  places = (path.rpartition("=")[2] for path in blended)  # of STAGE=PATH
  secret = (*source.models, *map(os.fspath, bundles), *places)
  options = dataclasses.replace(options, secret=(*options.secret, *secret))
  serve(
    lambda: _load(source, options),
    options,
    host=host,
    port=port,
    names=names,
    root_path=root_path,
  )


def _load(source: ModelSource, options: Options) -> Pipeline:
  pipeline = source.load()
  for path in options.styles.values():
    pipeline.styled(path, 0.0)  # takes no time, and says if it does not fit
  return pipeline


def _server():
  """`server.serve`, which needs packages that the rest does not."""
  try:
    from lumiere_jax.contrib.web.server import serve
  except ModuleNotFoundError as error:
    raise UserError(
      "",
      f"the page needs {error.name}, which is not installed: pip "
      "install -r requirements-app.txt",
    ) from error
  return serve
