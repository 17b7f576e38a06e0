"""Every command of the README is run: as it stands, or at its smallest setting; an unknown one fails here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.stories import ROOT, make_workplace

README = (ROOT / "README.md").read_text()
RUN_BY_CI = {"make test", "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"}  # .ci/run: set-up and the tests themselves


def commands() -> list[str]:
    """The shell lines of the README, comments taken off."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_there_are_commands_and_each_is_a_make_target() -> None:
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"make ([a-z-]+)", listed))
    assert len(commands()) >= 8
    for line in commands():
        words = shlex.split(line)
        assert words[0] == "make" and words[1] in targets, line


def test_files_the_readme_links_to_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of a tiny recipe, made by the README's own `make train` line."""
    folder = make_workplace(tmp_path_factory.mktemp("readme"))
    rows = [{"prompt": f"add {n} to {7 * n} for order number {1000 + 13 * n}", "completion": str(8 * n)} for n in range(200, 224)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [{"question": f"add {n} to {n} for order {n}", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(1000, 1100)]
    write_table(folder / "gsm8k", table)
    (folder / "gsm8k.yaml").write_text(
        "extends: tiny.yaml\n" + hub_block().replace("hub: openai", "path: .").replace("revision:", "# revision:")
    )
    for seed in ("0", "1"):
        make(f'make train RECIPE={folder}/tiny.yaml SET="train.seed={seed} --runs-dir={folder}/runs"')
    return sorted((folder / "runs").iterdir())


def hub_block() -> str:
    """The README's example of rows from the hub."""
    (found,) = [block for block in re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL) if "openai/gsm8k" in block]
    return found


def write_table(folder: Path, records: list[dict[str, str]]) -> None:
    """A folder as a download of a hub set with one subset, main."""
    (folder / "main").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\nconfigs: [{config_name: main, data_files: main/train.jsonl}]\n---\n")
    (folder / "main" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def make(line: str) -> str:
    """Run a make line in the repository, as a user would."""
    done = subprocess.run(
        shlex.split(line), cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def smallest(line: str, runs: list[Path]) -> str:
    """The same line on a run of ours and with the tiny recipe's own settings."""
    line = re.sub(r"RUNS=\"[^\"]*\"", f'RUNS="{runs[0]} {runs[1]}"', line)
    line = re.sub(r"RUN=\S+", f"RUN={runs[0]}", line)
    folder = runs[0].parent.parent
    line = re.sub(r"ROWS=\S+", f"ROWS={folder}/mine.jsonl", line)
    line = line.replace("mine/gsm8k.yaml", f"{folder}/gsm8k.yaml").replace("heldout.jsonl", f"{folder}/mine.jsonl")
    line = line.replace("mine/qwen.yaml", f"{folder}/tiny.yaml")
    if line.startswith("make bench"):
        few = "--rows 4" if "RUN=" in line else "--turns 1 --steps 1 --warmup 1 --arms trainer trl_packed"
        return f'{line} RECIPE={folder}/tiny.yaml SET="{few} --out {folder}/bench"'
    if line.startswith("make memo"):
        return f'{line} SET="--out {folder}/memo.json"'
    if not line.startswith("make train"):
        return line
    stated = re.search(r"SET=\"([^\"]*)\"", line)
    settings = f"{stated[1] if stated else ''} --runs-dir={folder}/more"
    return f'make train RECIPE={folder}/tiny.yaml SET="{settings}"'


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in dict.fromkeys(commands()) if line not in RUN_BY_CI and "smoke" not in line])
def test_the_command_works(line: str, runs: list[Path]) -> None:
    printed = make(smallest(line, runs))
    assert printed.strip()


@pytest.mark.slow
def test_the_smoke_recipe_runs_end_to_end_on_the_real_weights(tmp_path: Path) -> None:
    assert "make train RECIPE=recipes/smoke.yaml" in commands()
    every = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # of the machine's threads
    command = ["make", "train", "RECIPE=recipes/smoke.yaml", f"SET=--runs-dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=every)
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = tmp_path.iterdir()
    report = json.loads((run_dir / "report.json").read_text())
    assert report["adapter"]["gate"]["passed"] and report["adapter"]["base_parameters"] == 134_515_008
    assert set(report["arms"]) == {"base", "few_shot", "adapter"}
