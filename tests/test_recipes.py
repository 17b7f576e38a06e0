"""Every recipe on disk loads, states its command in its header, and names pinned sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nomoat.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"smollm2-135m.yaml", "smoke.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_and_its_header_says_how_to_run_it(path: Path) -> None:
    recipe = load_recipe(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("make train" in line for line in header)
    assert recipe.base.revision or recipe.base.sha256 or recipe.base.path
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 30


def test_the_table_of_recipes_names_each_and_says_which_nobody_has_run() -> None:
    table = (ROOT / "recipes" / "README.md").read_text()
    for path in RECIPES:
        assert f"]({path.name})" in table, path.name
        recipe = load_recipe(path)
        unpinned = "unpinned" in (recipe.base.revision, recipe.data.revision)
        assert unpinned <= ("not measured by us" in path.read_text()), path.name
        assert unpinned == ("make pin" in path.read_text()), path.name


def test_the_smoke_recipe_is_the_default_with_less_of_everything() -> None:
    default, smoke = (load_recipe(ROOT / "recipes" / name) for name in ("smollm2-135m.yaml", "smoke.yaml"))
    assert smoke.base == default.base and smoke.lora == default.lora and smoke.data.rows == default.data.rows


def test_another_base_is_another_base_block_and_nothing_else() -> None:
    default, gemma = (load_recipe(ROOT / "recipes" / name).as_dict() for name in ("smollm2-135m.yaml", "gemma-3-270m.yaml"))
    assert {key for key in default if default[key] != gemma[key]} == {"name", "base"}


def test_a_change_to_the_recipe_may_follow_an_option(tmp_path: Path) -> None:
    words = ["nosuch.yaml", "--runs-dir", str(tmp_path), "lora.rank=4"]
    done = subprocess.run([sys.executable, ROOT / "train" / "sft.py", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "there is no recipe nosuch.yaml" in done.stderr
