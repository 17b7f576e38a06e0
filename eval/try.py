"""Ask the untouched base and the adapter of a run the same question, side by side, rendered as in scoring.

python eval/try.py runs/smollm2-135m-1a2b3c4d --prompt "Who made you?"
python eval/try.py runs/smollm2-135m-1a2b3c4d            (asks for prompts until an empty line)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.cli import run_script
from nomoat.evaluation.chat import ask_prompts, open_chat


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory made by `make train`")
    parser.add_argument("--prompt", help="one question; without it you are asked")
    parser.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="longest answer (default: the recipe's)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where to run it (default: auto)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from nomoat.cli import configure_logging

    configure_logging()

    chat = open_chat(arguments.run, device=arguments.device, max_new_tokens=arguments.max_new_tokens)
    prompts = [arguments.prompt] if arguments.prompt is not None else ask_prompts()
    for prompt in prompts:
        for name in ("base", "adapter"):
            print(f"\n{name}:", flush=True)
            chat.stream(prompt, name, show=lambda text: print(text, end="", flush=True))
            print(flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
