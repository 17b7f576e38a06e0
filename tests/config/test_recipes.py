"""Every recipe on disk loads, states its command in its header, and names pinned sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nomoat.config.load import load_recipe
from nomoat.data.examples import load_shipped_set
from nomoat.memo.evidence import NEW_FAMILIES, load_claims

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.name != "claims.yaml")


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


def test_the_readme_of_a_folder_lists_its_recipes_and_an_unpinned_one_says_that_it_was_not_measured() -> None:
    for path in RECIPES:
        assert f"]({path.name})" in (path.parent / "README.md").read_text(), path.name
        recipe = load_recipe(path)
        unpinned = "unpinned" in (recipe.base.revision, recipe.data.revision)
        assert unpinned <= ("not measured" in path.read_text()), path.name
        assert unpinned == ("make pin" in path.read_text()), path.name


def test_the_memos_recipes_are_the_roles_that_its_claims_need() -> None:
    roles = {path.stem for path in (ROOT / "recipes" / "memo").glob("*.yaml")}
    assert {role for claim in load_claims(ROOT) for role in claim.runs} - {"default", "gemma"} <= roles, "those two are separate recipes"
    trained = {name: load_recipe(ROOT / "recipes" / "memo" / f"{name}.yaml").data.families for name in ("a", "b", "b_on_a")}
    assert trained["b"] == trained["b_on_a"] == NEW_FAMILIES and not set(trained["a"] or ()) & set(NEW_FAMILIES)
    every = {row.family for row in load_shipped_set("desk", ROOT).train}
    assert {*(trained["a"] or ()), *NEW_FAMILIES} == every
    lora, default = (load_recipe(ROOT / "recipes" / name).data.fraction for name in ("memo/lora.yaml", "smollm2-135m.yaml"))
    assert lora == default / 2


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
