"""The page on a port of its own, for as long as a test needs it."""

from collections.abc import Iterator
import contextlib
import dataclasses
import http.client
import json
import os
import socket
import threading
import time
from typing import Any
from unittest import mock

import gradio as gr
import uvicorn

from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.web.desk import Desk
from lumiere_jax.web.guard import LOOPBACK
from lumiere_jax.web.options import Options
from lumiere_jax.web.page import build
from lumiere_jax.web.server import application, private_desk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
  """A running page.

  Attributes:
    port: of this machine.
    desk: of the page.
    page: what was built.
  """

  port: int
  desk: Desk
  page: gr.Blocks

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}/"

  def ask(self, path: str, body: Any = None, headers=None) -> tuple[int, bytes]:
    """(status, answer); the path goes over the wire as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers["content-type"] = "application/json"
    method = "GET" if body is None else "POST"
    with contextlib.closing(connection):
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, headers)  # it may not hear all
      answer = connection.getresponse()
      return answer.status, answer.read()

  def call(self, name: str, data: list, session: str) -> dict:
    """Calls what is behind a button, as the page does.

    Returns:
      The message that says how it ended.
    """
    (index,) = (k for k, fn in self.page.fns.items() if fn.api_name == name)
    body = {"fn_index": index, "data": data, "session_hash": session}
    status, answer = self.ask("/gradio_api/queue/join", body)
    assert status == 200, answer
    _, stream = self.ask(f"/gradio_api/queue/data?session_hash={session}")
    lines = stream.decode().splitlines()
    told = [json.loads(x[6:]) for x in lines if x.startswith("data: ")]
    (done,) = (x for x in told if x["msg"] == "process_completed")
    return done


@contextlib.contextmanager
def served(pipeline: Pipeline, options: Options) -> Iterator[Served]:
  """Serves a pipeline in this process; pages may be nested."""
  with (
    mock.patch.dict(os.environ),  # where Gradio finds its folder
    private_desk(options) as desk,
    socket.socket() as listener,
  ):
    listener.bind(("127.0.0.1", 0))
    page = build(pipeline, options, desk)
    config = uvicorn.Config(
      application(page, options, names=LOOPBACK),
      log_level="warning",
      timeout_graceful_shutdown=1,
      ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
      while not server.started:
        time.sleep(0.05)
        assert thread.is_alive()
      yield Served(port=listener.getsockname()[1], desk=desk, page=page)
    finally:
      desk.close()
      server.should_exit = True
      thread.join(30)
