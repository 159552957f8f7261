"""A static page that shows a data set: clips, captions, drops, histograms."""

from collections.abc import Iterator, Sequence
from contextlib import closing
import dataclasses
import hashlib
import html
from pathlib import Path
import re
import sys
from typing import NamedTuple

import av
import numpy as np

from lumiere_jax.data.dataset_report import Row, read_rows
from lumiere_jax.data.filters import Filters, motion
from lumiere_jax.data.manifest import read_manifest
from lumiere_jax.data.prefetch import map_in_threads
from lumiere_jax.data.preprocess import REPORT, Options, check_ours
from lumiere_jax.data.sources.base import ClipSpec, UnreadableClip
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.prepared import is_prepared, open_prepared
from lumiere_jax.data.video_index import Video, parse_buckets
from lumiere_jax.errors import UserError, option
from lumiere_jax.media.images import contact_sheet, fit, write_image
from lumiere_jax.media.resize import Thumbnails
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.storage.atomic import check_writable, writing
from lumiere_jax.storage.remote import Folder, is_url
from lumiere_jax.typing import Clip

_PAGE = "index.html"
_HEAD = '<!doctype html><html lang="en"><!-- lumiere_jax preview -->'
_PICTURE = re.compile(r'src="(clip-[0-9a-f]{16}\.jpg)"')
_FRAMES = 8  # Of a contact sheet.
_SIDE = 160  # Longest side of its frames.
_EXAMPLES = 3  # Of each reason for dropping.
_CAPTIONS, _CHARACTERS = 3, 300  # That are shown of a clip.
_WIDTH, _HEIGHT, _BARS = 300, 110, 24
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #222;
  background: #fff; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top;
  max-width: 100%; }
img { display: block; max-width: 100%; background: #eee; }
figcaption { max-width: 40rem; font-size: 14px; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
  text-align: left; vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
svg { margin: 0 1rem 1rem 0; font-size: 11px; fill: #555; }
"""


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewOptions:
  """What the page shows, and where it is written."""

  preview: str = setting(
    "",
    "Folder for a page that shows the clips, captions, dropped files and "
    f"histograms. Without {option('out')} nothing is prepared, and "
    f"{option('input')} may be a prepared folder, shown at its own frame rate.",
  )
  preview_clips: int = setting(48, "Number of clips to show, at most.", least=1)
  preview_files: int = setting(
    0,
    "Read only so many files, evenly spaced by name; 0: all. Not of prepared "
    "folders.",
    least=0,
  )
  preview_buckets: str = setting(
    "",
    "Show clips of these shapes, and drop what training would drop; as "
    "config.data.buckets.",
  )

  def __post_init__(self):
    check_values(self)
    if is_url(self.preview):
      raise UserError(
        option("preview", self.preview), "is remote", "give a local folder"
      )
    parse_buckets(self.preview_buckets)

  @property
  def folder(self) -> Path:
    return Path(self.preview)


class _Shown(NamedTuple):
  video: Video
  picture: str
  motion: float


def check_preview(options: Options, preview: PreviewOptions) -> None:
  """Raises a UserError if the page cannot be written to its folder."""
  folder = preview.folder
  check_writable(folder, folder=True)
  check_ours(folder, {_PAGE: _HEAD.encode(), REPORT: b'{"file": '}, "preview")
  if is_url(options.input) or is_prepared(options.input):
    return
  if folder.resolve().is_relative_to(Path(options.input).resolve()):
    raise UserError(
      option("preview", preview.preview),
      "is in the folder of videos, so its pictures would be taken for data",
      "choose another folder",
    )


def write_preview(
  options: Options, preview: PreviewOptions, need_captions: bool = True
) -> None:
  """Writes index.html, its pictures and the data report.

  It replaces an older page and its pictures, and no other file. If all videos
  are dropped, the page gives the reasons, and a UserError is raised.

  Args:
    options: of which folder, at which rate and size, and the filters.
    preview: what to show.
    need_captions: see `FilesSource.open`.
  """
  check_preview(options, preview)
  folder = preview.folder
  folder.mkdir(parents=True, exist_ok=True)
  (folder / REPORT).unlink(missing_ok=True)
  earlier: list[Row] = []
  try:
    source, earlier = _open(options, preview, need_captions)
  except UserError:
    if (folder / REPORT).exists():
      _write(options, preview, None, [], earlier)
    raise
  chosen = _choose(source, preview.preview_clips)
  found = _pictures(source, chosen, options, folder)
  shown = [clip for clip in found if clip]
  _write(options, preview, source, shown, earlier)
  print(
    f"preview: {folder / _PAGE}, {len(shown)} of {len(source)} clips",
    file=sys.stderr,
  )


def _open(
  options: Options, preview: PreviewOptions, need_captions: bool
) -> tuple[FilesSource, list[Row]]:
  """The clips, and the rows of a prepared folder's own report."""
  report = preview.folder / REPORT
  if not is_prepared(options.input):
    source = FilesSource.open(
      options.input,
      _specs(options, preview),
      filters=_filters(options, preview),
      report_path=report,
      num_threads=options.max_threads,
      prompts=options.prompts,
      cache=options.cache,
      most_files=preview.preview_files,
      need_captions=need_captions,
    )
    return source, []
  folder = Folder(options.input, options.cache)
  stored = read_manifest(folder).options
  own = {k: stored[k] for k in ("fps", "side", "num_frames") if k in stored}
  options = dataclasses.replace(options, **own)
  source = open_prepared(
    options.input,
    _specs(options, preview),
    filters=_filters(options, preview),
    report_path=report,
    cache=options.cache,
  )
  earlier = read_rows(folder.local(REPORT)) if REPORT in folder.names else []
  return source, earlier


def _specs(options: Options, preview: PreviewOptions) -> list[ClipSpec]:
  """The shapes to show; by default squares, and pictures as single frames."""
  square = options.side, options.side
  shapes = parse_buckets(preview.preview_buckets)
  if not shapes and options.num_frames > 1:
    shapes = [(options.num_frames, *square)]
  return [
    dataclasses.replace(options.spec, num_frames=t, resolution=(h, w))
    for t, h, w in shapes or [(16, *square), (1, *square)]
  ]


def _filters(options: Options, preview: PreviewOptions) -> Filters:
  if not preview.preview_buckets:
    return options.filters
  return dataclasses.replace(
    options.filters, max_enlarge=Filters.max_enlarge, whole_videos=False
  )


def _choose(source: FilesSource, most: int) -> list[int]:
  """Indices of clips to show, spread evenly over and within the buckets."""
  groups = sorted((group.indices for group in source.groups), key=len)
  chosen: list[int] = []
  for k, indices in enumerate(groups):
    share = (most - len(chosen)) // (len(groups) - k)
    count = min(len(indices), share)
    at = np.linspace(0, len(indices) - 1, count).round().astype(int)
    chosen += [int(indices[i]) for i in at]
  return sorted(chosen)


def _pictures(
  source: FilesSource, chosen: Sequence[int], options: Options, folder: Path
) -> Iterator[_Shown | None]:
  """Writes contact sheets; None stands for a file that became unreadable."""

  def work(index: int) -> _Shown | None:
    try:
      clip = source.clip(index)
    except UnreadableClip:
      return None
    sheet = _sheet(clip)
    name = f"clip-{hashlib.sha256(sheet.tobytes()).hexdigest()[:16]}.jpg"
    write_image(folder / name, sheet)
    return _Shown(source.videos[index], name, _motion(clip))

  with closing(map_in_threads(work, chosen, options.max_threads)) as found:
    yield from found


def _sheet(clip: Clip) -> np.ndarray:
  t, h, w, _ = clip.shape
  scale = min(1.0, _SIDE / max(h, w))
  size = max(1, round(h * scale)), max(1, round(w * scale))
  at = np.linspace(0, t - 1, min(t, _FRAMES)).round().astype(int)
  return contact_sheet(
    np.stack([fit(clip[k], size) for k in at]), columns=len(at)
  )


def _motion(clip: Clip) -> float:
  """As the filter `min_motion` measures it, but of the clip alone."""
  thumbnails = Thumbnails(16)
  for k, image in enumerate(clip):
    frame = np.ascontiguousarray(image)
    thumbnails(float(k), av.VideoFrame.from_ndarray(frame, "rgb24"))
  return motion(thumbnails.images)


def _write(
  options: Options,
  preview: PreviewOptions,
  source: FilesSource | None,
  shown: Sequence[_Shown],
  earlier: Sequence[Row],
) -> None:
  rows = read_rows(preview.folder / REPORT)
  used = sum(row.used for row in rows)
  dropped = [row for row in (*earlier, *rows) if not row.used]
  title = html.escape(f"Data in {options.input}")
  files = len({row.file for row in rows})
  body = [
    f"<h1>{title}</h1>",
    f"<p>{used} of {len(rows)} videos, pictures and shots of {files} files are "
    f'used. Every file: <a href="{REPORT}">{REPORT}</a>.</p>',
    *_histograms(rows, shown),
    *_drops(dropped),
    *(_buckets(source, shown) if source else ()),
  ]
  page = (
    f'{_HEAD}<meta charset="utf-8"><title>{title}</title>'
    f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
  )
  path = preview.folder / _PAGE
  old = path.read_text("utf-8", "replace") if path.exists() else ""
  # File names need not be valid Unicode.
  with writing(path) as file:
    file.write(page.encode(errors="backslashreplace"))
  for name in {*_PICTURE.findall(old)} - {clip.picture for clip in shown}:
    (preview.folder / name).unlink(missing_ok=True)


def _histograms(rows: Sequence[Row], shown: Sequence[_Shown]) -> Iterator[str]:
  yield (
    "<h2>Histograms</h2><p>Used in blue, dropped in orange. Motion is the "
    "change over time of the clips shown below, in grey levels, as "
    "<code>min_motion</code> measures it.</p>"
  )
  decoded = [row for row in rows if row.width and row.height]
  videos = [row for row in decoded if row.fps]
  side = lambda row: min(row.width, row.height)
  aspect = lambda row: row.width / row.height
  for title, part, value in (
    ("length, s", videos, lambda row: row.seconds),
    ("frames per second", videos, lambda row: row.fps),
    ("shorter side, pixels", decoded, side),
    ("width / height", decoded, aspect),
  ):
    yield histogram(
      title,
      [value(row) for row in part if row.used],
      [value(row) for row in part if not row.used],
    )
  moving = [clip.motion for clip in shown if not clip.video.is_picture]
  yield histogram("motion, grey levels", moving)


def histogram(
  title: str, used: Sequence[float], dropped: Sequence[float] = ()
) -> str:
  """A small SVG histogram, of the dropped on top of the used; '' if empty."""
  values = np.array([*used, *dropped])
  if not values.size:
    return ""
  edges = np.histogram_bin_edges(values, _BARS)
  counts = [np.histogram(part, edges)[0] for part in (used, dropped)]
  base, top = _HEIGHT - 16, (counts[0] + counts[1]).max()
  step = _WIDTH / _BARS
  high = lambda n: n / top * (base - 34)
  bars = []
  for k, (n, m) in enumerate(zip(*counts, strict=True)):
    label = f"{edges[k]:.4g} to {edges[k + 1]:.4g}: {n} used, {m} dropped"
    for count, below, colour in ((n, 0, "#9bd"), (m, n, "#e94")):
      if count:
        bars.append(
          f'<rect x="{k * step:.1f}" y="{base - high(below + count):.1f}" '
          f'width="{step - 1:.1f}" height="{high(count):.1f}" fill="{colour}">'
          f"<title>{label}</title></rect>"
        )
  low, middle, most = np.quantile(values, (0, 0.5, 1))
  return (
    f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">'
    f'<text y="12" font-weight="bold">{html.escape(title)}</text>'
    f'<text y="26">{low:.4g} to {most:.4g}, median {middle:.4g}; '
    f"highest bar {top}</text>{''.join(bars)}"
    f'<path d="M0 {base}H{_WIDTH}" stroke="#999"/>'
    f'<text y="{_HEIGHT - 3}">{edges[0]:.4g}</text>'
    f'<text x="{_WIDTH}" y="{_HEIGHT - 3}" text-anchor="end">'
    f"{edges[-1]:.4g}</text></svg>"
  )


def _drops(dropped: Sequence[Row]) -> Iterator[str]:
  kinds: dict[str, list[Row]] = {}
  for row in dropped:
    kinds.setdefault(row.kind, []).append(row)
  yield f"<h2>Dropped: {len(dropped)}</h2>"
  if not kinds:
    return
  yield "<table><tr><th>reason</th><th>number</th><th>examples</th></tr>"
  for kind, rows in sorted(kinds.items(), key=lambda item: -len(item[1])):
    examples = "<br>".join(
      html.escape(f"{row}: {row.reason}") for row in rows[:_EXAMPLES]
    )
    cells = html.escape(kind), len(rows), examples
    yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
  yield "</table>"


def _buckets(source: FilesSource, shown: Sequence[_Shown]) -> Iterator[str]:
  for spec in source.specs:
    total = sum(video.spec == spec for video in source.videos)
    clips = [clip for clip in shown if clip.video.spec == spec]
    if total:
      shape = "x".join(map(str, (spec.num_frames, *spec.resolution)))
      yield (
        f"<h2>{shape} at {spec.fps:g} fps: {total} clips</h2><p>{len(clips)} "
        "shown, as cropped and resampled, from the middle of the shot.</p>"
      )
      yield from map(_figure, clips)


def _figure(clip: _Shown) -> str:
  video = clip.video
  info = video.info
  about = f"{info.width}x{info.height}"
  if not video.is_picture:
    about += f", {video.start_s:.2f} to {video.end_s:.2f} s, {info.fps:.4g} fps"
    about += f", motion {clip.motion:.2f}"
  captions = [_short(text) for text in video.captions[:_CAPTIONS]]
  if more := len(video.captions) - len(captions):
    captions.append(f"({more} more)")
  lines = [f"<b>{html.escape(video.file)}</b>, {about}"]
  lines += map(html.escape, captions)
  return (
    f'<figure><img src="{clip.picture}" alt="" loading="lazy">'
    f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
  )


def _short(text: str) -> str:
  return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
