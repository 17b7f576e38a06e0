"""The terminal summary says everything that matters in 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

from make_run import GATE, RECIPE, ledger_lines, make_run, write_jsonl
from rich.console import Console

from nomoat.reports.build import build_report
from nomoat.reports.summary import print_summary


def printed(run_dir: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(build_report(run_dir), console, where="runs/tiny/report.html")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_prints_verdict_scores_cost_and_where_the_report_is(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    text = printed(run_dir)
    adapter = build_report(run_dir).arms["adapter"].tiers["phrasing"]
    assert adapter is not None and adapter.interval is not None
    assert text.strip().startswith("Unseen phrasings: ")
    for expected in (
        f"{adapter.score:.2f}",
        f"[{adapter.interval[0]:.2f}, {adapter.interval[1]:.2f}]",
        "8 min 30 s",
        "no figure",
        "no rate is known",
        "1.5 GB",
        "9.8 MB",
        "runs/tiny/report.html",
    ):
        assert expected in text


def test_it_fits_80_columns(tmp_path: Path) -> None:
    text = printed(make_run(tmp_path / "run"))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\u2026" not in text, "something was cut off"


def test_too_few_groups_are_said_in_words_and_still_fit(tmp_path: Path) -> None:
    text = printed(make_run(tmp_path / "run", per_family=2))
    assert "(too few groups for an interval)" in " ".join(text.split())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_times_of_a_shared_machine_are_said_to_be_such(tmp_path: Path) -> None:
    shared = make_run(tmp_path / "shared", recipe=f"{RECIPE}\nhardware: {{shared: true}}\n")
    assert "other work ran on the machine" in printed(shared, width=120)
    assert "other work" not in printed(make_run(tmp_path / "alone"))


def test_waiting_for_a_core_is_said_where_it_is_not_small(tmp_path: Path) -> None:
    crowded = make_run(tmp_path / "crowded", ledger=ledger_lines(ran_seconds=3.0, waited_seconds=1.0))
    assert "waited for a CPU for 25% of their runnable time" in " ".join(printed(crowded, width=120).split())
    alone = make_run(tmp_path / "alone", ledger=ledger_lines(ran_seconds=99.0, waited_seconds=1.0))
    assert "for a CPU" not in printed(alone, width=120)


def test_energy_nobody_measured_is_said_to_be_so(tmp_path: Path) -> None:
    lines = [line for line in printed(make_run(tmp_path / "run")).splitlines() if line.startswith("Energy")]
    assert len(lines) == 1 and "not measured" in lines[0]


def test_energy_that_was_measured_is_printed(tmp_path: Path) -> None:
    ledger = ledger_lines(energy_wh=0.5, energy_source="rapl")
    assert "3.5 Wh" in printed(make_run(tmp_path / "run", ledger=ledger))


def test_a_failed_run_starts_with_failed(tmp_path: Path) -> None:
    gate = {"passed": False, "checks": GATE["checks"]}
    assert printed(make_run(tmp_path / "run", gate=gate)).strip().startswith("Failed: ")


def test_a_run_that_never_scored_prints_what_it_spent(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: early\nbase: {path: ./model}\n")
    write_jsonl(tmp_path / "ledger.jsonl", ledger_lines()[:2])
    text = printed(tmp_path)
    assert "ended before its adapter was checked" in text and "10 s" in text


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    for path in (run_dir / "eval").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"rhyme"', '"rh\\u001b[31myme"'))
    assert "\x1b" not in printed(run_dir)


def test_a_reused_arm_shows_what_it_cost_when_it_was_made(tmp_path: Path) -> None:
    cached = {**ledger_lines()[4], "status": "cached", "elapsed_seconds": 0.0, "cost_when_made": {"seconds": 61.0}}
    text = printed(make_run(tmp_path / "run", ledger=[*ledger_lines()[:4], cached]))
    assert "score the base (1 min 01 s)" in text
