"""The page on a port, from a private folder, until it is interrupted."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import ipaddress
import os
from pathlib import Path
import shutil
import signal
import socket
import sys
import tempfile

import fastapi
import gradio as gr
import uvicorn

from lumiere_jax.contrib.web.jobs import JobQueue
from lumiere_jax.contrib.web.middleware import ClosedRoutes, names_for
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.page import CSS, build
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.pipeline import Pipeline

_PATIENCE_S = 3  # That open connections are waited for at the end.


def serve(
  load: Callable[[], Pipeline],
  options: Options,
  *,
  host: str = "127.0.0.1",
  port: int = 7860,
  names: Iterable[str] = (),
  root_path: str = "",
) -> None:
  """Loads a pipeline once and serves the page until Ctrl-C or SIGTERM.

  Args:
    load: gives the pipeline, once it is sure that the port is free.
    options: what the page lets in, and offers.
    host: address to listen to.
    port: 0: any that is free.
    names: other names that it is asked for, as by a proxy before it.
    root_path: what a proxy has put before the paths, such as '/lumiere'.

  Raises:
    UserError: the address cannot be listened to, or `load` raises it.
  """
  with (
    _ended_by(signal.SIGTERM),
    _listening(host, port) as listener,
    private_desk(options) as desk,
  ):
    page = build(load(), options, desk)
    app = application(
      page, options, names=names_for(host, names), root_path=root_path
    )
    listener.listen()  # who reads the address may come at once
    shown = f"[{host}]" if ":" in host else host
    port = listener.getsockname()[1]
    print(f"http://{shown}:{port}{root_path}/ (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(
      app,
      log_level="warning",
      timeout_graceful_shutdown=_PATIENCE_S,
      ws="none",
    )
    with contextlib.suppress(KeyboardInterrupt):
      uvicorn.Server(config).run(sockets=[listener])


def application(
  page: gr.Blocks,
  options: Options,
  *,
  names: frozenset[str] = frozenset(),
  root_path: str = "",
) -> ClosedRoutes:
  """The page as an ASGI application, guarded.

  Args:
    page: see `build`.
    options: it was built with.
    names: see `Guard`.
    root_path: see `serve`.
  """
  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
  bytes_ = int(options.limits.max_mb * 1e6)
  gr.mount_gradio_app(
    app,
    page,
    path="/",
    allowed_paths=[],
    blocked_paths=[os.path.realpath(path) for path in options.secret],
    show_error=False,
    max_file_size=bytes_,
    footer_links=[],
    run_history=False,
    enable_monitoring=False,
    ssr_mode=False,
    pwa=False,
    mcp_server=False,
    root_path=root_path or None,
    theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),
    css=CSS,
  )
  # Gradio holds the files that requests name against its folder only if it
  # takes itself for launched, as it does not where it is mounted.
  page.has_launched = page.is_running = True
  return ClosedRoutes(app=app, names=names, max_bytes=bytes_)


@contextlib.contextmanager
def private_desk(options: Options) -> Iterator[JobQueue]:
  """A desk with a folder that no other user can read; gone afterwards."""
  folder = Path(tempfile.mkdtemp(prefix="lumiere_app_")).resolve()
  desk = JobQueue(folder, options.queue + options.jobs)
  try:
    yield desk
  finally:
    desk.close()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ended_by(number: int) -> Iterator[None]:
  """A signal that would end the process at once lets it clean up before."""
  former = signal.signal(number, lambda *_: sys.exit(0))
  try:
    yield
  finally:
    signal.signal(number, former)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
  try:
    version = ipaddress.ip_address(host).version
  except ValueError:
    version = 4  # a name
  family = socket.AF_INET6 if version == 6 else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind((host, port))
    except (OSError, OverflowError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UserError(
        option("host", host),
        f"{option('port')}={port} cannot be listened to: {reason}",
        f"give another {option('port')}",
      ) from error
    yield listener
