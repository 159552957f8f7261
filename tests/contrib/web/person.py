"""A person before a browser: what tests of the page do with it."""

from collections.abc import Callable
import io
from pathlib import Path
import re
import time

from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lumiere_jax.contrib.web.mask_editor import SIDE

WAIT_MS = 120_000


_COLOURS = 128


_MOST_BYTES = 150_000


# The browser says so of itself, where it has no graphics card.
_HARMLESS = ("GPU stall", "WebGL", "GL Driver", "PixiJS", "Deprecation")


class Person:
  """Who fills in the page and presses its buttons.

  Attributes:
    page: that is open.
    strange: what should not have happened: requests to elsewhere, answers
      that refuse, errors of scripts.
  """

  def __init__(self, page: Page, url: str, shots: str, patience_s: float):
    """Opens the page.

    Args:
      page: of the browser.
      url: to open.
      shots: folder for pictures; '' takes none.
      patience_s: how long a video may take.
    """
    self.page, self._shots, self._patience_s = page, shots, patience_s
    self.strange: list[str] = []
    page.set_default_timeout(WAIT_MS)
    page.on("request", lambda r: self._asked(r.url, url))
    page.on("response", lambda r: self._answered(r.status, r.url))
    page.on("pageerror", lambda error: self.strange.append(str(error)))
    page.on("console", self._logged)
    page.goto(url)
    expect(page.get_by_role("tab", name="Text to video")).to_be_visible(
      timeout=WAIT_MS
    )

  def _asked(self, address: str, url: str) -> None:
    if not address.startswith((url, "data:", "blob:")):
      self.strange.append(f"asked for {address}")

  def _answered(self, status: int, address: str) -> None:
    if status >= 400:
      self.strange.append(f"{status} {address}")

  def _logged(self, message) -> None:
    harmless = any(word in message.text for word in _HARMLESS)
    if message.type == "error" and not harmless:
      self.strange.append(message.text)

  def open(self, title: str) -> Locator:
    """Goes to a tab."""
    self.page.get_by_role("tab", name=title, exact=True).click()
    tab = self.tab
    expect(tab.get_by_role("button", name="Make")).to_be_visible()
    return tab

  @property
  def tab(self) -> Locator:
    """The one that is open."""
    return self.page.locator(".tabitem:visible")

  def fill(self, label: str, value: str) -> None:
    """Types into a field of the tab."""
    self.tab.get_by_label(label).first.fill(value)

  def settle(self, label: str, value: str) -> None:
    """Types into one of the settings, which are folded away at first."""
    field = self.page.get_by_label(label, exact=True)
    if not field.is_visible():
      self.page.get_by_text("Advanced").click()
    field.fill(value)

  def upload(self, label: str, path: str) -> None:
    """Gives a file to the part of the tab with this label."""
    part = self.part(label)
    part.locator("input[type=file]").set_input_files(path)
    expect(part.locator("img, video, .file-preview").first).to_be_visible()

  def part(self, label: str) -> Locator:
    """The part of the tab with this label."""
    named = self.page.get_by_text(label, exact=True)
    return self.tab.locator(".block").filter(has=named).first

  def example(self, number: int = 0) -> None:
    """Presses an example of the tab."""
    rows = self.tab.locator(".gallery-item, tbody tr")
    rows.nth(number).click()
    prompt = self.tab.get_by_label("Prompt").first
    expect(prompt).to_have_value(re.compile("^a "), timeout=WAIT_MS)

  def make(self) -> str:
    """Presses the button and waits for the end.

    Returns:
      What the tab then says.
    """
    # What was said of the one before is there until this one is done.
    status, before = self.tab.get_by_label("Status"), self.results().count()
    self.press("Make")
    self._await(lambda: self.results().count() > before)
    return status.input_value()

  def press(self, name: str) -> None:
    """Presses a button of the tab."""
    self.tab.get_by_role("button", name=name, exact=True).click()

  def said(self, word: str) -> str:
    """Waits until the tab says something with a word in it."""
    status = self.tab.get_by_label("Status")
    self._await(lambda: word in status.input_value())
    return status.input_value()

  def _await(self, holds: Callable[[], bool]) -> None:
    """Waits until something holds, unless the page says what is wrong."""
    toast = self.page.locator(".toast-body")

    def held() -> bool:
      assert not toast.count(), toast.first.inner_text()
      return holds()

    until(held, self._patience_s)

  def refused(self, shot: str = "") -> str:
    """The message that pops up; it is closed again.

    Args:
      shot: name of a picture to take of it; '' takes none.
    """
    toast = self.page.locator(".toast-body")
    expect(toast.first).to_be_visible()
    if shot:
      self.shoot(shot)
    text = toast.first.inner_text().splitlines()[-1]
    toast.first.locator(".toast-close").click()
    expect(toast).to_have_count(0)
    return text

  def told(self, text: str) -> None:
    """Waits until the tab shows some text, such as a stage."""
    self.tab.get_by_text(text).first.wait_for()

  def paint(self, *strokes: tuple[tuple[float, float], ...]) -> None:
    """Paints on what is in the tab.

    Args:
      strokes: points (x, y) of each, in fractions of the picture.
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
    """(left, top, width, height) of the square that is painted on.

    The editor shows it at the middle of its own canvas, and says how large.
    """
    part = self.tab.locator("canvas").first
    part.scroll_into_view_if_needed()
    seen = [b""]

    def settled() -> bool:
      """A picture is there, and no longer glides to its place."""
      seen.append(part.screenshot())
      return seen[-1] == seen[-2] and not _blank(seen[-1])

    until(settled)
    percent = self.part("Painted mask").get_by_text(re.compile(r"^\d+%$"))
    side = SIDE * int(percent.first.inner_text().strip("%")) / 100
    box = part.bounding_box()
    left = box["x"] + (box["width"] - side) / 2
    return left, box["y"] + (box["height"] - side) / 2, side, side

  def results(self) -> Locator:
    """Small pictures of all that was made."""
    return self.page.locator("#made .thumbnail-item")

  def download(self, folder: Path) -> Path:
    """Presses the button below the result."""
    with self.page.expect_download() as downloading:
      self.page.locator("#download").click()
    path = folder / downloading.value.suggested_filename
    downloading.value.save_as(path)
    return path

  def shoot(self, name: str) -> None:
    """A picture of the page, in few colours, if any are to be taken."""
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
    assert path.stat().st_size < _MOST_BYTES


def until(holds: Callable[[], bool], seconds: float = WAIT_MS / 1000) -> None:
  """Waits until something holds."""
  end = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.1)


def _blank(shot: bytes) -> bool:
  """Whether a picture is of one colour."""
  extrema = Image.open(io.BytesIO(shot)).convert("RGB").getextrema()
  return all(low == high for low, high in extrema)
