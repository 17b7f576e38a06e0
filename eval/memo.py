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

from rich.console import Console

from nomoat.cli import ROOT, run_script, script_parser
from nomoat.io import write_atomically, write_json
from nomoat.memo.verdict import gather, judge_memo
from nomoat.memo.views import load_literature, print_verdict, render_memo


def main() -> None:
    """Make what is missing, judge, write, print."""
    options = read_options()
    console = Console()
    if options.missing:
        from nomoat.memo.runs import MADE_ROLES, make_missing_run, missing_runs  # imports torch, which judging does not need

        for planned in list(missing_runs(options.root, options.roles or MADE_ROLES)):
            make_missing_run(planned, options.root, options.runs_dir, options.overrides, console)
    verdict = judge_memo(gather(options.root), options.root)
    out = options.out or options.root / "recipes" / "memo" / "memo.json"
    page = out.with_suffix(".html")
    write_json(out, verdict.model_dump(mode="json"))
    write_atomically(page, render_memo(verdict, load_literature(options.root)))
    print_verdict(verdict, console)
    console.print(f"written: {out}, and as a page: {page}", highlight=False, soft_wrap=True)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changes to the missing runs, such as base.accept_license=gemma"
    )
    parser.add_argument("--missing", action="store_true", help="make the runs whose reports are missing first")
    parser.add_argument("--roles", type=lambda text: text.split(","), metavar="A,B", help="make only the missing runs of these roles")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds recipes/ (default: this repository)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/memo"), help="where missing runs are made (default: runs/memo)")
    parser.add_argument("--out", type=Path, help="where memo.json goes (default: recipes/memo/memo.json)")
    return parser.parse_intermixed_args()  # an override may follow an option


if __name__ == "__main__":
    run_script(main)
