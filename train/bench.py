"""Compare a training step of ours with transformers.Trainer and TRL, on the same rows, steps, base and adapter.

    python train/bench.py                                          # all four arms
    python train/bench.py recipes/smollm2-135m.yaml --arms ours trainer --turns 3

Arms take turns, each in its own process, so more memory is needed than for one training (about 10 GB for the default recipe). Where
bfloat16 is emulated, trl_default takes most of the time. TRL is optional: .venv/bin/pip install -e '.[bench]'.
Writes bench.json and bench.svg. Exit codes: 0 done, 1 an arm failed or did other work than ours, 2 bad input.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from nomoat.benchmarks.results import ARMS, arms_table, draw
from nomoat.cli import ROOT, configure_logging, recipe_parser, run_script
from nomoat.config.load import load_recipe
from nomoat.errors import NomoatError, RunFailed
from nomoat.io import write_json


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__, default=ROOT / "recipes" / "smollm2-135m.yaml")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which arms take part (default: all); ours always")
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each arm (default: 7)")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps in each turn (default: 6)")
    parser.add_argument("--warmup", type=int, default=6, help="steps before the first timed turn (default: 6)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for bench.json and bench.svg (default: runs/bench)")
    arguments = parser.parse_intermixed_args()
    for name in ("turns", "steps", "warmup"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    arms = [name for name in ARMS if name == "ours" or name in arguments.arms]
    if len(arms) == 1:
        raise NomoatError("--arms: name at least one arm besides ours, for example --arms trainer")
    missing = [name for name in arms if name.startswith("trl") and find_spec("trl") is None]
    if missing:
        raise NomoatError(f"{' and '.join(missing)}: TRL is not installed; run `.venv/bin/pip install -e '.[bench]'` or add --arms trainer")
    recipe = load_recipe(arguments.recipe, arguments.overrides)  # a mistake in it is reported before anything heavy is imported
    configure_logging()
    from nomoat.benchmarks.training import make_work, run_bench

    console = Console()
    work = make_work(recipe, ROOT, turns=arguments.turns, steps_per_turn=arguments.steps, warmup_steps=arguments.warmup)
    record = run_bench(work, ROOT, arms, console)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "bench.json", record)
    draw(record, arguments.out / "bench.svg")
    print(f"{arms_table(record)}\n\nwritten to {arguments.out / 'bench.json'}")
    if record["not_the_same_work"]:
        raise RunFailed("these arms did not do the same work:\n  " + "\n  ".join(record["not_the_same_work"]))
    return 0


if __name__ == "__main__":
    run_script(main)
