"""Check a finished run and answer its held-out rows again, or score it on other rows; nothing of the run is changed.

    python eval/score.py runs/smollm2-135m-1a2b3c4d
    python eval/score.py runs/smollm2-135m-1a2b3c4d --rows mine.jsonl
    python eval/score.py runs/smollm2-135m-1a2b3c4d "eval.arms=[base, few_shot, adapter, merged]"
    python eval/score.py runs/smollm2-135m-1a2b3c4d --adapter somebody/adapter@<40 hex digits>

The first form computes every number of report.json again from its rows, compares eval/*.jsonl by checksum, then loads base and
adapter from disk and answers and scores every held-out row again. The others train nothing either and write another run
directory next to it: for the run's held-out rows or yours, the arms you name, and its adapter, a peft folder or a hub id.
Exit codes: 0 done, 1 other scores on the machine and versions that made them, or an adapter without effect, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nomoat.cli import ROOT, configure_logging, run_script, script_parser
from nomoat.errors import RunFailed
from nomoat.reports.build import checked_report
from nomoat.reports.format import failure_reason
from nomoat.reports.summary import print_summary
from nomoat.runs.directory import resolve_run


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory, or `latest`")
    parser.add_argument("overrides", nargs="*", metavar="eval.key=value", help="changes to the recipe's eval section")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="rows to answer instead (.jsonl, .csv or .parquet)")
    parser.add_argument("--adapter", metavar="FOLDER|ID@REVISION", help="an adapter to score instead: a peft folder, or a hub id")
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", help="where the new directory goes (default: next to the run)")
    return parser.parse_intermixed_args()  # overrides may follow the options


def main() -> int:
    arguments = parse_arguments()
    configure_logging()
    console, run = Console(), resolve_run(arguments.run)
    if arguments.rows or arguments.adapter or arguments.overrides:
        score_elsewhere(run, arguments, console)
    else:
        answer_again(run, console)
    return 0


def score_elsewhere(run: Path, arguments: argparse.Namespace, console: Console) -> None:
    """Other rows, arms or adapter: a new run directory."""
    from nomoat.pipeline.reevaluate import ReevalRequest, plan_reeval, reevaluate

    request = ReevalRequest(arguments.rows, arguments.adapter, tuple(arguments.overrides))
    spec = plan_reeval(run, request, ROOT)
    console.print(spec.run.introduction(), highlight=False, soft_wrap=True)
    gate, folder = reevaluate(spec, arguments.runs_dir or run.resolve().parent, console)
    if not gate.passed:
        raise RunFailed(f"{failure_reason(gate)}; the report is in {folder}")


def answer_again(run: Path, console: Console) -> None:
    """The run's own rows: does its report hold?"""
    from nomoat.pipeline.reevaluate import replay

    report = checked_report(run)
    print_summary(report, console, where=str(run / "report.html"))
    again = replay(run, console)
    console.print(
        f"\nanswered again: {again.same_answers} of {again.rows} answers and {again.same_scores} of {again.rows} scores are the same"
    )
    for difference in again.differences:
        console.print(f"  {difference}", highlight=False)
    if not again.holds:
        raise RunFailed("the report does not hold: same machine and versions, other scores")


if __name__ == "__main__":
    run_script(main)
