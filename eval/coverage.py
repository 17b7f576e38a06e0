"""Check the coverage of the 95 % intervals by simulation and write the table.

    python eval/coverage.py --out eval/COVERAGE.md

20 to 400 rows, rates 0.01 to 0.99, intra-group correlation 0 to 0.4, one, three and five seeds. Exit 1 if a cell covers less than 93 %.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from nomoat.cli import ProgressBar, run_script, script_parser
from nomoat.errors import RunFailed
from nomoat.io import write_atomically
from nomoat.stats import coverage

HEAD = """# Coverage of the intervals

The share of simulated results whose 95 % interval contains the true value, in per cent: the lowest over rates from 0.01 to 0.99, the rate
at which it occurs, and the highest. Groups of 3 rows; {trials} simulated results per cell. Where no result had enough groups for an
interval, the cell says so. Written by `python eval/coverage.py`."""


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="simulated results per cell (default: 1000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="parallel processes (default: one per core)")
    parser.add_argument("--out", type=Path, help="file for the table (default: only printed)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
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
        raise RunFailed(f"{len(low)} cells cover less than {coverage.LOWEST:.0%}; the first: {low[0]}")


if __name__ == "__main__":
    run_script(main)
