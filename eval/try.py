"""Ask the untouched base and the adapter of a run the same question; both are prompted and decoded as in scoring.

    python eval/try.py runs/smollm2-135m-1a2b3c4d --prompt "Who made you?"
    python eval/try.py latest                                 (the newest run; asks for prompts until an empty line)

Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import configure_logging, run_script, script_parser
from nomoat.runs.directory import resolve_run


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("run", type=Path, help="a run directory made by `make train`, or `latest`")
    parser.add_argument("--prompt", help="one question; without it you are asked for prompts")
    parser.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="longest answer (default: the recipe's)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where to run the models (default: auto)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    configure_logging()
    from nomoat.evaluation.chat import ask_prompts, open_chat

    chat = open_chat(resolve_run(arguments.run), device=arguments.device, max_new_tokens=arguments.max_new_tokens)
    for prompt in [arguments.prompt] if arguments.prompt is not None else ask_prompts():
        for name in ("base", "adapter"):
            print(f"\n{name}:", flush=True)
            chat.stream(prompt, name, show=lambda text: print(text, end="", flush=True))
            print(flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
