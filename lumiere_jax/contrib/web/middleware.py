"""ASGI middleware that blocks requests the page does not make.

Gradio cannot do this itself: its `auth` guards a login, not routes, and some
routes fetch URLs for the client, show usage statistics or serve saved pages;
its CORS check lets every origin through unless the host is this machine; and
Starlette's TrustedHostMiddleware checks neither origins nor bodies.
"""

from collections.abc import Awaitable, Callable, Iterable
import dataclasses
import re
from typing import Any
from urllib.parse import unquote, urlsplit

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ROUTES = {
  "GET": (
    r"/(config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json)?",
    r"/(assets|static|svelte)/.*",
    r"/gradio_api/(app_id/?|info/?|startup-events|theme\.css|upload_progress)",
    r"/gradio_api/queue/data",
    r"/gradio_api/heartbeat/[\w-]+",
    r"/gradio_api/file=.*",
  ),
  "POST": (
    r"/gradio_api/(queue/join|run/predict|cancel|reset/?|upload)",
    r"/gradio_api/component_server/?",
  ),
}
_UPLOAD_ROUTES = ("/gradio_api/upload", "/gradio_api/component_server")
_MAX_BODY_BYTES = 4_000_000  # of requests other than uploads
_MULTIPART_BYTES = 1_000_000  # allowed in an upload besides its file

# Everything comes from this server. Gradio compiles scripts in the browser, and
# shows pictures and videos before they are uploaded.
_HEADERS = {
  b"content-security-policy": (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' "
    b"blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    b"media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' "
    b"data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri "
    b"'self'; frame-ancestors 'self'; form-action 'self'"
  ),
  b"referrer-policy": b"same-origin",
  b"x-content-type-options": b"nosniff",
}


class _TooLarge(Exception):
  """The body of a request exceeds the limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedRoutes:
  """Passes on the requests that the page makes, and blocks all others.

  Attributes:
    app: the application to protect.
    names: host names to answer to; empty: any.
    max_bytes: of an uploaded file.
  """

  app: App
  names: frozenset[str]
  max_bytes: int

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Implements ASGI."""
    if scope["type"] != "http":
      if scope["type"] == "lifespan":
        await self.app(scope, receive, send)
      return
    refusal = self._refusal(scope)
    if refusal:
      await _respond(send, *refusal)
      return
    started = False

    async def send_with_headers(message: dict) -> None:
      nonlocal started
      if message["type"] == "http.response.start":
        started = True
        theirs = message.get("headers", ())
        kept = [(k, v) for k, v in theirs if k.lower() not in _HEADERS]
        message = message | {"headers": [*kept, *_HEADERS.items()]}
      await send(message)

    try:
      receive = _limit_body(receive, self._max_body(scope["path"]))
      await self.app(scope, receive, send_with_headers)
    except _TooLarge:
      if not started:
        await _respond(send, 413, "too large")

  def _refusal(self, scope: Scope) -> tuple[int, str] | None:
    """Status and reason if the request is to be blocked."""
    decode = lambda value: value.decode("latin-1")
    headers = {decode(k).lower(): decode(v) for k, v in scope["headers"]}
    host = _hostname("//" + headers.get("host", ""))
    if self.names and host not in self.names:
      return 421, "unknown host"
    origin = headers.get("origin")
    if origin is not None:
      origin_host = _hostname(origin)
      if origin_host != host and origin_host not in self.names:
        return 403, "cross-origin request"
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path = scope["path"]
    if not any(re.fullmatch(r, path) for r in _ROUTES.get(method, ())):
      return 404, "not found"
    file = path.partition("/gradio_api/file=")[2]
    if file and not _is_plain_path(file):
      return 403, "not a file of this page"
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > self._max_body(path):
      return 413, "too large"
    return None

  def _max_body(self, path: str) -> int:
    if path.startswith(_UPLOAD_ROUTES):
      return self.max_bytes + _MULTIPART_BYTES
    return _MAX_BODY_BYTES


def allowed_hosts(host: str, names: Iterable[str]) -> frozenset[str]:
  """Host names that a server answers to; empty: any.

  A server on the loopback address accepts no other names: a web page could
  point its own name at this machine (DNS rebinding) and send requests. `names`
  are further names, such as a reverse proxy's.
  """
  lowered = frozenset(name.lower() for name in names)
  if host.lower() in LOOPBACK:
    return LOOPBACK | lowered
  return lowered | {host.lower()} if lowered else lowered


def _limit_body(receive: Receive, max_bytes: int) -> Receive:
  """Counts the bytes received, since a body need not state its length."""
  received = 0

  async def limited() -> dict:
    nonlocal received
    message = await receive()
    received += len(message.get("body", b""))
    if received > max_bytes:
      raise _TooLarge
    return message

  return limited


def _is_plain_path(file: str) -> bool:
  """Whether it is an absolute path without '..', however it is quoted."""
  while file != unquote(file):
    file = unquote(file)
  parts = re.split(r"[/\\]", file)
  return file.startswith("/") and ".." not in parts and "\0" not in file


def _hostname(url: str) -> str:
  try:
    return (urlsplit(url).hostname or "").lower()
  except ValueError:
    return ""


async def _respond(send: Send, status: int, reason: str) -> None:
  body = reason.encode()
  headers = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", str(len(body)).encode()),
    (b"connection", b"close"),
  ]
  await send(
    {"type": "http.response.start", "status": status, "headers": headers}
  )
  await send({"type": "http.response.body", "body": body})
