"""The folder picture holds: rooms import only from the floors below."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = [
  {"errors"},
  {"options"},
  {"typing"},
  {"parallel"},
  {"storage", "toy_scenes"},
  {"media"},
  {"diffusion", "models"},
  {"stages"},
  {"data"},
  {"inference"},
  {"training"},
  {"evals", "conversion"},
  {"contrib"},
]
HEIGHT = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / "lumiere_jax").rglob("*.py"))


def room(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT / "lumiere_jax").with_suffix("").parts
  return parts[0]


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "lumiere_jax":
        yield from (alias.name for alias in node.names)
      elif node.module.startswith("lumiere_jax."):
        yield node.module.split(".")[1]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
      yield from (n.split(".")[1] for n in names if n[:12] == "lumiere_jax.")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_from_below(path):
  here = room(path)
  for other in imports(path):
    if here == other or here not in HEIGHT:  # entry modules see everything
      continue
    assert other in HEIGHT, f"{here} imports the entry module {other}"
    assert HEIGHT[other] < HEIGHT[here], f"{here} imports {other}"


def test_every_room_has_a_floor():
  top = ROOT / "lumiere_jax"
  rooms = {p.relative_to(top).parts[0] for p in top.glob("*/**/*.py")}
  assert rooms <= HEIGHT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle(path):
  source = path.read_text()
  assert "import pickle" not in source
  assert "allow_pickle=True" not in source
