"""Serves the web page: checks the options, loads the pipeline, listens."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import importlib
import os
from pathlib import Path
import signal
import socket
import sys
import tempfile
import types

from lumiere_jax.contrib.web.jobs import JobQueue
from lumiere_jax.contrib.web.middleware import allowed_hosts
from lumiere_jax.contrib.web.options import Address, Options
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.batch import ModelSource
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.styles import read_style
from lumiere_jax.storage.bundle import find

_SHUTDOWN_TIMEOUT_S = 3


def start(source: ModelSource, options: Options, address: Address) -> None:
  """Checks the options, then serves the page until Ctrl-C or SIGTERM.

  The files of the pipeline and of the styles are added to `options.secret`.
  """
  source.check()
  for path in options.styles.values():
    read_style(path)
  _import_page()  # before a bundle is downloaded
  bundles = (find(path, option("model")) for path in source.models)
  blended = (*source.adapters, *options.styles.values())
  paths = (path.rpartition("=")[2] for path in blended)  # of STAGE=PATH
  secret = (*source.models, *map(os.fspath, bundles), *paths)
  options = dataclasses.replace(options, secret=(*options.secret, *secret))
  serve(lambda: _load(source, options), options, address)


def _load(source: ModelSource, options: Options) -> Pipeline:
  pipeline = source.load()
  for path in options.styles.values():
    pipeline.styled(path, 0.0)  # raises if the style does not fit
  return pipeline


def serve(
  load: Callable[[], Pipeline], options: Options, address: Address
) -> None:
  """Serves the page until Ctrl-C or SIGTERM.

  `load` returns the pipeline; it is called once the port is bound.
  """
  page = _import_page()
  import uvicorn  # which Gradio depends on

  host, root_path = address.host, address.root_path
  with (
    _exit_on(signal.SIGTERM),
    _bound_socket(host, address.port) as listener,
    temporary_queue(options) as queue,
  ):
    app = page.application(
      page.build(load(), options, queue),
      options,
      names=allowed_hosts(host, address.names),
      root_path=root_path,
    )
    listener.listen()  # before the URL is printed: clients may connect at once
    shown = f"[{host}]" if ":" in host else host
    port = listener.getsockname()[1]
    print(f"http://{shown}:{port}{root_path}/ (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(
      app,
      log_level="warning",
      timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
      ws="none",
    )
    with contextlib.suppress(KeyboardInterrupt):
      uvicorn.Server(config).run(sockets=[listener])


def _import_page() -> types.ModuleType:
  """Imports the page, which needs packages that the rest does not."""
  try:
    return importlib.import_module("lumiere_jax.contrib.web.page")
  except ModuleNotFoundError as error:
    raise UserError(
      "The web page",
      f"needs {error.name}, which is not installed",
      "run pip install -r requirements-app.txt",
    ) from error


@contextlib.contextmanager
def temporary_queue(options: Options) -> Iterator[JobQueue]:
  """A queue in a temporary folder that only this user can read."""
  with tempfile.TemporaryDirectory(
    prefix="lumiere_app_", ignore_cleanup_errors=True
  ) as folder:
    queue = JobQueue(Path(folder).resolve(), options.capacity)
    try:
      yield queue
    finally:
      queue.close()


@contextlib.contextmanager
def _exit_on(number: int) -> Iterator[None]:
  """Turns a signal into SystemExit, so that context managers clean up."""
  previous = signal.signal(number, lambda *_: sys.exit(0))
  try:
    yield
  finally:
    signal.signal(number, previous)


@contextlib.contextmanager
def _bound_socket(host: str, port: int) -> Iterator[socket.socket]:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind((host, port))
    except (OSError, OverflowError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UserError(
        f"{option('host', host)} {option('port', port)}",
        f"cannot be used: {reason}",
        f"give another {option('port')}",
      ) from error
    yield listener
