"""Compare our scoring of a finished run's held-out rows with `model.generate` at batch size 8: the time, and the answers.

    python eval/speed.py runs/smollm2-135m-1a2b3c4d
    python eval/speed.py runs/smollm2-135m-1a2b3c4d --rows 64      # the first 64 rows of each arm

Writes runs/bench/scoring.json. Exit codes: 0 done, 1 answers differ by more than a tie of two logits, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nomoat.cli import ROOT, ProgressBar, configure_logging, run_script, script_parser
from nomoat.errors import RunFailed
from nomoat.io import write_json


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--rows", type=int, help="how many rows of each arm (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for scoring.json (default: runs/bench)")
    arguments = parser.parse_args()
    if arguments.rows is not None and arguments.rows < 1:
        parser.error(f"--rows must be at least 1, not {arguments.rows}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    configure_logging()
    from nomoat.benchmarks.generation import TIE, ScoringBench, summary

    console = Console()
    bench = ScoringBench(arguments.run, ROOT)
    timed = []
    for arm in bench.arms:
        with ProgressBar(f"timing {arm.name}", min(len(arm.rows), arguments.rows or len(arm.rows)), console) as bar:
            entry = bench.time_arm(arm, rows=arguments.rows, on_rows=bar.advance)
        timed.append(entry)
        print(
            f"{arm.name}: {entry['rows']} rows in {entry['seconds']:.1f} s, model.generate {entry['generate_seconds']:.1f} s, "
            f"{entry['ratio']:.2f}x faster; {len(entry['differences'])} answers differ"
        )
    result = summary(timed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "scoring.json", {**result, "device": bench.device.name, "precision": bench.precision})
    print(
        f"\nall arms: {result['ratio']:.1f}x faster than model.generate at batch size 8; {result['identical']:.2%} of {result['rows']:,} "
        f"answers identical, the others within {result['largest_gap']:.1e} of a tie\nwritten to {arguments.out / 'scoring.json'}"
    )
    if result["largest_gap"] >= TIE:
        raise RunFailed(f"an answer differs where the two largest logits are {result['largest_gap']:.1e} apart, more than a tie ({TIE})")
    return 0


if __name__ == "__main__":
    run_script(main)
