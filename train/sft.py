"""Fine-tune a base with LoRA, check the adapter, score it against the untouched base, and write the report.

    python train/sft.py recipes/smollm2-135m.yaml
    python train/sft.py recipes/smollm2-135m.yaml train.epochs=1 lora.rank=8
    python train/sft.py recipes/smollm2-135m.yaml lora.method=full train.learning_rate=auto

One run directory below runs/ holds everything the run makes; the same command resumes a run that was stopped.
Exit codes: 0 done, 1 the adapter failed its checks, 2 bad input, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nomoat.cli import ROOT, configure_logging, recipe_parser, run_script, still_working
from nomoat.config.load import load_recipe
from nomoat.errors import RunFailed
from nomoat.reports.format import failure_reason


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where run directories are made (default: runs)")
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    recipe = load_recipe(arguments.recipe, arguments.overrides)  # a mistake in it is reported before anything heavy is imported
    configure_logging()
    from nomoat.pipeline.finetune import open_finetune
    from nomoat.pipeline.run_spec import make_run_spec

    console = Console()
    with still_working("reading the rows and fetching the base", console):
        spec = make_run_spec(recipe, ROOT)
    console.print(spec.introduction(), highlight=False, soft_wrap=True)
    with open_finetune(spec, arguments.runs_dir, console) as run:
        base = run.load_base()
        data = run.prepare_data(base)
        trainee = run.attach_adapter(base)
        run.train(trainee, data)
        gate = run.check_adapter(trainee, data)
        del base, trainee
        if gate.passed:
            gate = run.score(gate, data.tokenized)
        run.write_report()
    if not gate.passed:
        raise RunFailed(f"{failure_reason(gate)}; the report is in {run.folder}")
    return 0


if __name__ == "__main__":
    run_script(main)
