"""Judge the leaked memo claim by claim, from published reports alone.

    python eval/memo.py                     judge the reports that exist
    python eval/memo.py --missing           make the missing runs first (hours; stop it with Ctrl-C, the same command resumes)
    python eval/memo.py --missing --roles lora,rank1       only those, so that several machines or cores can share the work
    make memo                               the same through make; MISSING=1 for --missing, or MISSING=lora,rank1

Prints each claim with its verdict (supported, refuted, inconclusive, not testable) and its numbers, and writes memo.json and memo.html.
The rules and thresholds are in recipes/memo/claims.yaml and were fixed before the runs; a report made under other ones is refused.
Exit codes: 0 done, 1 a run failed, 2 a report whose numbers do not follow from its rows, or that cannot be judged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import run_script
from nomoat.memo.runs import MADE_ROLES, make_missing_run, missing_runs
from nomoat.memo.verdict import gather, judge_memo

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changes to the missing runs, such as base.accept_license=gemma"
    )
    parser.add_argument("--missing", action="store_true", help="make the runs whose reports are missing first")
    parser.add_argument("--roles", type=lambda text: text.split(","), metavar="A,B", help="make only the missing runs of these roles")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds recipes/ (default: this repository)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/memo"), help="where missing runs are made (default: runs/memo)")
    parser.add_argument("--out", type=Path, help="where memo.json goes (default: recipes/memo/memo.json)")
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    from rich.console import Console

    from nomoat.io import write_atomically, write_json
    from nomoat.memo.views import load_literature, print_verdict, render_memo

    console = Console()
    if arguments.missing:
        for planned in list(missing_runs(arguments.root, arguments.roles or MADE_ROLES)):
            make_missing_run(planned, arguments.root, arguments.runs_dir, arguments.overrides, console)
    verdict = judge_memo(gather(arguments.root), arguments.root)
    out = arguments.out or arguments.root / "recipes" / "memo" / "memo.json"
    write_json(out, verdict.model_dump(mode="json"))
    page = out.with_suffix(".html")
    write_atomically(page, render_memo(verdict, load_literature(arguments.root)))
    print_verdict(verdict, console)
    console.print(f"written: {out}, and as a page: {page}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_script(main)
