"""A finished run's base and adapter, loaded to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.config.load import run_recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation.generate import Generator
from nomoat.evaluation.prefill import Request
from nomoat.models.adapter import has_adapter, load_adapter
from nomoat.models.base import fetch_base, load_model, load_tokenizer
from nomoat.models.device import choose_device, scoring_precision, training_precision


@dataclass(frozen=True)
class ModelPair:
    """The model with the adapter attached, and the base: the same model with the adapter switched off, unless it was trained in full."""

    model: Any
    base: Any
    conversation: ChatTemplate
    max_new_tokens: int
    system: str | None

    def stream(self, prompt: str, arm: str, show: Callable[[str], None]) -> str:
        """Answer with `base` or `adapter`, passing text to `show` as it comes; returns the whole answer."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        ids = self.conversation.prompt_ids([*turns, {"role": "user", "content": prompt}])
        question = Request("asked", ids, self.conversation.completion_ids(""))
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


def load_pair(run_dir: Path, *, device: str, max_new_tokens: int | None) -> ModelPair:
    """The run's base and adapter in the precision of scoring."""
    from nomoat.kernels.linear import prepack_linears

    recipe = run_recipe(run_dir)
    place = choose_device(recipe.hardware.model_copy(update={"device": device}))
    precision = scoring_precision(training_precision(recipe, place), place)
    files = fetch_base(recipe.base)
    base = load_model(files, precision=precision, device=place.kind)
    model = prepack_linears(load_adapter(base, run_dir / "adapter"))
    base = model if has_adapter(model) else prepack_linears(load_model(files, precision=precision, device=place.kind))
    conversation = ChatTemplate(load_tokenizer(files))
    return ModelPair(model, base, conversation, max_new_tokens or recipe.eval.max_new_tokens, common_system(run_dir))


def common_system(run_dir: Path) -> str | None:
    """The system prompt of most held-out rows: an adapter is asked in the setting it was trained in."""
    from collections import Counter

    from nomoat.io import read_jsonl

    systems = Counter(row.get("system") for row in read_jsonl(run_dir / "heldout.jsonl"))
    return systems.most_common(1)[0][0] if systems else None


def ask_prompts() -> Iterator[str]:
    """Questions typed by the user, until an empty line or the end of input."""
    while True:
        try:
            prompt = input("\nprompt (empty line to stop): ")
        except EOFError:
            return
        if not prompt.strip():
            return
        yield prompt
