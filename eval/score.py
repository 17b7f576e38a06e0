"""Check a finished run's report and answer its held-out rows again; nothing of the run is changed.

    python eval/score.py runs/smollm2-135m-1a2b3c4d

First every number of report.json is computed again from its rows and eval/*.jsonl are compared by checksum; then base and
adapter are loaded from disk and every held-out row is answered and scored again.
Exit codes: 0 the report holds, 1 scores came out otherwise on the machine and versions that made it, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.errors import RunFailed, run_script


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run directory")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from nomoat.quiet import quieten

    quieten()
    from rich.console import Console

    from nomoat import rescoring
    from nomoat.report_view import print_summary

    console = Console()
    report = rescoring.checked_report(arguments.run)
    print_summary(report, console, where=str(arguments.run / "report.html"))
    again = rescoring.score_again(arguments.run, console)
    console.print(
        f"\nanswered again: {again.same_answers} of {again.rows} answers and {again.same_scores} of {again.rows} scores are the same"
    )
    for difference in again.differences:
        console.print(f"  {difference}", highlight=False)
    if not again.holds:
        raise RunFailed("the report does not hold: same machine and versions, other scores")
    return 0


if __name__ == "__main__":
    run_script(main)
