"""Write the generated tables of README.md, docs/ and recipes/: from recipes/reference/, recipes/memo/memo.json and the recipe schema.

    python eval/reference.py            # write them
    python eval/reference.py --check    # only say whether they are up to date

Exit codes: 0 done, 1 a table differs from its reports (--check), 2 bad input.
"""

from __future__ import annotations

import argparse

from nomoat.cli import ROOT, run_script, script_parser
from nomoat.errors import RunFailed
from nomoat.reports.readme_tables import (
    fewer_table,
    fill_blocks,
    keys_table,
    precision_table,
    published_runs,
    recipes_table,
    score_table,
)

DEFAULT = "smollm2-135m"


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is not what its reports say")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from nomoat.benchmarks.results import speed_block
    from nomoat.config.load import describe_keys
    from nomoat.io import read_json, write_atomically
    from nomoat.memo.verdict import MemoVerdict
    from nomoat.memo.views import minutes_block, readme_block

    published = published_runs(ROOT / "recipes" / "reference")
    blocks = {"recipes": recipes_table(published.values()), "keys": keys_table(describe_keys())}
    if DEFAULT in published:
        blocks |= {"report": score_table(published[DEFAULT]), "fewer": fewer_table(published[DEFAULT])}
    path = ROOT / "recipes" / "memo" / "memo.json"
    if path.is_file():
        verdict = MemoVerdict.model_validate_json(path.read_bytes())
        blocks |= {"memo": readme_block(verdict), "memo-runs": minutes_block(verdict)}
    speed = ROOT / "recipes" / "reference" / "speed"
    if speed.is_dir():
        blocks["speed"] = speed_block(read_json(speed / "bench.json"), read_json(speed / "scoring.json"))
    precision = ROOT / "recipes" / "reference" / "precision"
    if precision.is_dir():
        blocks["precision"] = precision_table(precision)
    stale = []
    for path in (
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/*.md")),
        ROOT / "recipes" / "README.md",
        ROOT / "recipes" / "memo" / "README.md",
    ):
        old = path.read_text(encoding="utf-8")
        new = fill_blocks(old, blocks)
        if new != old:
            stale.append(path.relative_to(ROOT))
            if not arguments.check:
                write_atomically(path, new)
    if stale and arguments.check:
        raise RunFailed(f"not what the published reports say: {', '.join(map(str, stale))}; run `make reference`")
    print(f"{len(published)} published recipe(s); {'written: ' + ', '.join(map(str, stale)) if stale else 'all tables are up to date'}")
    return 0


if __name__ == "__main__":
    run_script(main)
