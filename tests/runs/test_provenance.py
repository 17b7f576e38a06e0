"""Whether the code that made a number is the code of its commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nomoat.runs.provenance import code_state


def committed(folder: Path, *paths: str) -> Path:
    """A git checkout with these files."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_code_that_is_not_its_commits_is_said_to_be_so(tmp_path: Path) -> None:
    root = committed(tmp_path, "src/a.py", "recipes/memo/lora.yaml")
    assert code_state(root)["dirty"] is False and len(code_state(root)["commit"]) == 40
    (root / "recipes" / "memo" / "lora.yaml").write_text("2\n")
    assert code_state(root)["dirty"] is True


def test_what_an_earlier_run_wrote_does_not_mark_the_next_one(tmp_path: Path) -> None:
    root = committed(tmp_path, "src/a.py", "recipes/memo/reports/spent.json", "recipes/reference/a.json")
    (root / "recipes" / "memo" / "reports" / "spent.json").write_text("2\n")
    (root / "recipes" / "reference" / "a.json").unlink()
    assert code_state(root)["dirty"] is False
    (root / "src" / "a.py").write_text("2\n")
    assert code_state(root)["dirty"] is True


def test_outside_a_checkout_nothing_is_known(tmp_path: Path) -> None:
    assert code_state(tmp_path) == {"commit": None, "dirty": None}
