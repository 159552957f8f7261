"""Runs the commands of README and docs of an older commit in two trees.

python -m tests.commands --revision=f301370 --videos=DIR --out=out/commands

Each command runs at that commit and at HEAD, in clones of their own, on small
stand-ins for what a user would bring. The table shows the exit status and how
many files each wrote. Exits with 1 where a command fails only in the newer
tree. A command whose result is in --out does not run again.
"""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time

from absl import app, flags

_REVISION = flags.DEFINE_string("revision", "f301370", "The older commit.")
_VIDEOS = flags.DEFINE_string("videos", None, "A folder of clips.")
_OUT = flags.DEFINE_string("out", "out/commands", "Folder of results.")

# Commands that cannot run on stand-ins, and why.
_SKIP = {
  r"if128|temporal=configs/base.py|out/start": "the full networks of IF",
  r"config=configs/base.py --workdir|^launch/|xm_launch": "needs a cloud",
  r"gs://|s3://|prepare_beam|requirements-|out/prepared.*48": "make beam",
  r"^make|pip install": "a target of make, run on its own",
  r"lumiere_jax\.app|benchmarks": "a server, or a measurement",
  r"--topology=": "needs the TPU compiler",
  r"SOURCE|STYLE_DIR|from_pretrained\(|^pipelines": "no command as it stands",
}
_FEW = {
  "main": "--config.train.steps=2 --config.train.batch_size=2"
  " --config.train.warmup_steps=1",
  "sample": "--steps=2",
  "evaluate": "--count=1",
}
_SSR = "--config=configs/ssr.py:tiny --config.init_from=scratch"


def commands(revision: str) -> list[tuple[str, str]]:
  """(file, command) of each code block, in order, with shell variables set."""

  def git(*args: str) -> str:
    return subprocess.run(
      ["git", *args], check=True, capture_output=True, text=True
    ).stdout

  found = [("", f"python -m lumiere_jax.main {_SSR} --workdir=out/ssr")]
  for name in git("ls-tree", "-r", "--name-only", revision).split():
    if not re.fullmatch(r"README\.md|docs/\w+\.md", name):
      continue
    variables: dict[str, str] = {}
    text = git("show", f"{revision}:{name}")
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
      for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+", " ", line.strip())
        variables |= re.findall(r'^([A-Z]+)="?([^";#]+?)"?(?=;|$| #)', line)
        if re.match(r"(\.venv/bin/)?(python|make|pip|launch/\S+) ", line):
          for key, value in variables.items():
            line = line.replace(f"${key}", value)
          found.append((name, line.split(" # ")[0].strip()))
  return found


def on_stand_ins(command: str, assets: Path) -> str:
  """The command with a user's weights and videos replaced, and few steps."""
  videos = str(Path(_VIDEOS.value).resolve())
  for name, place in {
    "IF-II-L": assets / "IF-II",
    "IF-I-XL": assets / "IF-I",
    "T5-XXL": assets / "T5",
    "DIR_OF_VIDEOS": videos,
    "=VIDEOS": f"={videos}",
  }.items():
    command = command.replace(name, str(place))
  command = re.sub(r"^(\.venv/bin/)?python", sys.executable, command)
  module = re.search(r"lumiere_jax\.(\w+)|launch/local", command)
  few = _FEW.get((module.group(1) or "main") if module else "", "")
  return f"{command} {few}".strip()


def run(command: str, tree: Path) -> tuple[int, int]:
  """Exit status (124: 15 minutes passed) and number of written files."""
  workdir = re.search(r"--workdir=(\S+)", command)
  if workdir:
    shutil.rmtree(tree / workdir.group(1), ignore_errors=True)
  devices = "2" if "fsdp=2" in command or "--mesh=1,1,2" in command else "1"
  start = time.time()
  with (tree / "commands.log").open("a") as log:
    log.write(f"\n$ {command}\n")
    log.flush()
    try:
      status = subprocess.run(
        command,
        shell=True,
        cwd=tree,
        stdout=log,
        stderr=log,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": devices},
        timeout=900,
      ).returncode
    except subprocess.TimeoutExpired:
      status = 124
  written = (
    path
    for place in (tree / "out", tree / "docs", tree)
    for path in (place.glob("*") if place == tree else place.rglob("*"))
  )
  return status, sum(
    p.is_file() and p.suffix != ".log" and p.stat().st_mtime >= start
    for p in written
  )


def results_of(revision: str, out: Path, assets: Path) -> dict[str, list]:
  """Command -> [status, files], run in a clone of `revision`."""
  file, tree = out / f"{revision}.json", out / revision
  results = json.loads(file.read_text()) if file.exists() else {}
  if not tree.exists():
    subprocess.run(["git", "clone", "-q", ".", tree], check=True)
    subprocess.run(["git", "checkout", "-q", revision], cwd=tree, check=True)
  for name, command in commands(_REVISION.value):
    key = f"{name}: {command}"
    if key in results:
      continue
    why = [v for k, v in _SKIP.items() if re.search(k, command)]
    if why:
      results[key] = ["skipped", why[0]]
    else:
      results[key] = list(run(on_stand_ins(command, assets), tree))
    file.write_text(json.dumps(results, indent=1))
    print(revision, *results[key], command[:120], flush=True)
  return results


def main(_: list[str]) -> None:
  out = Path(_OUT.value).resolve()
  assets = out / "stand_ins"
  subprocess.run(
    [sys.executable, "-m", "tests.stand_ins", f"--out={assets}"], check=True
  )
  head = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
  ).stdout.strip()
  old, new = (results_of(r, out, assets) for r in (_REVISION.value, head))
  worse = [k for k in old if old[k][0] == 0 and new[k][0] != 0]
  both = [k for k in old if old[k][0] == 0 == new[k][0]]
  print(f"{len(both)} work in both trees; fail only in the newer: {worse}")
  for key in both:
    if old[key] != new[key]:
      print(f"files {old[key][1]} -> {new[key][1]}: {key}")
  sys.exit(bool(worse))


if __name__ == "__main__":
  flags.mark_flag_as_required("videos")
  app.run(main)
