"""Time our scoring of a finished run's held-out rows beside `model.generate` in batches of eight, and compare the answers.

    python eval/speed.py runs/smollm2-135m-1a2b3c4d
    python eval/speed.py runs/smollm2-135m-1a2b3c4d --rows 64      # the first 64 rows of each arm

Writes runs/bench/scoring.json. Exit codes: 0 done, 1 answers differ that were no tie, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import run_script
from nomoat.errors import RunFailed

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--rows", type=int, help="how many rows of each arm (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for scoring.json (default: runs/bench)")
    found = parser.parse_args()
    if found.rows is not None and found.rows < 1:
        parser.error(f"--rows must be at least 1, not {found.rows}")
    return found


def main() -> int:
    arguments = parse_arguments()
    from nomoat.cli import configure_logging

    configure_logging()
    from rich.console import Console

    from nomoat.benchmarks.generation import TIE, ScoringBench, sentence, summary
    from nomoat.cli import ProgressBar
    from nomoat.io import write_json

    console = Console()
    bench = ScoringBench(arguments.run, ROOT)
    timed = []
    for arm in bench.arms:
        with ProgressBar(f"timing {arm.name}", min(len(arm.rows), arguments.rows or len(arm.rows)), console) as bar:
            one = bench.time_arm(arm, rows=arguments.rows, told=bar.advance)
        timed.append(one)
        console.print(
            f"{one.arm}: {one.rows} rows in {one.seconds:.1f} s, generate {one.generate_seconds:.1f} s, {one.ratio:.2f} x as fast; "
            f"{len(one.differences)} answers differ",
            highlight=False,
        )
    found = summary(timed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "scoring.json", {**found, "device": bench.device.name, "precision": bench.precision})
    console.print(f"\n{sentence(found)}\nwritten to {arguments.out / 'scoring.json'}", highlight=False)
    if found["largest_gap"] >= TIE:
        raise RunFailed(f"an answer differs where the two largest logits are {found['largest_gap']:.1e} apart: that is no tie")
    return 0


if __name__ == "__main__":
    run_script(main)
