"""A finished run's base and adapter, loaded to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.beginnings import Question
from nomoat.conversation import Conversation
from nomoat.errors import NomoatError
from nomoat.generation import Generator
from nomoat.recipe import Recipe
from nomoat.recipe_file import load_recipe


@dataclass(frozen=True)
class Pair:
    """The model with the adapter attached, and the base: the same model with the adapter switched off, unless it was trained in full."""

    model: Any
    base: Any
    conversation: Conversation
    max_new_tokens: int
    system: str | None

    def stream(self, prompt: str, arm: str, show: Callable[[str], None]) -> str:
        """Answer with `base` or `adapter`, passing text to `show` as it comes; returns the whole answer."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        ids = self.conversation.prompt_ids([*turns, {"role": "user", "content": prompt}])
        question = Question("asked", ids, self.conversation.completion_ids(""))
        seen: list[int] = []
        shown = ""

        def on_token(token: int) -> None:
            nonlocal shown
            seen.append(token)
            text = self.conversation.decode(seen)
            if not text.endswith("\ufffd"):  # half a character: the rest comes with the next token
                show(text[len(shown) :])
                shown = text

        model = self.model if arm == "adapter" else self.base
        with nullcontext() if arm == "adapter" or self.base is not self.model else model.disable_adapter():
            Generator(model, self.conversation, max_new_tokens=self.max_new_tokens).answer([question], on_token)
        return self.conversation.decode(seen)


def load_pair(run_dir: Path, *, device: str, max_new_tokens: int | None) -> Pair:
    """The run's base and adapter in the precision of scoring."""
    from nomoat import adapters, bases, devices
    from nomoat.packed_linear import pack_linears

    recipe = run_recipe(run_dir)
    place = devices.choose_device(recipe.hardware.model_copy(update={"device": device}))
    precision = devices.scoring_precision(devices.training_precision(recipe, place), place)
    files = bases.fetch_base(recipe.base)
    base = bases.load_model(files, precision=precision, device=place.kind)
    model = pack_linears(adapters.load_adapter(base, run_dir / "adapter"))
    base = model if adapters.is_adapted(model) else pack_linears(bases.load_model(files, precision=precision, device=place.kind))
    conversation = Conversation(bases.load_tokenizer(files))
    return Pair(model, base, conversation, max_new_tokens or recipe.eval.max_new_tokens, common_system(run_dir))


def run_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe of a run directory."""
    if not (run_dir / "recipe.yaml").is_file():
        raise NomoatError(f"{run_dir} is not a run directory (no recipe.yaml in it); runs are made by `make train` below runs/")
    if not (run_dir / "adapter").is_dir():
        raise NomoatError(f"{run_dir} has no adapter yet: finish it with the `make train` command that began it")
    return load_recipe(run_dir / "recipe.yaml", folder=Path())


def common_system(run_dir: Path) -> str | None:
    """The system prompt of most held-out rows: an adapter is asked in the setting it was trained in."""
    from collections import Counter

    from nomoat.files import read_lines

    systems = Counter(row.get("system") for row in read_lines(run_dir / "heldout.jsonl"))
    return systems.most_common(1)[0][0] if systems else None


def ask() -> Iterator[str]:
    """Questions typed by the user, until an empty line or the end of input."""
    while True:
        try:
            prompt = input("\nprompt (empty line to stop): ")
        except EOFError:
            return
        if not prompt.strip():
            return
        yield prompt
