"""Drives the page in a browser, for tests."""

from collections.abc import Callable
import io
from pathlib import Path
import re
import time

from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lumiere_jax.contrib.web.uploads import EDITOR_SIDE

WAIT_MS = 120_000

# Of screenshots.
_COLOURS = 128
_MAX_BYTES = 150_000

# Messages of a browser without a graphics card.
_HARMLESS = ("GPU stall", "WebGL", "GL Driver", "PixiJS", "Deprecation")


class Person:
  """Fills in the page and presses its buttons.

  Attributes:
    page: the open page.
    unexpected: requests to other hosts, error responses, script errors.
  """

  def __init__(self, page: Page, url: str, shots: str, timeout_s: float):
    """Opens a URL; `timeout_s` is for one video.

    Screenshots are stored in the folder `shots`; '': none are taken.
    """
    self.page, self._shots, self._timeout_s = page, shots, timeout_s
    self.unexpected: list[str] = []
    page.set_default_timeout(WAIT_MS)
    note = lambda bad, words: bad and self.unexpected.append(words)
    local = (url, "data:", "blob:")
    page.on("request", lambda r: note(not r.url.startswith(local), r.url))
    page.on("response", lambda r: note(r.status >= 400, f"{r.status} {r.url}"))
    page.on("pageerror", lambda error: note(True, str(error)))
    page.on("console", lambda m: note(_is_error(m), m.text))
    page.goto(url)
    expect(page.get_by_role("tab", name="Text to video")).to_be_visible(
      timeout=WAIT_MS
    )

  def open(self, title: str) -> Locator:
    """Goes to a tab."""
    self.page.get_by_role("tab", name=title, exact=True).click()
    tab = self.tab
    expect(tab.get_by_role("button", name="Make")).to_be_visible()
    return tab

  @property
  def tab(self) -> Locator:
    """The open tab."""
    return self.page.locator(".tabitem:visible")

  def fill(self, label: str, value: str) -> None:
    """Types into a field of the tab."""
    self.tab.get_by_label(label).first.fill(value)

  def set_advanced(self, label: str, value: str) -> None:
    """Types into an advanced setting; opens the accordion if needed."""
    field = self.page.get_by_label(label, exact=True)
    if not field.is_visible():
      self.page.get_by_text("Advanced").click()
    field.fill(value)

  def upload(self, label: str, path: str) -> None:
    """Uploads a file to the component of the tab with this label."""
    component = self.component(label)
    component.locator("input[type=file]").set_input_files(path)
    expect(component.locator("img, video, .file-preview").first).to_be_visible()

  def component(self, label: str) -> Locator:
    """The component of the tab with this label."""
    named = self.page.get_by_text(label, exact=True)
    return self.tab.locator(".block").filter(has=named).first

  def example(self, number: int = 0) -> None:
    """Selects an example of the tab."""
    rows = self.tab.locator(".gallery-item, tbody tr")
    rows.nth(number).click()
    prompt = self.tab.get_by_label("Prompt").first
    expect(prompt).to_have_value(re.compile("^a "), timeout=WAIT_MS)

  def make(self) -> str:
    """Presses "Make", waits for the result and returns the status."""
    # The status of the previous job stays until this one is done.
    status, before = self.tab.get_by_label("Status"), self.results().count()
    self.press("Make")
    self._wait_for(lambda: self.results().count() > before)
    return status.input_value()

  def press(self, name: str) -> None:
    """Presses a button of the tab."""
    self.tab.get_by_role("button", name=name, exact=True).click()

  def wait_for_status(self, word: str) -> str:
    """Waits for a status with a word in it, and returns the status."""
    status = self.tab.get_by_label("Status")
    self._wait_for(lambda: word in status.input_value())
    return status.input_value()

  def _wait_for(self, condition: Callable[[], bool]) -> None:
    """Waits for a condition; fails if the page shows an error."""
    toast = self.page.locator(".toast-body")

    def no_error() -> bool:
      assert not toast.count(), toast.first.inner_text()
      return condition()

    until(no_error, self._timeout_s)

  def read_error(self) -> str:
    """Waits for an error message, closes it and returns its text."""
    toast = self.page.locator(".toast-body")
    expect(toast.first).to_be_visible()
    text = toast.first.inner_text().splitlines()[-1]
    toast.first.locator(".toast-close").click()
    expect(toast).to_have_count(0)
    return text

  def wait_for_text(self, text: str) -> None:
    """Waits until the tab shows a text, such as a stage."""
    self.tab.get_by_text(text).first.wait_for()

  def paint(self, *strokes: tuple[tuple[float, float], ...]) -> None:
    """Paints in the mask editor of the tab.

    Args:
      strokes: points (x, y) of each stroke, in fractions of the picture.
    """
    box = self.canvas()
    for (x, y), *rest in strokes:
      at = lambda x, y: (box[0] + x * box[2], box[1] + y * box[3])
      self.page.mouse.move(*at(x, y))
      self.page.mouse.down()
      for x, y in rest:
        self.page.mouse.move(*at(x, y))
      self.page.mouse.up()

  def canvas(self) -> tuple[float, float, float, float]:
    """(left, top, width, height) of the background, which must be square.

    The editor centres it in its canvas and shows its scale.
    """
    canvas = self.tab.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    shots = [b""]

    def settled() -> bool:
      """Whether a picture is shown, and its animation is over."""
      shots.append(canvas.screenshot())
      return shots[-1] == shots[-2] and not _is_blank(shots[-1])

    until(settled)
    scale = self.component("Painted mask").get_by_text(re.compile(r"^\d+%$"))
    side = EDITOR_SIDE * int(scale.first.inner_text().strip("%")) / 100
    box = canvas.bounding_box()
    left = box["x"] + (box["width"] - side) / 2
    return left, box["y"] + (box["height"] - side) / 2, side, side

  def results(self) -> Locator:
    """Thumbnails of all results."""
    return self.page.locator("#results .thumbnail-item")

  def download(self, folder: Path) -> Path:
    """Downloads the selected result."""
    with self.page.expect_download() as downloading:
      self.page.locator("#download").click()
    path = folder / downloading.value.suggested_filename
    downloading.value.save_as(path)
    return path

  def shoot(self, name: str) -> None:
    """Takes a screenshot with few colours, if screenshots are wanted."""
    if not self._shots:
      return
    self.page.evaluate("window.scrollTo(0, 0)")
    self.page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(self.page.screenshot(full_page=True))).convert(
      "RGB"
    )
    path = Path(self._shots) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    shot.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < _MAX_BYTES


def until(
  condition: Callable[[], bool], seconds: float = WAIT_MS / 1000
) -> None:
  """Waits for a condition."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.1)


def _is_error(message) -> bool:
  harmless = any(word in message.text for word in _HARMLESS)
  return message.type == "error" and not harmless


def _is_blank(shot: bytes) -> bool:
  """Whether a picture has only one colour."""
  extrema = Image.open(io.BytesIO(shot)).convert("RGB").getextrema()
  return all(low == high for low, high in extrema)
