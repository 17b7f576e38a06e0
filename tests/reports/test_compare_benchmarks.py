"""Standard benchmarks of several runs: paired on documents where both were asked the same, else said why not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run
from rich.console import Console

from nomoat.io import write_jsonl
from nomoat.reports.build import build_report, write_report
from nomoat.reports.compare import BenchmarkRow, RunComparison, benchmark_rows, compare, load_run
from nomoat.reports.compare_views import print_comparison, render_comparison
from nomoat.reports.schema import Benchmark
from nomoat.stats.paired import paired_difference

DOCUMENTS = 40
TASK = {"version": 1.0, "num_fewshot": 0, "higher_is_better": {"acc": True}, "sha256": "a" * 64}
FIRST = [float(n % 2 == 0) for n in range(DOCUMENTS)]
SECOND = [float(n % 8 == 0) for n in range(DOCUMENTS)]


def finished(folder: Path, name: str, scores: list[float] | None, **task: Any) -> Path:
    run_dir = make_run(folder / name)
    if scores is not None:
        asked = {"lm_eval": "0.4.13", "chat_template": True, "limit": None, "tasks": {"arc": {**TASK, **task}}}
        (run_dir / "eval" / "harness.json").write_text(json.dumps(asked))
        about = {"task": "arc", "metric": "acc", "filter": "none"}
        write_jsonl(
            run_dir / "eval" / "harness.jsonl",
            [{**about, "document": str(n), "base": 0.0, "adapter": score} for n, score in enumerate(scores)],
        )
    write_report(build_report(run_dir), run_dir / "report.json")
    return run_dir


def compared(*paths: Path) -> tuple[RunComparison, list[BenchmarkRow]]:
    found = compare([load_run(path) for path in paths])
    return found, benchmark_rows(found, paths)


def test_adapters_are_paired_document_by_document(tmp_path: Path) -> None:
    found, (row,) = compared(finished(tmp_path, "first", FIRST), finished(tmp_path, "second", SECOND))
    assert [one and one.adapter for one in row.scores] == [0.5, 0.125] and row.differences[0] is None
    difference = row.differences[1]
    expected = paired_difference(SECOND, FIRST, [""] * DOCUMENTS, range(DOCUMENTS))
    assert isinstance(difference, Benchmark) and difference.difference == -0.375 and difference.verdict == "worse"
    assert difference.interval == pytest.approx(expected.interval)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_comparison(found, console, [row])
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue()
    assert "standard benchmarks" in lines and "-0.38" in lines and max(map(len, lines.splitlines())) <= 80


@pytest.mark.parametrize(
    ("scores", "task", "said"),
    [(SECOND, {"sha256": "b" * 64}, "asked otherwise"), (SECOND, {"version": 2.0}, "asked otherwise"), (None, {}, None)],
)
def test_no_difference_without_the_same_questions(
    tmp_path: Path, scores: list[float] | None, task: dict[str, Any], said: str | None
) -> None:
    paths = finished(tmp_path, "first", FIRST), finished(tmp_path, "second", scores, **task)
    found, (row,) = compared(*paths)
    assert row.differences == (None, said) and (row.scores[1] is None) == (scores is None)
    page = render_comparison(found, paths)
    assert "Standard benchmarks" in page and (said is None or said in page)


def test_a_report_alone_has_its_scores_but_no_difference(tmp_path: Path) -> None:
    first, second = finished(tmp_path, "first", FIRST), finished(tmp_path, "second", SECOND)
    _, (row,) = compared(first, second / "report.json")
    assert row.scores[1] is not None and row.differences[1] == "only its report is here"


def test_runs_without_benchmarks_have_no_such_block(tmp_path: Path) -> None:
    paths = finished(tmp_path, "first", None), finished(tmp_path, "second", None)
    found, rows = compared(*paths)
    assert rows == [] and "Standard benchmarks" not in render_comparison(found, paths)
