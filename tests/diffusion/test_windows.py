import numpy as np
import pytest

from lumiere_jax.diffusion.multidiffusion import window_starts
from lumiere_jax.errors import UserError


def test_windows_of_the_paper():
  # Overlap 2 (App. C), 80 frames; the last window is shifted to end at 80.
  assert window_starts(80, 28, 2) == (0, 26, 52)
  assert window_starts(80, 41, 2) == (0, 39)
  assert window_starts(80, 16, 2) == (0, 14, 28, 42, 56, 64)
  assert window_starts(80, 16, 2, spread=True) == (0, 12, 25, 38, 51, 64)
  assert window_starts(80, 80, 2) == (0,)
  assert window_starts(16, 16, 2, multiple_of=8, spread=True) == (0,)


@pytest.mark.parametrize("spread", [False, True])
def test_windows_cover_every_video_with_the_overlap(spread):
  for frames in range(1, 40):
    for window in range(1, frames + 1):
      for overlap in range(min(window, 4)):
        starts = window_starts(frames, window, overlap, spread=spread)
        steps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == frames - window
        assert np.all(steps > 0) and np.all(steps <= window - overlap)
        # None can be spared: one fewer could not reach so far.
        assert (len(starts) - 2) * (window - overlap) < frames - window or (
          len(starts) == 1
        )
        if spread and len(steps):
          assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("grid", [2, 3, 4])
def test_windows_on_a_grid(grid, spread):
  """As those of a video `grid` times smaller, and no overlap falls short."""
  for frames in range(1, 16):
    for window in range(1, frames + 1):
      for overlap in range((window - 1) * grid + 1):
        starts = window_starts(
          *(frames * grid, window * grid, overlap), spread=spread, grid=grid
        )
        assert starts[0] == 0 and starts[-1] == (frames - window) * grid
        assert all(start % grid == 0 for start in starts)
        steps = np.diff(starts)
        assert np.all(steps > 0) and np.all(steps <= window * grid - overlap)
        small = window_starts(frames, window, -(-overlap // grid), 1, spread)
        assert starts == tuple(start * grid for start in small)


@pytest.mark.parametrize(
  "columns, window, overlap, message",
  [
    (50, 16, 8, "video of 50 columns is not a multiple of 4, .* use 48"),
    (48, 18, 8, "window of 18 columns is not a multiple of 4, .* use 16"),
    (48, 16, 13, "overlap of 13 columns .* use an overlap from 0 to 12"),
  ],
)
def test_grids_that_do_not_fit_are_user_errors(
  columns, window, overlap, message
):
  with pytest.raises(UserError, match=message) as error:
    window_starts(columns, window, overlap, unit="columns", grid=4)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "frames, window, overlap, multiple_of, message",
  [
    (16, 28, 2, 1, "window of 28 frames is longer than the video of 16"),
    (16, 8, 8, 1, "overlap of 8 .* from 0 to 7"),
    (16, 8, -1, 1, "overlap of -1"),
    (80, 30, 2, 8, "factor 8; use 3 x 8 = 24"),
    (80, 5, 2, 8, "factor 8; use 1 x 8 = 8"),
    (80, 0, 2, 1, "window of 0"),
  ],
)
def test_impossible_windows_are_user_errors(
  frames, window, overlap, multiple_of, message
):
  with pytest.raises(UserError, match=message) as error:
    window_starts(frames, window, overlap, multiple_of)
  assert "\n" not in str(error.value)
