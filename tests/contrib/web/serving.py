"""Serves the page on a free port during a test."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
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

from lumiere_jax.contrib.web.jobs import JobQueue
from lumiere_jax.contrib.web.middleware import LOOPBACK
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.page import application, build
from lumiere_jax.contrib.web.server import temporary_queue
from lumiere_jax.inference.pipeline import Pipeline

FILE = "/gradio_api/file="
SESSION = "abc123"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """A served page, and the HTTP requests that a browser would send.

  Attributes:
    queue, page: where this process serves it.
  """

  port: int
  queue: JobQueue | None = None
  page: gr.Blocks | None = None

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}/"

  def ask(self, path: str, body: Any = None, headers=None) -> tuple[int, bytes]:
    """Sends a request, the path as it is, and returns (status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers["content-type"] = "application/json"
    method = "GET" if body is None else "POST"
    with contextlib.closing(connection):
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, headers)  # it may answer early
      answer = connection.getresponse()
      return answer.status, answer.read()

  def call(self, name: str, data: list, session: str) -> dict:
    """Calls a Gradio function and returns its last message."""
    event = self.join(name, data, session)
    events = [x for x in self.events(session) if x.get("event_id") == event]
    (done,) = (x for x in events if x["msg"] == "process_completed")
    return done

  def join(self, name: str, data: list, session: str) -> str:
    """Queues a call and returns its event id."""
    body = {"fn_index": self._dependency(name)["id"], "data": data}
    status, answer = self.ask(
      "/gradio_api/queue/join", body | {"session_hash": session}
    )
    assert status == 200, answer
    return json.loads(answer)["event_id"]

  def events(self, session: str) -> Iterator[dict]:
    """Messages to a session, until all its calls have ended."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    with contextlib.closing(connection):
      path = f"/gradio_api/queue/data?session_hash={session}"
      connection.request("GET", path)
      for line in connection.getresponse():
        if line.startswith(b"data: "):
          yield json.loads(line[6:])

  @functools.cached_property
  def config(self) -> dict:
    """Gradio's description of the page."""
    return json.loads(self.ask("/config")[1])

  def _dependency(self, name: str) -> dict:
    dependencies = self.config["dependencies"]
    return next(x for x in dependencies if x["api_name"] == name)

  def arguments(self, name: str, **values: Any) -> list:
    """Arguments of a function: initial values, replaced by label."""
    props = {x["id"]: x["props"] for x in self.config["components"]}
    inputs = [props[number] for number in self._dependency(name)["inputs"]]
    return [values.get(x["label"], x.get("value")) for x in inputs]


@contextlib.contextmanager
def served(pipeline: Pipeline, options: Options) -> Iterator[Site]:
  """Serves a pipeline in this process; calls may be nested."""
  with (
    mock.patch.dict(os.environ),  # `build` sets Gradio's folder there
    temporary_queue(options) as queue,
    socket.socket() as listener,
  ):
    listener.bind(("127.0.0.1", 0))
    page = build(pipeline, options, queue)
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
      yield Site(port=listener.getsockname()[1], queue=queue, page=page)
    finally:
      queue.close()
      server.should_exit = True
      thread.join(30)
