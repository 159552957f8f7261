"""The Gradio page: one form per task, results, and the ASGI application."""

from collections.abc import Sequence
import os
import secrets
import sys
import time
import traceback
from typing import Any

import fastapi
import gradio as gr
from gradio.components import Component

from lumiere_jax.contrib.web import components
from lumiere_jax.contrib.web.examples import PROMPTS, Example, draw_examples
from lumiere_jax.contrib.web.forms import SEEDS, read, uploads_of
from lumiere_jax.contrib.web.jobs import Cancelled, JobQueue, JobRunner, Result
from lumiere_jax.contrib.web.labels import STAGES, words
from lumiere_jax.contrib.web.middleware import ClosedRoutes
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.contrib.web.tabs import ADVANCED, EDGES, TABS
from lumiere_jax.contrib.web.uploads import editor_background
from lumiere_jax.errors import UserError
from lumiere_jax.inference.cascade import Progress
from lumiere_jax.inference.pipeline import Pipeline

TITLE = "Lumiere"

_CSS = """
footer { display: none !important; }
#new-seed { align-self: center; }
"""
_DAY_S = 24 * 3600
_ERROR_S = 20.0
_PROGRESS_INTERVAL_S = 0.2  # a fast model would keep the browser busy drawing
_RESULT_HEIGHT = 340
_EXAMPLE_EDGES = dict.fromkeys(EDGES, 64)
_NO_STYLES = (
  "No style to choose: start the server with --style=NAME=PATH, a style's name "
  "and folder, once for each."
)
_INTERNAL_ERROR = "This went wrong on the server; its log says how"
_PROGRESS = gr.Progress()
# Of events that do not wait for other jobs. With `queue=False`, the page would
# not show their errors.
_IMMEDIATE = {
  "concurrency_limit": 4,
  "show_progress": "hidden",
  "api_visibility": "private",
}


def build(pipeline: Pipeline, options: Options, queue: JobQueue) -> gr.Blocks:
  """Builds the page.

  Args:
    pipeline: a loaded pipeline, or an object with its methods.
    options: of the page.
    queue: holds jobs and results.
  """
  os.environ |= {
    # Gradio reads these when components are made and at every request.
    "GRADIO_TEMP_DIR": os.fspath(queue.folder),
    "GRADIO_EXAMPLES_CACHE": os.fspath(queue.folder / "examples"),
    # Otherwise Gradio tabulates all jobs after each, for a hidden dashboard.
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(sys.maxsize),
  }
  height, width = (side // pipeline.upscale for side in pipeline.resolution())
  examples = draw_examples(
    queue.folder / "scenes", pipeline.frames({}), (height, width)
  )
  page = gr.Blocks(
    title=TITLE, analytics_enabled=False, delete_cache=(_DAY_S // 24, _DAY_S)
  )

  def forget(request: gr.Request) -> None:
    queue.forget(request.session_hash)

  with page:
    _Page(pipeline, options, queue, examples)
    page.unload(forget)
  page.queue(
    max_size=2 * options.capacity,  # so that JobQueue refuses jobs first
    default_concurrency_limit=options.jobs,
    api_open=False,
  )
  return page


def application(
  page: gr.Blocks,
  options: Options,
  *,
  names: frozenset[str] = frozenset(),
  root_path: str = "",
) -> ClosedRoutes:
  """Wraps the page into an ASGI application with all other routes closed.

  Args:
    page: see `build`.
    options: the options it was built with.
    names: see `ClosedRoutes`.
    root_path: see `Address`.
  """
  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
  max_bytes = int(options.limits.max_mb * 1e6)
  gr.mount_gradio_app(
    app,
    page,
    path="/",
    allowed_paths=[],
    blocked_paths=[os.path.realpath(path) for path in options.secret],
    show_error=False,
    max_file_size=max_bytes,
    footer_links=[],
    run_history=False,
    enable_monitoring=False,
    ssr_mode=False,
    pwa=False,
    mcp_server=False,
    root_path=root_path or None,
    theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),
    css=_CSS,
  )
  # Gradio restricts the files that requests name to its own folder only if it
  # believes that it was launched, which a mounted app does not.
  page.has_launched = page.is_running = True
  return ClosedRoutes(app=app, names=names, max_bytes=max_bytes)


class _Page:
  """Lays out the components and connects their events."""

  def __init__(
    self,
    pipeline: Pipeline,
    options: Options,
    queue: JobQueue,
    examples: list[Example],
  ):
    self._pipeline, self._options = pipeline, options
    self._queue, self._examples = queue, examples
    self._runner = JobRunner(pipeline, options)
    frames, (height, width) = pipeline.frames({}), pipeline.resolution()
    gr.Markdown(
      f"**{TITLE}**: {frames} frames of {width}x{height}, {pipeline.fps:g} a "
      "second, unless you ask for another length"
    )
    with gr.Row():
      with gr.Column(scale=3):
        with gr.Tabs(overflow_behavior="wrap"):
          forms = {task: self._form(task) for task in TABS}
        shared = self._shared()
      with gr.Column(scale=2, min_width=360):
        self._results = _Results(queue)
    for task, form in forms.items():
      self._connect(task, *form, shared)

  def _rows(self, rows: Sequence[tuple[str, ...]]) -> dict[str, Component]:
    inputs = {}
    for row in rows:
      with gr.Row():
        for name in row:
          inputs[name] = components.make(name, self._pipeline, self._options)
    return inputs

  def _form(
    self, task: str
  ) -> tuple[dict[str, Component], gr.Button, gr.Button, gr.Textbox]:
    """Inputs, buttons and status line of a tab."""
    tab = TABS[task]
    with gr.Tab(tab.title), gr.Column(elem_id=task):
      gr.Markdown(tab.about)
      available = task != "stylize" or bool(self._options.styles)
      if not available:
        gr.Markdown(_NO_STYLES)
      inputs = self._rows(tab.fields)
      with gr.Row():
        make = gr.Button("Make", variant="primary", interactive=available)
        cancel = gr.Button("Cancel")
      status = gr.Textbox(
        label="Status", interactive=False, lines=2, elem_classes="status"
      )
      gr.Examples(
        self._example_rows(task),
        [inputs[name] for name in tab.examples],
        cache_examples=False,
        api_visibility="private",
      )
    return inputs, make, cancel, status

  def _example_rows(self, task: str) -> list[list]:
    names = TABS[task].examples
    if names == ("prompt",):
      return [[prompt] for prompt in PROMPTS]
    rows = [vars(example) | _EXAMPLE_EDGES for example in self._examples]
    if task == "super_resolve":
      rows = [row | {"video": row["small_video"]} for row in rows]
    return [[row[name] for name in names] for row in rows]

  def _shared(self) -> dict[str, Component]:
    """Seed, negative prompt and settings, shared by all tabs."""
    make = lambda name: components.make(name, self._pipeline, self._options)
    with gr.Row():
      seed = make("seed")
      new_seed = gr.Button(
        "New seed", size="sm", scale=0, min_width=100, elem_id="new-seed"
      )
      negative = make("negative_prompt")
    new_seed.click(lambda: secrets.randbelow(SEEDS), None, seed, **_IMMEDIATE)
    with gr.Accordion("Advanced", open=False):
      advanced = self._rows(ADVANCED)
    return {"seed": seed, "negative_prompt": negative} | advanced

  def _connect(
    self,
    task: str,
    own: dict[str, Component],
    make_button: gr.Button,
    cancel_button: gr.Button,
    status: gr.Textbox,
    shared: dict[str, Component],
  ) -> None:
    """Connects the buttons and the mask editor of a tab."""
    inputs = own | shared

    def check(request: gr.Request, *values) -> str:
      named = dict(zip(inputs, values, strict=True))
      return self._check(task, named, request.session_hash)

    def run(request: gr.Request, progress: gr.Progress = _PROGRESS) -> list:
      return self._run(task, request.session_hash, progress)

    def cancel(request: gr.Request) -> str:
      found = self._queue.cancel(request.session_hash, task)
      return "Cancelled." if found else "Nothing to cancel."

    checked = make_button.click(
      check, [*inputs.values()], status, api_name=f"check_{task}", **_IMMEDIATE
    )
    running = checked.success(
      run,
      None,
      [status, *self._results.components],
      show_progress_on=status,
      concurrency_id="sampling",
      concurrency_limit=self._options.jobs,
      api_name=f"make_{task}",
      api_visibility="private",
    )
    cancel_button.click(
      cancel,
      None,
      status,
      cancels=running,
      api_name=f"cancel_{task}",
      **_IMMEDIATE,
    )
    if "strokes" in own:
      field = "image" if "image" in own else "video"
      own[field].change(
        lambda path: self._editor(path, field),
        own[field],
        own["strokes"],
        api_name=f"canvas_{task}",
        **_IMMEDIATE,
      )

  def _check(self, task: str, values: dict, session: str) -> str:
    """Checks a form and queues its job."""
    pipeline, options = self._pipeline, self._options
    try:
      self._queue.submit(
        session, task, lambda path: read(task, values, pipeline, options, path)
      )
    except UserError as error:
      shown = words(error, uploads_of(values), options.secret)
      raise _as_gradio_error(shown) from error
    return "In the queue."

  def _run(self, task: str, session: str, progress: gr.Progress) -> list:
    """Runs the waiting job of a tab."""
    job = self._queue.begin(session, task)
    if job is None:
      return [gr.skip(), *self._results.unchanged]
    shown_s = 0.0

    def on_progress(at: Progress) -> None:
      nonlocal shown_s
      now = time.monotonic()
      if now - shown_s > _PROGRESS_INTERVAL_S or at.done == at.total:
        shown_s = now
        progress((at.done, at.total), desc=STAGES[at.stage], unit="steps")

    progress(0.0, desc="Starting; a new size or length takes longer")
    try:
      report = self._runner.run(job, self._queue, on_progress)
    except Cancelled:
      return ["Cancelled.", *self._results.unchanged]
    except UserError as error:  # `JobRunner` has worded it
      raise _as_gradio_error(str(error)) from error
    except Exception as error:
      traceback.print_exc()
      raise gr.Error(_INTERNAL_ERROR, print_exception=False) from error
    finally:
      self._queue.release(job)
    return [report, *self._results.newest(session)]

  def _editor(self, path: str | None, field: str) -> dict | None:
    """The mask editor's value for an upload."""
    if path is None:
      return None
    try:
      pixels = editor_background(path, field, self._options.limits)
    except UserError as error:
      shown = words(error, uploads_of({field: path}), self._options.secret)
      raise _as_gradio_error(shown) from error
    return {"background": pixels, "layers": [], "composite": None}


class _Results:
  """The selected result with a download button, and a gallery of all.

  Attributes:
    components: that `newest` and `unchanged` return values for.
  """

  def __init__(self, queue: JobQueue):
    self._queue = queue
    shared: dict[str, Any] = {
      "label": "Result",
      "interactive": False,
      "buttons": [],
      "height": _RESULT_HEIGHT,
    }
    selected = [
      gr.Video(autoplay=True, loop=True, elem_id="video", **shared),
      gr.Image(visible=False, elem_id="picture", **shared),
      gr.DownloadButton("Download", interactive=False, elem_id="download"),
    ]
    gallery = gr.Gallery(
      label="Made in this session, the newest first",
      columns=3,
      fit_columns=False,
      object_fit="contain",
      height=260,
      allow_preview=False,
      interactive=False,
      buttons=[],
      elem_id="results",
    )
    self.components: list[Component] = [*selected, gallery]

    def select(event: gr.SelectData, request: gr.Request) -> list:
      results = queue.results(request.session_hash)
      if event.index < len(results):
        return _show(results[event.index])
      return [gr.skip()] * len(selected)

    gallery.select(select, None, selected, show_progress="hidden", queue=False)

  @property
  def unchanged(self) -> list:
    """Values that leave the components as they are."""
    return [gr.skip()] * len(self.components)

  def newest(self, session: str) -> list:
    """Values that show the newest result of a session."""
    results = self._queue.results(session)
    if not results:
      return self.unchanged
    items = [(result.path, result.caption) for result in results]
    return [*_show(results[0]), items]


def _show(result: Result) -> list:
  is_picture = result.path.endswith(".png")
  video, picture = (None, result.path) if is_picture else (result.path, None)
  return [
    gr.Video(video, visible=not is_picture, label=result.caption),
    gr.Image(picture, visible=is_picture, label=result.caption),
    gr.DownloadButton(value=result.path, interactive=True),
  ]


def _as_gradio_error(shown: str) -> gr.Error:
  return gr.Error(shown, duration=_ERROR_S, print_exception=False)
