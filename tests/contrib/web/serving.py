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

from lumiere_jax.contrib.web.jobs import JobQueue
from lumiere_jax.contrib.web.middleware import LOOPBACK
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.page import build
from lumiere_jax.contrib.web.server import application, private_desk
from lumiere_jax.inference.pipeline import Pipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """A page that is served.

  Attributes:
    port: of this machine.
  """

  port: int

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
    event = self.join(name, data, session)
    told = [x for x in self.hear(session) if x.get("event_id") == event]
    (done,) = (x for x in told if x["msg"] == "process_completed")
    return done

  def join(self, name: str, data: list, session: str) -> str:
    """Queues a call, without waiting for it.

    Returns:
      What it is known by in what is heard of it.
    """
    body = {"fn_index": self.behind(name)["id"], "data": data}
    status, answer = self.ask(
      "/gradio_api/queue/join", body | {"session_hash": session}
    )
    assert status == 200, answer
    return json.loads(answer)["event_id"]

  def hear(self, session: str) -> Iterator[dict]:
    """What a session is told, until all its calls have ended."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    with contextlib.closing(connection):
      path = f"/gradio_api/queue/data?session_hash={session}"
      connection.request("GET", path)
      for line in connection.getresponse():
        if line.startswith(b"data: "):
          yield json.loads(line[6:])

  def behind(self, name: str) -> dict:
    """What the page knows of a function."""
    config = json.loads(self.ask("/config")[1])
    (found,) = (x for x in config["dependencies"] if x["api_name"] == name)
    return found

  def filled(self, name: str, **values: Any) -> list:
    """What a function takes, as the page first has it, but for some labels."""
    config = json.loads(self.ask("/config")[1])
    parts = {part["id"]: part["props"] for part in config["components"]}
    taken = [parts[number] for number in self.behind(name)["inputs"]]
    return [values.get(part["label"], part.get("value")) for part in taken]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served(Site):
  """A page of this process.

  Attributes:
    desk: of the page.
    page: what was built.
  """

  desk: JobQueue
  page: gr.Blocks


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
