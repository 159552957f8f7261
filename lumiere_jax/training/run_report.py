"""An HTML page with videos, loss curves and metrics of finished runs."""

from collections.abc import Sequence
import dataclasses
import html
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from lumiere_jax.training.metric_logger import JsonLines

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
video, .sheet { image-rendering: pixelated; background: #eee; }
video, .sheet { max-width: 100%; height: 16rem; }
figcaption { max-width: 24rem; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
  text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f4f4f4; padding: .5rem; overflow-x: auto; }
svg text { font-size: 11px; fill: #555; }
"""

_WIDTH, _HEIGHT, _MARGIN = 300, 150, 34


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
  """Metrics of a training run.

  Attributes:
    name: of the run.
    command: that ran it.
    seconds: of the whole process, compilation included.
    parameters: 'trainable' and 'frozen' counts.
    losses: (step, training loss).
    held_out: (step, held-out loss); may be empty.
    frame_by_frame: final held-out loss without temporal layers; None for image
      models.
  """

  name: str
  command: str = ""
  seconds: float = 0.0
  parameters: dict[str, int]
  losses: list[tuple[int, float]]
  held_out: list[tuple[int, float]]
  frame_by_frame: float | None

  @classmethod
  def read(cls, workdir: Path, **about: Any) -> "RunSummary":
    """Reads the log files in a workdir; `about` are the other attributes."""
    log = lambda name: JsonLines(workdir / f"{name}.jsonl").read()
    pairs = lambda records: [(r["step"], r["loss"]) for r in records]
    held_out = log("held_out")
    return cls(
      **about,
      parameters=log("runs")[-1]["parameters"],
      losses=pairs(log("metrics")),
      held_out=pairs(held_out),
      frame_by_frame=held_out[-1].get("frame_by_frame") if held_out else None,
    )

  def numbers(self) -> dict[str, Any]:
    """The entry of this run in metrics.json."""
    points = self.held_out or self.losses
    return {
      "first_loss": points[0][1],
      "last_loss": points[-1][1],
      "last_loss_frame_by_frame": self.frame_by_frame,
      "seconds": round(self.seconds, 1),
      "parameters": self.parameters,
      "steps": points[-1][0],
    }


class Sample(NamedTuple):
  """A video or image: file beside the page, heading, caption, its command."""

  file: str
  title: str
  caption: str
  command: str


def write_page(
  folder: Path,
  title: str,
  samples: Sequence[Sample],
  runs: Sequence[RunSummary],
) -> None:
  """Writes index.html and metrics.json beside the samples in `folder`."""
  numbers = {run.name: run.numbers() for run in runs}
  (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
  commands = [sample.command for sample in samples]
  commands += [run.command for run in runs]
  note = "Losses are those of the first and last batch."
  if all(run.held_out for run in runs):
    note = (
      "Losses are on held-out clips and fixed noise, before and after "
      "training. <i>Frame by frame</i>: the same weights without the temporal "
      "layers."
    )
  body = [
    f"<h1>{html.escape(title)}</h1>",
    *map(_figure, samples),
    "<h2>Training</h2>",
    f"<p>{note}</p>",
    _table(runs),
    *(_curve(run) for run in runs),
    "<h2>Commands</h2>",
    "<pre>" + html.escape("\n".join(commands)) + "</pre>",
  ]
  (folder / "index.html").write_text(
    f'<!doctype html><html lang="en"><meta charset="utf-8">'
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    f"<body>{''.join(body)}</body></html>\n"
  )


def _figure(sample: Sample) -> str:
  file, title = html.escape(sample.file), html.escape(sample.title)
  if Path(sample.file).suffix == ".png":
    media = f'<img class="sheet" src="{file}" alt="{title}">'
  else:
    media = (
      f'<video src="{file}" controls autoplay loop muted playsinline></video>'
    )
  return (
    f"<figure>{media}<figcaption><b>{title}</b><br>"
    f"{html.escape(sample.caption)}</figcaption></figure>"
  )


def _table(runs: Sequence[RunSummary]) -> str:
  head = (
    *("stage", "trained", "frozen", "steps", "seconds"),
    *("loss before", "loss after", "frame by frame"),
  )
  rows = []
  for run in runs:
    n, counts, spatial = run.numbers(), run.parameters, run.frame_by_frame
    rows.append(
      (
        run.name,
        *(f"{counts[name]:,}" for name in ("trainable", "frozen")),
        *(n["steps"], f"{n['seconds']:.0f}"),
        *(f"{n[name]:.4f}" for name in ("first_loss", "last_loss")),
        "" if spatial is None else f"{spatial:.4f}",
      )
    )
  cells = lambda tag, row: "".join(f"<{tag}>{c}</{tag}>" for c in row)
  lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
  return f"<table><tr>{cells('th', head)}</tr>{lines}</table>"


def write_curves(file: Path, runs: Sequence[RunSummary]) -> None:
  """Writes the loss curves of runs as one SVG file, three in a row."""
  columns = 3
  rows = -(-len(runs) // columns)
  plots = "".join(
    f'<svg x="{k % columns * _WIDTH}" y="{k // columns * _HEIGHT}"'
    + _curve(run).removeprefix("<svg")
    for k, run in enumerate(runs)
  )
  file.write_text(
    '<svg xmlns="http://www.w3.org/2000/svg" style="background: #fff" '
    f'width="{columns * _WIDTH}" height="{rows * _HEIGHT}" '
    f'font-family="sans-serif" font-size="11" fill="#555">{plots}</svg>\n'
  )


def _curve(run: RunSummary) -> str:
  """A small plot on a log scale: training loss a line, held-out loss dots."""
  points = [*run.losses, *run.held_out]
  # A run may have stopped before its first log step.
  last = max((step for step, _ in points), default=0) or 1
  losses = [loss for _, loss in points if loss > 0] or [1.0]
  top, bottom = max(losses) * 1.1, min(losses) / 1.1
  base = _HEIGHT - 20
  x = lambda step: _MARGIN + step / last * (_WIDTH - _MARGIN - 8)
  share = lambda loss: math.log(max(loss, bottom) / bottom, top / bottom)
  y = lambda loss: base - share(loss) * (base - 18)
  line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in run.losses)
  dots = "".join(
    f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="4" fill="#c40">'
    f"<title>held out, step {s}: {v:.4f}</title></circle>"
    for s, v in run.held_out
  )
  return (
    f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">'
    f'<text x="{_MARGIN}" y="12">{html.escape(run.name)}: loss</text>'
    f'<text x="2" y="24">{top:.2g}</text>'
    f'<text x="2" y="{base}">{bottom:.2g}</text>'
    f'<text x="{_WIDTH - 66}" y="{_HEIGHT - 6}">step {last:,}</text>'
    f'<path d="M{_MARGIN} 18V{base}H{_WIDTH - 8}" fill="none" stroke="#999"/>'
    f'<polyline points="{line}" fill="none" stroke="#26c"/>{dots}</svg>'
  )
