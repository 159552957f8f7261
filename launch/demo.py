"""Trains the small cascade from nothing, makes videos, writes a page.

python -m launch.demo [--out=out/demo]

Every stage is a command that can be run by hand; the page shows them.
"""

import os
from pathlib import Path
import shlex
import subprocess
import sys
import time

from absl import app, flags

from lumiere_jax.training.report import RunSummary, write_page

OUT = flags.DEFINE_string("out", "out/demo", "Folder for all that is made.")

STAGES = {
  "t2i": "",
  "base": "t2i",
  "base_real": "base",
  "ssr_image": "",
  "ssr": "ssr_image",
}
"""Stages in order, and the run that each starts from."""

VIDEOS = {
  "text_to_video": ("base", 1, "a large red circle moves right on black"),
  "real": (
    "base_real",
    3,
    "a big grey rabbit comes out of its burrow, stretches and yawns",
  ),
}
"""Name -> the base that makes it, seed and prompt."""


def main(argv: list[str]) -> None:
  """Runs all stages, then all videos, then writes index.html."""
  del argv
  out = Path(OUT.value)
  runs = [train(out, stage, source) for stage, source in STAGES.items()]
  videos = [make_video(out, name, *what) for name, what in VIDEOS.items()]
  write_page(out, "lumiere_jax demo", runs, videos)
  print(f"\nopen {out / 'index.html'}")


def train(out: Path, stage: str, source: str) -> RunSummary:
  """Trains one stage in a process of its own."""
  command = [
    "-m",
    "lumiere_jax.main",
    f"--config=configs/demo.py:{stage}",
    f"--workdir={out / stage}",
  ]
  if source:
    command.append(f"--config.init_from={out / source}")
  line, seconds = run(out, command)
  return RunSummary.read(out / stage, name=stage, command=line, seconds=seconds)


def make_video(
  out: Path, name: str, base: str, seed: int, prompt: str
) -> tuple[str, str, str]:
  """Samples through both stages: (file name, prompt, command)."""
  line, _ = run(
    out,
    [
      "-m",
      "lumiere_jax.sample",
      f"--model={out / base}",
      f"--model={out / 'ssr'}",
      "--task=text_to_video",
      "--num_frames=80",
      f"--prompt={prompt}",
      f"--seed={seed}",
      "--steps=20",
      "--ssr_steps=6",
      "--guidance_scale=4",
      "--ssr_guidance_scale=1",
      f"--out={out / name}.mp4",
      f"--contact_sheet={out / name}.png",
    ],
  )
  return name, prompt, line


def run(out: Path, arguments: list[str]) -> tuple[str, float]:
  """Runs python with `arguments`; returns the command and its seconds."""
  line = shlex.join(["python", *arguments])
  print(f"\n$ {line}", flush=True)
  start = time.monotonic()
  # Stages of one shape are compiled once for all processes.
  cache = {
    "JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
  }
  result = subprocess.run(
    [sys.executable, *arguments], env=os.environ | cache, check=False
  )
  if result.returncode:
    sys.exit(result.returncode)
  return line, time.monotonic() - start


if __name__ == "__main__":
  app.run(main)
