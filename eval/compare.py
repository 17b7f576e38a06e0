"""Compare finished runs: scores with intervals, paired differences, cost, and differences in settings.

    python eval/compare.py runs/a runs/b [--reference runs/b]      two runs, the first one being the reference unless stated
    python eval/compare.py                                         every finished run under runs/
    make compare RUNS="runs/a runs/b"                              the same through make; FORCE=1 for --force

Prints a table and writes one page, compare.html. Every report is computed again from its rows and checked against its files first.
Runs that answered other held-out rows, or were scored or decoded differently, are refused with the fields that differ.
Exit codes: 0 done, 1 a run is worse than the reference (only with --fail-on-regression), 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nomoat.cli import run_script, script_parser
from nomoat.errors import NomoatError, RunFailed
from nomoat.io import write_atomically
from nomoat.reports.compare import RunComparison, benchmark_rows, compare, finished_runs, load_run
from nomoat.reports.compare_views import print_comparison, render_comparison
from nomoat.reports.format import change
from nomoat.runs.directory import resolve_run


def main() -> int:
    """Load, check, compare, print."""
    options = read_options()
    paths = [resolve_run(run, options.runs_dir) for run in options.runs] or finished_runs(options.runs_dir)
    if not paths:
        raise NomoatError(f"no finished run under {options.runs_dir}: train one first with `make train`, or name the runs to compare")
    reference = options.reference and resolve_run(options.reference, options.runs_dir)
    paths, comparison = compare_paths(paths, reference=reference, force=options.force)
    page = options.out or options.runs_dir / "compare.html"
    write_atomically(page, render_comparison(comparison, paths))  # before printing: `| head` closes the pipe, and the page should exist
    console = Console()
    print_comparison(comparison, console, benchmark_rows(comparison, paths))
    console.print(f"\nas a page, with the rows where the runs disagree: {page}", highlight=False, soft_wrap=True)
    if options.fail_on_regression:
        refuse_regressions(comparison)
    return 0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories, report.json files, or `latest` (default: all)")
    parser.add_argument("--reference", type=Path, metavar="RUN", help="the run that the others are measured against (default: the first)")
    parser.add_argument("--force", action="store_true", help="compare what is not comparable; every number is labelled so")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit 1 if a run is worse than the reference on any tier")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (default: compare.html in --runs-dir)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where finished runs are (default: runs)")
    return parser.parse_args()


def compare_paths(paths: list[Path], *, reference: Path | None, force: bool) -> tuple[list[Path], RunComparison]:
    """Load each run once, the reference too, and compare them; the paths in the order of the reports."""
    wanted = list(dict.fromkeys(path.resolve() for path in paths))
    first = reference.resolve() if reference else wanted[0]
    if first not in wanted:
        wanted.insert(0, first)
    return wanted, compare([load_run(path) for path in wanted], reference=wanted.index(first), force=force)


def refuse_regressions(comparison: RunComparison) -> None:
    """RunFailed naming each run and tier that is worse than the reference."""
    worse = [
        f"{report.run} on {tier}: {change(one)}"
        for report, differences in zip(comparison.reports, comparison.differences, strict=True)
        for tier, one in differences.items()
        if one.verdict == "worse"
    ]
    if worse:
        raise RunFailed(f"worse than {comparison.reports[comparison.reference].run}:\n  " + "\n  ".join(worse))


if __name__ == "__main__":
    run_script(main)
