"""Requests that the middleware passes to Gradio, and those that it blocks."""

import asyncio

import pytest

from lumiere_jax.contrib.web.middleware import (
  LOOPBACK,
  ClosedRoutes,
  allowed_hosts,
)

FILE = "/gradio_api/file="
UPLOAD = "/gradio_api/upload"
JOIN = "/gradio_api/queue/join"


def ask(path, method="GET", *, body=(b"",), names=LOOPBACK, **headers):
  """(status, headers, what the application behind has read) of a request."""
  sent, read = [], []

  async def app(scope, receive, send):
    more = True
    while more:
      message = await receive()
      read.append(message["body"])
      more = message.get("more_body", False)
    start = {"type": "http.response.start", "status": 200}
    await send(start | {"headers": [(b"referrer-policy", b"unsafe-url")]})
    await send({"type": "http.response.body", "body": b"ok"})

  chunks = iter(body)

  async def receive():
    chunk = next(chunks)
    return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

  async def send(message):
    sent.append(message)

  headers = {"host": "127.0.0.1:7860"} | headers
  scope = {
    "type": "http",
    "method": method,
    "path": path,
    "headers": [
      (k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()
    ],
  }
  closed = ClosedRoutes(app=app, names=names, max_bytes=2_000_000)
  asyncio.run(closed(scope, receive, send))
  return sent[0]["status"], dict(sent[0]["headers"]), b"".join(read)


@pytest.mark.parametrize(
  "request_",
  [
    *("GET /", "HEAD /", "GET /assets/index.js", "GET /static/fonts/x.woff2"),
    *("GET /gradio_api/queue/data", "GET /gradio_api/heartbeat/abc123"),
    f"GET {FILE}/tmp/lumiere_app_x/a video.mp4",
    *(f"POST {JOIN}", f"POST {UPLOAD}", "POST /gradio_api/cancel"),
  ],
)
def test_requests_of_the_page(request_):
  method, _, path = request_.partition(" ")
  status, headers, _ = ask(path, method)
  assert status == 200
  policy = headers[b"content-security-policy"].decode()
  assert policy.startswith("default-src 'self';")
  assert "http" not in policy  # no other host
  assert headers[b"referrer-policy"] == b"same-origin"
  assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
  "request_",
  [
    "GET /gradio_api/proxy=https://example.org/",
    *("GET /gradio_api/file/etc/passwd", "GET /gradio_api/deep_link"),
    *("GET /gradio_api/run-history/buckets", "GET /gradio_api/runs"),
    "POST /gradio_api/run-history/connect",
    "GET /gradio_api/stream/a/1/2/playlist.m3u8",
    *("POST /gradio_api/process_recording", "POST /gradio_api/vibe-edit"),
    *("GET /monitoring", "GET /gradio_api/token", "POST /login"),
    *("GET /gradio_api/openapi.json", "GET /gradio_api/queue/join"),
    *("DELETE /", "POST /", "GET //"),
    "GET /gradio_api/queue/data/../../monitoring",
  ],
)
def test_other_requests(request_):
  method, _, path = request_.partition(" ")
  assert ask(path, method)[0] == 404


@pytest.mark.parametrize(
  "file",
  [
    *("https://example.org/x.png", "http:/example.org", "file:///etc/passwd"),
    *("etc/passwd", "/tmp/lumiere_app_x/../../etc/passwd"),
    "/tmp/lumiere_app_x/%2e%2e/%2e%2e/etc/passwd",
    "/tmp/lumiere_app_x/%252e%252e/etc/passwd",
    *("/tmp/..\\..\\etc", "/tmp/x\0.mp4"),
  ],
)
def test_unsafe_file_paths(file):
  assert ask(FILE + file)[0] == 403


NAMED = allowed_hosts("127.0.0.1", ["Video.example.org"])
PUBLIC = allowed_hosts("0.0.0.0", ["video.example.org"])


@pytest.mark.parametrize(
  ("names", "headers", "status"),
  [
    (LOOPBACK, {"host": "evil.example.org:7860"}, 421),
    (LOOPBACK, {"host": ""}, 421),
    (LOOPBACK, {"host": "["}, 421),
    (LOOPBACK, {"host": "localhost:1"}, 200),
    (LOOPBACK, {"host": "[::1]:7860"}, 200),
    (LOOPBACK, {"host": "LOCALHOST"}, 200),
    (NAMED, {"host": "video.example.org"}, 200),
    (NAMED, {"host": "evil.example.org"}, 421),
    (allowed_hosts("0.0.0.0", []), {"host": "anything"}, 200),
    (PUBLIC, {"host": "anything"}, 421),
    (PUBLIC, {"host": "0.0.0.0:7860"}, 200),
    (LOOPBACK, {"origin": "http://127.0.0.1:7860"}, 200),
    (LOOPBACK, {"origin": "http://evil.example.org"}, 403),
    (LOOPBACK, {"origin": "null"}, 403),
    (LOOPBACK, {"origin": "http://["}, 403),
    (NAMED, {"origin": "https://video.example.org"}, 200),
  ],
)
def test_hosts_and_origins(names, headers, status):
  assert ask(UPLOAD, "POST", names=names, **headers)[0] == status


@pytest.mark.parametrize("length", ["5000000", "x"])
def test_stated_body_lengths(length):
  assert ask(JOIN, "POST", content_length=length)[0] == 413


def test_counted_body_lengths():
  chunks = (bytes(1_500_000),) * 3 + (b"",)
  status, _, read = ask(JOIN, "POST", body=chunks)
  assert (status, len(read)) == (413, 3_000_000)
  assert ask(UPLOAD, "POST", body=(bytes(2_900_000), b""))[0] == 200
  assert ask(UPLOAD, "POST", body=(bytes(3_000_001), b""))[0] == 413
