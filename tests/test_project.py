"""The project around the code: the lock, the Makefile, the size of the package, its import contract, and modules that stay light."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
PINNED = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][0-9a-z.]*)( ; .+)?$")
LIGHT = ("config", "stats", "scorers", "data", "runs", "reports")  # packages that `--help`, recipe errors and readers of reports wait for
HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "scipy", "pandas", "gguf", "bitsandbytes", "accelerate")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~! ;\[]", one)[0].lower().replace("_", "-") for one in requirements}


def test_every_line_of_the_lock_pins_a_public_version() -> None:
    assert len(LOCK) > 40
    wrong = [line for line in LOCK if not PINNED.match(line)]
    assert wrong == [], "no +local version, path, URL or option: anyone's pip has to find these"


@pytest.mark.parametrize(
    "line", ["torch==2.13.0+cpu", "torch @ https://x.org/t.whl", "./wheels/t.whl", "--index-url https://x.org", "torch", "torch>=2"]
)
def test_the_rule_for_lock_lines_refuses_what_it_should(line: str) -> None:
    assert not PINNED.match(line)


def test_every_dependency_is_locked() -> None:
    wanted = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["dev"]
    assert names(wanted) <= names(LOCK)


def test_the_lock_leaves_the_cuda_packages_to_torch() -> None:
    left_out = set(PYPROJECT["tool"]["uv"]["pip"]["no-emit-package"])
    assert left_out and not left_out & names(LOCK)
    assert {name for name in names(LOCK) if name.startswith(("nvidia-", "cuda-"))} == {"nvidia-ml-py"}


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=folder, env={**clean, **environment}, capture_output=True, text=True)


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


def test_help_is_the_default_and_lists_every_target() -> None:
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", make().stdout, re.MULTILINE))
    assert listed == targets()
    assert listed >= {"help", "train", "eval", "compare", "try", "check", "test", "test-all", "clean", "setup", "lock"}


def test_every_target_is_phony_because_some_are_folders() -> None:
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets() <= phony


@pytest.fixture
def front_door(tmp_path: Path) -> Path:
    """A folder with the Makefile and a .venv whose python prints its arguments."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"\nprintf " %s\\n" "$PYTHONSAFEPATH"\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    return tmp_path


def test_make_train_runs_the_default_recipe(front_door: Path) -> None:
    assert make("train", folder=front_door).stdout.splitlines()[-1] == "<train/sft.py><recipes/smollm2-135m.yaml> 1"


def test_make_train_n_shows_the_command_and_runs_nothing() -> None:
    assert ".venv/bin/python train/sft.py 'recipes/smollm2-135m.yaml'" in make("-n", "train").stdout


def test_overrides_keep_their_quotes(front_door: Path) -> None:
    said = make("train", "RECIPE=recipes/smoke.yaml", "SET=lora.targets=[a,b] data.rows='my file.jsonl'", folder=front_door).stdout
    assert "<train/sft.py><recipes/smoke.yaml><lora.targets=[a,b]><data.rows=my file.jsonl>" in said


ODD_NAMES = ("my runs/a b", 'it\'s "so"', "a, b", "$HOME $(shell touch made) `touch made`", "a;b&c|d>e", "*", "--help", "</start>")


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(
    ("target", "variable", "expected"),
    [
        ("train", "RECIPE", "<train/sft.py><{}> 1"),
        ("plan", "RECIPE", "<train/plan.py><{}> 1"),
        ("pin", "RECIPE", "<train/pin.py><{}> 1"),
        ("eval", "RUN", "<eval/score.py><{}> 1"),
        ("eval", "ROWS", "<eval/score.py><latest><--rows><{}> 1"),
        ("eval", "ADAPTER", "<eval/score.py><latest><--adapter><{}> 1"),
        ("try", "RUN", "<eval/try.py><{}> 1"),
        ("bench", "RUN", "<eval/speed.py><{}> 1"),
        ("compare", "REFERENCE", "<eval/compare.py><--reference><{}> 1"),
    ],
)
def test_a_path_reaches_the_script_as_it_was_typed(front_door: Path, target: str, variable: str, expected: str, name: str) -> None:
    for result in (make(target, f"{variable}={name}", folder=front_door), make(target, folder=front_door, **{variable: name})):
        assert result.stdout.splitlines()[-1] == expected.format(name), result.stderr
    assert not (front_door / "made").exists()


def test_a_path_below_the_home_folder_may_be_written_with_a_tilde(front_door: Path) -> None:
    said = make("train", "RECIPE=~/my recipes/~/a.yaml", folder=front_door, HOME="/home/some one").stdout
    assert "<train/sft.py></home/some one/my recipes/~/a.yaml>" in said


@pytest.mark.parametrize(("target", "variable"), [("compare", "RUNS"), ("audit", "DATA")])
def test_a_list_of_paths_may_quote_the_ones_with_spaces(front_door: Path, target: str, variable: str) -> None:
    assert "<my runs/a b><c><it's> 1" in make(target, f"{variable}='my runs/a b' c \"it's\"", folder=front_door).stdout


def test_the_train_bench_takes_a_recipe_with_spaces(front_door: Path) -> None:
    (front_door / ".venv" / ".bench").touch()
    said = make("bench", "RECIPE=my recipes/a.yaml", "SET=--turns 1", folder=front_door).stdout
    assert "<train/bench.py><my recipes/a.yaml><--turns><1> 1" in said


def test_a_prompt_reaches_the_script_as_it_was_typed(front_door: Path) -> None:
    prompt = 'it\'s "so" $HOME $(shell touch made) `touch made` $$ -- \\n'
    assert f"<eval/try.py><runs/a><--prompt={prompt}>" in make("try", "RUN=runs/a", f"PROMPT={prompt}", folder=front_door).stdout
    assert not (front_door / "made").exists()


@pytest.mark.parametrize(("target", "script"), [("eval", "eval/score.py"), ("try", "eval/try.py")])
def test_without_a_run_the_newest_is_taken(front_door: Path, target: str, script: str) -> None:
    assert f"<{script}><latest> 1" in make(target, folder=front_door).stdout
    assert f"<{script}><latest> 1" in make(target, "RUN=latest", folder=front_door).stdout


def test_compare_takes_runs_and_force(front_door: Path) -> None:
    assert "<eval/compare.py><a><b><--force>" in make("compare", "RUNS=a b", "FORCE=1", folder=front_door).stdout
    assert "<eval/compare.py><--reference><a> 1" in make("compare", "REFERENCE=a", folder=front_door).stdout
    assert "<eval/compare.py> 1" in make("compare", folder=front_door).stdout


def test_the_memo_makes_only_the_roles_that_are_named(front_door: Path) -> None:
    assert "<eval/memo.py><--missing> 1" in make("memo", "MISSING=1", folder=front_door).stdout
    assert "<eval/memo.py><--missing><--roles><lora,full> 1" in make("memo", "MISSING=lora,full", folder=front_door).stdout


def test_an_audit_needs_its_data_and_says_so(front_door: Path) -> None:
    result = make("audit", folder=front_door)
    assert result.returncode == 2 and "make audit DATA=recipes/" in result.stderr


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements.lock"])
def test_a_stale_venv_is_refreshed_before_the_work(front_door: Path, changed: str) -> None:
    ready = front_door / ".venv" / ".ready"
    os.utime(ready, (1, 1))
    os.utime(front_door / ".venv/bin/python", (1, 1))
    for name in ("pyproject.toml", "requirements.lock"):
        os.utime(front_door / name, (2, 2) if name == changed else (1, 1))
    said = make("test", folder=front_door).stdout
    assert said.index("<install><--requirement><requirements.lock>") < said.index("<-m><pytest><-q>")
    assert "install" not in make("test", folder=front_door).stdout, "and only once"


def test_the_cpu_build_is_asked_for_by_its_index_and_the_locked_version(front_door: Path) -> None:
    said = make("setup", "TORCH_INDEX=https://download.pytorch.org/whl/cpu", folder=front_door).stdout
    assert re.search(r"<--index-url><https://download\.pytorch\.org/whl/cpu><torch==[0-9.]+>", said)
    assert said.index("<torch==") < said.index("<--requirement>")


def test_an_old_python_is_refused_in_words(front_door: Path) -> None:
    shutil.rmtree(front_door / ".venv")
    old = front_door / "old-python"
    old.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1)\n$1"\n')
    old.chmod(0o755)
    result = make("setup", "PYTHON=./old-python", folder=front_door)
    assert result.returncode == 2
    assert "./old-python is Python 3.9, nomoat needs 3.11 or newer" in result.stderr
    assert not (front_door / ".venv").exists()


def test_clean_keeps_the_runs(front_door: Path) -> None:
    report = front_door / "runs" / "a" / "report.json"
    for path in (report, front_door / ".mypy_cache" / "x", front_door / "src" / "__pycache__" / "x"):
        path.parent.mkdir(parents=True)
        path.touch()
    make("clean", folder=front_door)
    assert report.exists()
    assert not any((front_door / name).exists() for name in (".venv", ".mypy_cache", "src/__pycache__"))


def test_the_package_keeps_its_size() -> None:
    files = sorted((ROOT / "src" / "nomoat").rglob("*.py"))
    lines = sum(len(path.read_text().splitlines()) for path in files)
    folders = Counter(path.parent.name for path in files if path.name != "__init__.py")
    assert len(folders) > 10 and len(files) <= 90 and lines <= 13_500
    assert {folder: count for folder, count in folders.items() if count > 14} == {}


INSIDE = "def planted() -> None:\n    "
PLANTED = {
    "torch in a report": ("reports/format.py", "import torch", "nomoat.reports.format -> torch"),
    "torch in a report, inside a function": ("reports/format.py", f"{INSIDE}import torch", "nomoat.reports.format -> torch"),
    "peft in a module that reports import": ("io.py", "import peft", "nomoat.io -> peft"),
    "upwards": ("stats/paired.py", "from nomoat.evaluation import arms", "nomoat.stats.paired -> nomoat.evaluation.arms"),
    "upwards, inside a function": ("errors.py", f"{INSIDE}import nomoat.io", "nomoat.errors -> nomoat.io"),
    "between leaves": ("memo/evidence.py", "import nomoat.planning.plan", "nomoat.memo.evidence -> nomoat.planning.plan"),
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml on the package in `folder`/src."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", str(ROOT / "pyproject.toml")]
    own = {**os.environ, "PYTHONPATH": str(folder / "src")}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)


def test_the_import_contract_is_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("planted", PLANTED)
def test_a_forbidden_import_breaks_the_contract(tmp_path: Path, planted: str) -> None:
    name, line, expected = PLANTED[planted]
    shutil.copytree(ROOT / "src" / "nomoat", tmp_path / "src" / "nomoat", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "src" / "nomoat" / name
    module.write_text(f"{module.read_text()}\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and expected in " ".join(done.stdout.split()), done.stdout


def test_light_modules_do_not_load_heavy_libraries() -> None:
    files = [path for name in LIGHT for path in (ROOT / "src" / "nomoat" / name).glob("*.py")] + list(
        (ROOT / "src" / "nomoat").glob("*.py")
    )
    modules = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert {"nomoat.config.schema", "nomoat.errors", "nomoat.reports"} <= set(modules)
    imports = "".join(f"import {name}\n" for name in modules)
    code = f"{imports}import sys\nprint(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("script", ["memo", "compare", "reference"])
def test_reading_reports_and_judging_them_needs_no_torch(script: str, tmp_path: Path) -> None:
    """The imports of the script, and for the memo and the tables what it does as well."""
    options = {"memo": ["--out", f"{tmp_path}/memo.json"], "compare": ["--help"], "reference": ["--check"]}[script]
    command = [sys.executable, "-X", "importtime", str(ROOT / "eval" / f"{script}.py"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "nomoat.errors" in imported and not imported & {"torch", "transformers", "peft"}
