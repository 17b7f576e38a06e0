"""Compare finished runs: scores with intervals, differences row by row, cost, and what was not the same.

    python eval/compare.py runs/a runs/b [--reference runs/b]      two runs, the first one being the reference unless stated
    python eval/compare.py                                         every finished run under runs/
    make compare RUNS="runs/a runs/b"                              the same through make; FORCE=1 for --force

Every report is computed again from its rows and checked against its files first. Runs that answered other held-out rows,
or were scored or decoded differently, are refused (exit 2) with the fields that differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nomoat.comparing import Compared, compare, finished_runs, load_run
from nomoat.comparing_view import print_comparison
from nomoat.errors import NomoatError, run_script


def main() -> int:
    """Load, check, compare, print."""
    options = read_options()
    paths = options.runs or finished_runs(options.runs_dir)
    if not paths:
        raise NomoatError(f"no finished run under {options.runs_dir}: train one first with `make train`, or name the runs to compare")
    found = compare_paths(paths, reference=options.reference, force=options.force)
    print_comparison(found, Console())
    return 0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories, or report.json files (default: all)")
    parser.add_argument("--reference", type=Path, metavar="RUN", help="the run that the others are measured against (default: the first)")
    parser.add_argument("--force", action="store_true", help="compare what is not comparable; every number is labelled so")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where finished runs are (default: runs)")
    return parser.parse_args()


def compare_paths(paths: list[Path], *, reference: Path | None, force: bool) -> Compared:
    """Load each run once, the reference too, and compare them."""
    wanted = list(dict.fromkeys(path.resolve() for path in paths))
    first = reference.resolve() if reference else wanted[0]
    if first not in wanted:
        wanted.insert(0, first)
    return compare([load_run(path) for path in wanted], reference=wanted.index(first), force=force)


if __name__ == "__main__":
    run_script(main)
