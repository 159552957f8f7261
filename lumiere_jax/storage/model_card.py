"""The README.md of a bundle: what the Hugging Face hub shows of it."""

from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage.atomic import writing

NAME = "README.md"


_MARK = (
  "<!-- Written by lumiere_jax; without this line it is left as it is. -->"
)


def write_card(bundle: bundles.Bundle) -> None:
  """Writes the card of a bundle, unless somebody has made it their own.

  Raises:
    UserError: it cannot be written.
  """
  path = bundle.folder / NAME
  if path.exists() and _MARK not in path.read_text(errors="replace"):
    return
  with writing(path) as file:
    file.write(text_of(bundle).encode())


def text_of(bundle: bundles.Bundle) -> str:
  """The card: what is in the bundle, under which licence, how it is used."""
  stages = {k: p.meta for k, p in bundle.parts.items() if k != bundles.TEXT}
  rows = [
    f"| {name} | {_clips(meta['video'])} | {meta.get('trained_on', '')} "
    f"| {meta.get('licence', 'not stated')} |"
    for name, meta in stages.items()
  ]
  text = bundle.parts.get(bundles.TEXT)
  encoder = "none: add a bundle that has one"
  if text:
    encoder = f"T5 v1.1, {text.meta['config']['d_model']} wide"
  images = all(meta["video"]["num_frames"] == 1 for meta in stages.values())
  task = "text_to_image" if stages and images else "text_to_video"
  usage = (
    f"python -m lumiere_jax.sample --model={bundle.folder.name} "
    f'--task={task} --prompt="..."'
  )
  return f"""---
library_name: lumiere_jax
pipeline_tag: {task.replace("_", "-")}
---
{_MARK}

| stage | makes | trained on | licence |
|---|---|---|---|
{chr(10).join(rows)}

Text encoder: {encoder}.

```
{usage}
```
"""


def _clips(video: dict) -> str:
  height, width = video["resolution"]
  frames = video["num_frames"]
  if frames == 1:
    return f"pictures of {width}x{height}"
  return f"{frames} frames of {width}x{height}, {video['fps']:g} a second"
