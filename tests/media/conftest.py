import pytest

from lumiere_jax.media import container


@pytest.fixture
def decoded(monkeypatch):
  """All frames that any video track decodes."""
  found, frames = [], container.Track.frames

  def recorded(track):
    for item in frames(track):
      found.append(item)
      yield item

  monkeypatch.setattr(container.Track, "frames", recorded)
  return found
