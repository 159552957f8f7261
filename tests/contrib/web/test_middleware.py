"""Requests that are let through to Gradio, and those that are not."""

import asyncio

import pytest

from lumiere_jax.contrib.web.middleware import LOOPBACK, ClosedRoutes, names_for

FILE = "/gradio_api/file="


def ask(
  path,
  method="GET",
  *,
  headers=(),
  body=(b"",),
  names=LOOPBACK,
  host="127.0.0.1:7860",
):
  """(status, headers, what the application behind has read) of a request."""
  sent, read = [], []

  async def behind(scope, receive, send):
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

  all_headers = {"host": host} | dict(headers)
  scope = {
    "type": "http",
    "method": method,
    "path": path,
    "headers": [(k.encode(), v.encode()) for k, v in all_headers.items()],
  }
  guard = ClosedRoutes(app=behind, names=names, max_bytes=2_000_000)
  asyncio.run(guard(scope, receive, send))
  return sent[0]["status"], dict(sent[0]["headers"]), b"".join(read)


@pytest.mark.parametrize(
  ("method", "path"),
  [
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/assets/index.js"),
    ("GET", "/static/fonts/x.woff2"),
    ("GET", "/gradio_api/queue/data"),
    ("GET", "/gradio_api/heartbeat/abc123"),
    ("GET", f"{FILE}/tmp/lumiere_app_x/a video.mp4"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/cancel"),
  ],
)
def test_what_the_page_asks_for(method, path):
  status, headers, _ = ask(path, method)
  assert status == 200
  policy = headers[b"content-security-policy"].decode()
  assert policy.startswith("default-src 'self';")
  assert "http" not in policy  # nothing comes from elsewhere
  assert headers[b"referrer-policy"] == b"same-origin"
  assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
  ("method", "path"),
  [
    ("GET", "/gradio_api/proxy=https://example.org/"),
    ("GET", "/gradio_api/file/etc/passwd"),
    ("GET", "/gradio_api/run-history/buckets"),
    ("POST", "/gradio_api/run-history/connect"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/gradio_api/deep_link"),
    ("GET", "/gradio_api/stream/a/1/2/playlist.m3u8"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"),
    ("GET", "/monitoring"),
    ("GET", "/gradio_api/token"),
    ("POST", "/login"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/queue/join"),
    ("DELETE", "/"),
    ("POST", "/"),
    ("GET", "//"),
    ("GET", "/gradio_api/queue/data/../../monitoring"),
  ],
)
def test_what_it_never_asks_for(method, path):
  assert ask(path, method)[0] == 404


@pytest.mark.parametrize(
  "file",
  [
    "https://example.org/x.png",
    "http:/example.org",
    "etc/passwd",
    "/tmp/lumiere_app_x/../../etc/passwd",
    "/tmp/lumiere_app_x/%2e%2e/%2e%2e/etc/passwd",
    "/tmp/lumiere_app_x/%252e%252e/etc/passwd",
    "/tmp/..\\..\\etc",
    "/tmp/x\0.mp4",
    "file:///etc/passwd",
  ],
)
def test_files_that_are_no_plain_path(file):
  assert ask(FILE + file)[0] == 403


def test_names_of_the_web_that_point_here_are_refused():
  assert ask("/", host="evil.example.org:7860")[0] == 421
  assert ask("/", host="")[0] == 421
  assert ask("/", host="[")[0] == 421
  for host in ("localhost:1", "[::1]:7860", "LOCALHOST"):
    assert ask("/", host=host)[0] == 200
  named = names_for("127.0.0.1", ["Video.example.org"])
  assert ask("/", host="video.example.org", names=named)[0] == 200
  assert ask("/", host="evil.example.org", names=named)[0] == 421
  everyone = names_for("0.0.0.0", [])
  assert ask("/", host="anything", names=everyone)[0] == 200
  some = names_for("0.0.0.0", ["video.example.org"])
  assert ask("/", host="anything", names=some)[0] == 421


def test_other_pages_cannot_ask():
  def posted(origin, **rest):
    headers = {"origin": origin}
    return ask("/gradio_api/upload", "POST", headers=headers, **rest)[0]

  assert posted("http://127.0.0.1:7860") == 200
  assert posted("http://evil.example.org") == 403
  assert posted("null") == 403
  named = names_for("127.0.0.1", ["video.example.org"])
  assert posted("https://video.example.org", names=named) == 200


def test_bodies_are_limited_whether_they_say_so_or_not():
  large = {"content-length": "5000000"}
  join = "/gradio_api/queue/join"
  assert ask(join, "POST", headers=large)[0] == 413
  assert ask(join, "POST", headers={"content-length": "x"})[0] == 413
  chunks = (bytes(1_500_000),) * 3 + (b"",)
  status, _, read = ask(join, "POST", body=chunks)
  assert (status, len(read)) == (413, 3_000_000)
  upload = "/gradio_api/upload"
  assert ask(upload, "POST", body=(bytes(2_900_000), b""))[0] == 200
  assert ask(upload, "POST", body=(bytes(3_000_001), b""))[0] == 413
