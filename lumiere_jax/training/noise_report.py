"""Training and sampling noise levels, as JSON and as an SVG chart."""

from collections.abc import Mapping, Sequence
import html
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lumiere_jax.diffusion.noise_levels import decisive_log_snr
from lumiere_jax.storage.atomic import writing
from lumiere_jax.training.config import Experiment

_WIDTH, _LEFT, _RIGHT = 640, 110, 12
_LOW, _HIGH = -22.0, 16.0  # Log-SNR range of the axis.
_BAND = 64  # Height of a histogram.
_TICKS = 18  # Height of a row of levels.


def noise_summary(experiment: Experiment) -> dict[str, Any]:
  """Log-SNRs of training (deciles) and sampling (grid), for JSON.

  The experiment's shift must be a number.
  """
  frames, pixels = _clip(experiment)
  at = jnp.arange(1, 10, dtype=jnp.float32) / 10
  deciles = experiment.diffusion.make_noise().log_snr(at)
  return {
    "stage": experiment.stage,
    "shift": experiment.diffusion.shift,
    "deciles": [round(float(x), 3) for x in deciles],
    "grid": _grid(experiment),
    "frames_agree_at": round(decisive_log_snr(frames, pixels), 3),
  }


def draw_noise(experiment: Experiment, file: Path) -> None:
  """Draws the same as an SVG file; the shift must be a number."""
  frames, pixels = _clip(experiment)
  at = jnp.asarray((np.arange(20_000) + 0.5) / 20_000, jnp.float32)
  drawn = np.asarray(experiment.diffusion.make_noise().log_snr(at))
  decided = {
    f"colour of {n} frame{'s' * (n > 1)} decided": decisive_log_snr(n, pixels)
    for n in dict.fromkeys((frames, 1))
  }
  size = "x".join(map(str, (frames, *experiment.data.resolution)))
  svg = chart(
    f"{experiment.stage}, {size}, shift {experiment.diffusion.shift:g}",
    {"training draws": drawn},
    {"sampling steps": _grid(experiment)},
    decided,
  )
  with writing(file) as out:
    out.write(svg.encode())


def chart(
  title: str,
  draws: Mapping[str, np.ndarray],
  grids: Mapping[str, Sequence[float]],
  decided: Mapping[str, float],
) -> str:
  """An SVG chart of noise levels along a log-SNR axis, by their labels.

  `draws` are histograms, `grids` rows of marks, `decided` vertical lines.
  """
  scale = (_WIDTH - _LEFT - _RIGHT) / (_HIGH - _LOW)
  x = lambda log_snr: _LEFT + (min(max(log_snr, _LOW), _HIGH) - _LOW) * scale
  parts, y = [_text(4, 14, title, "#222")], 44
  for name, values in draws.items():
    parts.append(_text(4, y + _BAND - 4, name) + _bars(values, x, y))
    y += _BAND + 8
  for name, levels in grids.items():
    marks = "".join(f"M{x(level):.1f} {y + 3}v{_TICKS - 6}" for level in levels)
    parts.append(_text(4, y + 12, name))
    if min(levels) < _LOW:
      parts.append(_text(x(_LOW) - 24, y + 12, "-inf", "#26c"))
    parts.append(f'<path d="{marks}" stroke="#26c" stroke-width="1.5"/>')
    y += _TICKS
  for row, (name, level) in enumerate(decided.items()):
    parts.append(
      f'<path d="M{x(level):.1f} {30 + 11 * (row % 2)}V{y}" stroke="#c40" '
      'stroke-dasharray="3 3"/>'
      + _text(x(level) + 3, 30 + 11 * (row % 2), name, "#c40")
    )
  axis = [_text(x(v) - 6, y + 16, f"{v:g}") for v in range(-20, 17, 4)]
  parts += [
    f'<path d="M{_LEFT} {y + 2}H{_WIDTH - _RIGHT}" stroke="#999"/>',
    *axis,
    _text(4, y + 16, "log-SNR: noisy"),
    _text(_WIDTH - 42, y + 30, "clean"),
  ]
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" style="background: #fff" '
    f'width="{_WIDTH}" height="{y + 36}" font-family="sans-serif" '
    f'font-size="11" fill="#555">{"".join(parts)}</svg>\n'
  )


def _bars(values: np.ndarray, x, y: float) -> str:
  counts, edges = np.histogram(
    np.clip(values, _LOW, _HIGH), bins=76, range=(_LOW, _HIGH)
  )
  top = max(counts.max(), 1)
  bars = [
    f"M{x(left):.1f} {y + _BAND}V{y + _BAND * (1 - n / top):.1f}"
    f"H{x(right):.1f}V{y + _BAND}Z"
    for n, left, right in zip(counts, edges, edges[1:], strict=False)
    if n
  ]
  return f'<path d="{"".join(bars)}" fill="#9bd"/>'


def _text(x: float, y: float, text: str, colour: str = "#555") -> str:
  return f'<text x="{x:.1f}" y="{y}" fill="{colour}">{html.escape(text)}</text>'


def _clip(experiment: Experiment) -> tuple[int, int]:
  data = experiment.data
  return data.num_frames, math.prod(data.resolution)


def _grid(experiment: Experiment) -> list[float]:
  """The level at which each step of default sampling starts."""
  config = experiment.sampling
  return [round(float(x), 3) for x in config.levels(config.defaults)[:-1]]
