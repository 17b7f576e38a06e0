"""Ask a finished run's base and adapter the same question: loaded, rendered and decoded as in scoring, shown as it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nomoat.config.load import run_recipe
from nomoat.data.examples import load_heldout
from nomoat.data.split import choose_heldout
from nomoat.evaluation.generate import Generator
from nomoat.evaluation.models import LoadedModels, load_run_models
from nomoat.evaluation.prefill import Request
from nomoat.models.base import open_base


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A run's models, how long an answer may be (tokens), and the system prompt most of its held-out rows have."""

    models: LoadedModels
    max_new_tokens: int
    system: str | None

    def stream(self, prompt: str, name: str, show: Callable[[str], None]) -> str:
        """Answer as `base` or `adapter`, passing text to `show` as it is decoded; returns the whole answer."""
        template = self.models.template
        turns = [{"role": "system", "content": self.system}] if self.system else []
        request = Request("chat", template.prompt_ids([*turns, {"role": "user", "content": prompt}]), template.completion_ids(""))
        ids: list[int] = []
        shown = ""

        def on_token(token: int) -> None:
            nonlocal shown
            ids.append(token)
            text = template.decode(ids)
            if not text.endswith("\ufffd"):  # an incomplete character: the rest follows with the next token
                show(text[len(shown) :])
                shown = text

        with self.models.using(name) as model:
            Generator(model, template, max_new_tokens=self.max_new_tokens, draft=self.models.draft).answer([request], on_token)
        answer = template.decode(ids)
        show(answer[len(shown) :])  # a character that was never completed
        return answer


def open_chat(run_dir: Path, *, device: str, max_new_tokens: int | None) -> Chat:
    """The run's base and adapter in the precision of scoring; `max_new_tokens` defaults to the recipe's."""
    recipe = run_recipe(run_dir)
    opened = open_base(recipe.model_copy(update={"hardware": recipe.hardware.model_copy(update={"device": device})}))
    heldout = load_heldout(run_dir / "heldout.jsonl")
    rows = choose_heldout(heldout, recipe.eval)
    models = load_run_models(run_dir, rows, opened, precision=opened.scoring_precision, kernels=recipe.hardware.kernels)
    system = Counter(row.system for row in heldout).most_common(1)[0][0]
    return Chat(models=models, max_new_tokens=max_new_tokens or recipe.eval.max_new_tokens, system=system)


def ask_prompts() -> Iterator[str]:
    """Prompts typed by the user, until an empty line or the end of input."""
    with suppress(EOFError):
        while (prompt := input("\nprompt (empty line to stop): ")).strip():
            yield prompt
