"""The base conditioned on a masked video and a mask: one model for
image-to-video, extension, inpainting, outpainting and cinemagraphs (Lumiere,
section 4.2).

full: the base fine-tuned on a mix of masks, for the same slice as base.py. The
  paper gives neither masks nor steps; these are ours. Never run at this scale.
  Needs --config.init_from=DIR (a trained base), --config.text.weights=DIR and
  --config.data.path=DIR.
ssr: pixel-conditioned super-resolution, from a trained ssr. Never run at this
  scale.
tiny, ssr_tiny: a minute on a CPU; need --config.init_from=DIR or =scratch.

python -m lumiere_jax.main --config=configs/conditional.py:tiny \
    --config.init_from=out/base --workdir=out/conditional
"""

from configs import base, common, ssr
from lumiere_jax.training.config import Experiment, PreviewConfig

TRAINABLE = "temporal_|cond_in"

# The most common tasks have the largest weights: image-to-video, unconditional
# and inpainting.
MASKS = (
  "first_frame:4 none:2 random_boxes:2 moving_boxes:2 border:2 region:2 "
  "first_k:2 first_last:1 random_frames:1 everything:1"
)

PREVIEW = PreviewConfig(every=10, steps=10, clips=4)


def conditional(start: Experiment, **changes) -> Experiment:
  """The pixel-conditioned experiment that fine-tunes `start`."""
  start = common.replace(
    start,
    model={"cond_channels": 4},
    data={"masks": MASKS},
    train={"trainable": TRAINABLE},
  )
  return common.replace(start, **changes)


LONG = {"steps": 100_000, "learning_rate": 5e-5}
FULL = conditional(base.FULL, stage="conditional", train=LONG)
TINY = conditional(base.TINY, stage="conditional", preview=PREVIEW)
SSR = conditional(ssr.FULL, train=LONG)
SSR_TINY = conditional(ssr.TINY, preview=PREVIEW)


def get_config(size: str = "full"):
  return common.choose(
    size, {"full": FULL, "tiny": TINY, "ssr": SSR, "ssr_tiny": SSR_TINY}
  )
