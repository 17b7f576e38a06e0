"""The work of a recipe without its base's weights: configuration, tokenised rows, optimiser steps and batches of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.config.schema import Base, Recipe
from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.data.prepare import TokenizedData, load_raw_data, tokenize_data
from nomoat.errors import NomoatError
from nomoat.evaluation.arms import batches_of, make_arms, make_request
from nomoat.evaluation.prefill import Request, enable_packed_prefill
from nomoat.io import fetch_from_hub
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.base import WITHOUT_A_HUB, BaseFiles, check_architecture, fetch_base, load_tokenizer
from nomoat.training.collate import Collator, choose_packing
from nomoat.training.packing import Pack, StepSchedule, schedule_steps, with_layers

CONFIGURATION = ("config.json", "generation_config.json", "*token*", "vocab*", "merges.txt", "*.model", "*.jinja")
CHARACTERS_PER_TOKEN = 4  # of English text, roughly; only for a base without tokenizer files
UNPINNED = "{}.revision is unpinned: this is the plan for branch main of {} as it is today"
# Per token, layer and hidden unit: Korthikanti et al. 2022 (arXiv:2205.05198), and keys and values in float32.
TRAINING_BYTES, SCORING_BYTES = 34, 8


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The steps of training, how they are collated, and the batches of training and scoring that need most memory."""

    collator: Collator
    schedule: StepSchedule
    largest_microbatch: Pack
    largest_requests: tuple[Request, ...]
    packed_prefill: bool  # whether scoring concatenates prompts and references
    too_long: int  # training rows that are left out
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all optimiser steps."""
        return sum(self.collator.train[number].length for step in self.schedule.steps for pack in step for number in pack)


def fetch_configuration(base: Base) -> tuple[BaseFiles, list[str]]:
    """Configuration and tokenizer, without the weights where these are separate files; and notes. Raises NomoatError as `fetch_base`."""
    notes: list[str] = []
    if base.hub is not None:
        revision = "main" if base.revision == "unpinned" else str(base.revision)
        notes += [UNPINNED.format("base", base.hub)] if revision == "main" else []
        folder = fetch_from_hub(f"base.hub: the configuration of {base.hub}", base.hub, revision, CONFIGURATION, otherwise=WITHOUT_A_HUB)
        files = BaseFiles(folder, base.hub, {"source": "hub", "revision": base.revision})
    elif base.path is not None:
        folder = Path(base.path).expanduser()
        files = BaseFiles(folder, folder.name, {"source": "path"})
    else:
        return fetch_base(base), ["the configuration is inside the base's GGUF file, so that was downloaded (once; it stays in the cache)"]
    if not (files.folder / "config.json").is_file():
        raise NomoatError(f"base: {base.hub or base.path} has no config.json: transformers cannot load it")
    check_architecture(files)
    return files, notes


def plan_workload(recipe: Recipe, root: Path, files: BaseFiles, config: Any, device: str) -> Workload:
    """Rows loaded, tokenised, packed and batched as in a run; NomoatError for rows that a run refuses, except that leaks are only noted."""
    notes: list[str] = []
    data = recipe.data.model_copy(update={"allow_leaks": recipe.data.allow_leaks or "a plan scores nothing"})
    if data.revision == "unpinned":
        data = data.model_copy(update={"revision": "main"})
        notes.append(UNPINNED.format("data", data.hub))
    raw = load_raw_data(recipe.model_copy(update={"data": data}), root)
    if not raw.leaks.clean and recipe.data.allow_leaks is None:
        notes.append("make train will refuse these rows: held-out rows repeat training rows (see data.drop_leaks and data.allow_leaks)")
    try:
        template = ChatTemplate(load_tokenizer(files))
    except (OSError, ValueError, ImportError):  # raised by transformers for missing files and unknown kinds
        template = ChatTemplate(_estimating_tokenizer())
        notes.append(f"no usable tokenizer files: tokens are estimated, 1 for {CHARACTERS_PER_TOKEN} characters of text")
    tokenized = tokenize_data(recipe, raw, template)
    kernels, pack_tokens = recipe.hardware.kernels, recipe.train.pack_tokens
    packed, varlen, packed_prefill = probe_architecture(config, device, kernels)
    train = tokenized.train
    schedule = schedule_steps(
        [example.length for example in train],
        **recipe.train.model_dump(include={"epochs", "batch_tokens", "pack_tokens", "seed", "max_steps"}),
    )
    largest = max(
        (pack for step in schedule.steps for pack in step),
        key=lambda pack: rough_bytes(config, [train[number] for number in pack], padded=not packed, activations=TRAINING_BYTES),
    )
    return Workload(
        collator=Collator(train, (), packed, template.pad_id, pack_tokens, shared=varlen, kernels=kernels),
        schedule=schedule,
        largest_microbatch=largest,
        largest_requests=largest_requests(recipe, tokenized, template, config),
        packed_prefill=packed_prefill,
        too_long=len(tokenized.record["train"]["dropped"]),
        notes=tuple(notes),
    )


def rough_bytes(config: Any, examples: Sequence[TokenizedExample], *, padded: bool, activations: int) -> int:
    """A batch's memory, to compare batches: `activations` bytes per token, layer and hidden unit, and 8 per logit (with its gradient)."""
    text = config.get_text_config()
    lengths = [example.length for example in examples]
    tokens = len(examples) * max(lengths) if padded else sum(lengths)
    logits = sum(len(example.completion_ids) for example in examples) * text.vocab_size
    return int(activations * tokens * text.num_hidden_layers * text.hidden_size + 8 * logits)


def largest_requests(recipe: Recipe, data: TokenizedData, template: ChatTemplate, config: Any) -> tuple[Request, ...]:
    """The largest batch of all arms."""
    batches: list[tuple[Request, ...]] = []
    for arm in make_arms(recipe.eval.arms, data.heldout, data.examples):
        if not arm.adapter:  # adapter and merged answer the prompts of base
            requests = [make_request(row, arm, template) for row in arm.rows]
            batches += [tuple(requests[number] for number in batch) for batch in batches_of(requests, arm, recipe.eval)]

    def size(batch: tuple[Request, ...]) -> int:
        examples = [TokenizedExample(request.key, request.prompt, request.reference) for request in batch]
        return rough_bytes(config, examples, padded=True, activations=SCORING_BYTES)

    return max(batches, key=size)


def _estimating_tokenizer() -> Any:
    """A tokenizer that makes every CHARACTERS_PER_TOKEN characters one (unknown) token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{CHARACTERS_PER_TOKEN}}}"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>")


def probe_architecture(config: Any, device: str, kernels: str = "auto") -> tuple[bool, bool, bool]:
    """Whether training packs its rows, whether with varlen attention, and whether scoring prefills packed prompts.

    Decided by the numerical checks of training and scoring, here on a real model with two layers, few words and random weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = with_layers(config, 2)
    text = config.get_text_config()
    text.vocab_size, text.pad_token_id = min(256, text.vocab_size), None
    for name in ("intermediate_size", "ffn_dim", "n_inner"):  # most of a large layer's weights; attention does not depend on it
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    rows = [((*range(16), last), tuple(range(last, last + 8))) for last in (16, 20)]  # prompt and completion, made up
    packed_prefill = device == "cpu" and kernels != "plain" and enable_packed_prefill(small, [Request("", *row) for row in rows])
    if packed_prefill:
        small.set_attn_implementation("sdpa")
    packed, _ = choose_packing(small, [TokenizedExample("", *row) for row in rows], device, kernels=kernels)
    return packed, packed and uses_varlen_attention(small), packed_prefill
