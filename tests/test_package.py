"""The package's top level, and the links of its pages."""

from pathlib import Path
import re

import pytest

import lumiere_jax
from lumiere_jax.inference.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_the_pipeline_is_exported():
  assert lumiere_jax.Pipeline is Pipeline
  with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
    _ = lumiere_jax.Pipelines


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
  links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
  local = [link for link in links if "://" not in link]
  assert not [link for link in local if not (page.parent / link).exists()]


def test_paths_in_the_recipes_exist():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  paths = re.findall(r"`((?:lumiere_jax|tests|docs|launch)/[\w./]+)`", text)
  paths = [path for path in paths if "NAME" not in path]
  assert len(paths) > 15
  assert not [path for path in paths if not (ROOT / path).exists()]


def test_names_in_the_recipes_exist():
  """Each name in a recipe is in a file that the recipe names."""
  text = (ROOT / "CONTRIBUTING.md").read_text()
  recipes = text.partition("## Recipes")[2].partition("\n## ")[0]
  parts = re.split(r"\n(?=\*\*A )", recipes)[1:]
  assert len(parts) == 4
  for recipe in parts:
    words = re.findall(r"`([^`]+)`", recipe)
    files = [ROOT / word for word in words if (ROOT / word).is_file()]
    source = "".join(file.read_text() for file in files)
    names = [word for word in words if re.fullmatch(r"[A-Za-z_.]+", word)]
    last = {name.rpartition(".")[2] for name in names}
    missing = {n for n in last if not re.search(rf"\b{n}\b", source)}
    assert not missing, recipe.strip().partition(".")[0]


def test_the_readme_imports_weights_as_the_walkthrough_does():
  lines = (ROOT / "README.md").read_text().splitlines()
  imports = [x for x in lines if x.startswith("python -m lumiere_jax.convert")]
  assert len(imports) == 2
  walkthrough = (ROOT / "docs/weights.md").read_text().splitlines()
  assert set(imports) <= set(walkthrough)
  assert len(lines) <= 150


def test_the_changelog_names_modules_that_exist():
  text = (ROOT / "CHANGELOG.md").read_text()
  table = text.partition("| old import path")[2].partition("\n\n")[0]
  for row in table.splitlines()[2:]:
    _, old, new, _ = row.split("|")
    if "same names" in new:
      new += " ".join(re.findall(r"\.\w+`", old)).replace(".", "`.")
    room = ""
    for name in re.findall(r"`([a-z_.\d]+)`", new):
      name = room + name if name.startswith(".") else name
      room = name.rpartition(".")[0] if "." in name else name
      if "same names" in new:
        room = new.split("`")[1]
      path = ROOT / "lumiere_jax" / name.replace(".", "/")
      assert path.is_dir() or path.with_suffix(".py").is_file(), row
