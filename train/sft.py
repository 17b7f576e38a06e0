"""Fine-tune a base with LoRA, prove the adapter real, score it against the untouched base, and write the report.

    python train/sft.py recipes/smollm2-135m.yaml
    python train/sft.py recipes/smollm2-135m.yaml train.epochs=1 lora.rank=8
    python train/sft.py recipes/smollm2-135m.yaml lora.method=full train.learning_rate=auto

One run directory below runs/ holds everything that was made; the same command resumes a run that was stopped.
Exit codes: 0 done, 1 the adapter failed its gate, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import run_script
from nomoat.errors import RunFailed
from nomoat.pipeline.finetune import open_finetune
from nomoat.pipeline.run_spec import make_run_spec
from nomoat.reports.format import failure_reason

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe, such as recipes/smollm2-135m.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe, such as train.learning_rate=5e-4")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where run directories are made (default: runs)")
    return parser.parse_intermixed_args()  # a change may follow an option


def main() -> int:
    arguments = parse_arguments()
    from nomoat.config.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)  # a mistake in it is told before anything heavy is imported

    from nomoat.cli import configure_logging

    configure_logging()
    from rich.console import Console

    console = Console()
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
