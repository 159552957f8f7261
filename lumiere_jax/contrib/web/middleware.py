"""What stands before Gradio: it serves more than this page needs.

Gradio's own routes would fetch addresses of the web for whoever asks, show how
much the page is used, keep records at others' places and show saved pages.
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


_UPLOADS = ("/gradio_api/upload", "/gradio_api/component_server")


_MOST_BYTES = 4_000_000  # Of what is no upload.


_SLACK = 1_000_000  # What an upload has around its file.


# All that the page is made of comes from here; Gradio compiles scripts of its
# own, and shows pictures and videos that are not yet uploaded.
_HEADERS = {
  "content-security-policy": (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src "
    "'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:;"
    " worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "frame-ancestors 'self'; form-action 'self'"
  ),
  "referrer-policy": "same-origin",
  "x-content-type-options": "nosniff",
}


class _TooLarge(Exception):
  """A request has a longer body than is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedRoutes:
  """Lets the requests through that the page makes, and no other.

  Attributes:
    app: what stands behind it.
    names: of this host that may be asked for; empty: any.
    max_bytes: of an upload.
  """

  app: App
  names: frozenset[str]
  max_bytes: int

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI."""
    if scope["type"] != "http":
      if scope["type"] == "lifespan":
        await self.app(scope, receive, send)
      return
    headers = {k.decode("latin-1").lower(): v for k, v in scope["headers"]}
    headers = {k: v.decode("latin-1") for k, v in headers.items()}
    refusal = self._refusal(scope, headers)
    if refusal:
      await _answer(send, *refusal)
      return
    begun = False

    async def sending(message: dict) -> None:
      nonlocal begun
      if message["type"] == "http.response.start":
        begun = True
        message = message | {"headers": _with_ours(message.get("headers", ()))}
      await send(message)

    try:
      await self.app(scope, self._limited(scope, receive), sending)
    except _TooLarge:
      if not begun:
        await _answer(send, 413, "too large")

  def _refusal(
    self, scope: Scope, headers: dict[str, str]
  ) -> tuple[int, str] | None:
    """Status and reason, if this request is not the page's."""
    host = _host(headers.get("host", ""))
    if self.names and host not in self.names:
      return 421, "unknown host"
    origin = headers.get("origin")
    if origin is not None:
      theirs = (urlsplit(origin).hostname or "").lower()
      if theirs != host and theirs not in self.names:
        return 403, "asked for by another page"
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path = scope["path"]
    if not any(re.fullmatch(r, path) for r in _ROUTES.get(method, ())):
      return 404, "not found"
    file = path.partition("/gradio_api/file=")[2]
    if file and not _plain(file):
      return 403, "no file of this page"
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > self._most(path):
      return 413, "too large"
    return None

  def _most(self, path: str) -> int:
    uploads = path.startswith(_UPLOADS)
    return self.max_bytes + _SLACK if uploads else _MOST_BYTES

  def _limited(self, scope: Scope, receive: Receive) -> Receive:
    """Counts what arrives: a body need not state its length."""
    most, got = self._most(scope["path"]), 0

    async def receiving() -> dict:
      nonlocal got
      message = await receive()
      got += len(message.get("body", b""))
      if got > most:
        raise _TooLarge
      return message

    return receiving


def names_for(host: str, others: Iterable[str]) -> frozenset[str]:
  """Names that a server may be asked for.

  A page of the web may have its own name point to this machine, and would then
  be let in: so a server of this machine alone answers to its own names alone.

  Args:
    host: it listens to.
    others: names that a proxy before it is asked for.
  """
  named = {name.lower() for name in others}
  if host.lower() in LOOPBACK:
    return LOOPBACK | named
  return frozenset(named | {host.lower()} if named else ())


def _plain(file: str) -> bool:
  """Whether it is an absolute path that does not go up again."""
  while file != unquote(file):
    file = unquote(file)
  parts = re.split(r"[/\\]", file)
  return file.startswith("/") and ".." not in parts and "\0" not in file


def _host(header: str) -> str:
  try:
    return (urlsplit(f"//{header}").hostname or "").lower()
  except ValueError:
    return ""


def _with_ours(headers: Iterable) -> list:
  ours = {name.encode(): value.encode() for name, value in _HEADERS.items()}
  theirs = [(k, v) for k, v in headers if k.lower() not in ours]
  return [*theirs, *ours.items()]


async def _answer(send: Send, status: int, reason: str) -> None:
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
