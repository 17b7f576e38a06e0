"""Do the 95 % intervals hold what they promise? Simulate a grid of cases and write the table.

    python eval/coverage.py --out eval/COVERAGE.md

Rows 20 to 400, rates 0.01 to 0.99, intra-group correlation 0 to 0.4, one, three and five seeds. Exit 1 if a cell covers less than 93 %.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nomoat.cli import run_script
from nomoat.errors import RunFailed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="simulated results a cell (default: 1000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="cells at a time (default: one a core)")
    parser.add_argument("--out", type=Path, help="where the table goes (default: only printed)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from rich.console import Console

    from nomoat.cli import ProgressBar
    from nomoat.io import write_atomically
    from nomoat.stats import coverage

    cells = []
    total = len(coverage.ROWS) * len(coverage.RATES) * len(coverage.CORRELATIONS) * (1 + len(coverage.SEEDS))
    with ProgressBar("cells", total, Console(stderr=True)) as bar:
        for cell in coverage.grid(arguments.trials, processes=arguments.processes):
            cells.append(cell)
            bar.advance(1)
    text = coverage.table(cells)
    print(text)
    if arguments.out:
        write_atomically(arguments.out, f"{HEAD.format(trials=arguments.trials)}\n\n{text}\n")
    low = coverage.failures(cells, arguments.trials)
    if low:
        raise RunFailed(f"{len(low)} cells cover less than {coverage.LOWEST:.0%}, such as {low[0]}")


HEAD = """# Coverage of the intervals

The share of simulated runs whose 95 % interval holds the true value, in per cent: the lowest over rates from 0.01 to 0.99, the rate where
it is met, and the highest. Groups of 3 rows; {trials} simulated results a cell. A cell where no run had groups enough
for an interval says so. Written by `python eval/coverage.py`."""

if __name__ == "__main__":
    run_script(main)
