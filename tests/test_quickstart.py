"""docs/quickstart.ipynb: every cell runs as it stands."""

import json
import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/quickstart.ipynb"
# Runs the cells one by one, as a kernel does, then checks what they made.
RUN = """
import json, sys
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
  if cell["cell_type"] == "code":
    code = compile("".join(cell["source"]), f"cell {number}", "exec")
    exec(code, names)

video, animated, small = (names[x] for x in ("video", "animated", "small"))
assert video.shape == animated.shape == (16, 128, 128, 3)
assert small.shape == (16, 32, 32, 3)
assert (animated[0] == names["image"]).all()
assert names["strip"](video).size == (8 * 128, 128)
red, green, blue = video.reshape(-1, 3).T.astype(int)
assert (red > green + blue + 50).any() and (blue > red + green).mean() > 0.5
assert len(names["losses"]) == 8 and 0 < min(names["losses"]) < 2
assert (names["workdir"] / "bundle/bundle.json").is_file()
"""


def test_every_cell_runs(tmp_path):
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", RUN, str(NOTEBOOK)],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def test_it_is_stored_without_outputs():
  for cell in json.loads(NOTEBOOK.read_text())["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
