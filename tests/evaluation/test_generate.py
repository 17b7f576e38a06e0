"""Batched greedy answers and likelihoods equal those of each request alone, drafted by the reference or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation import prefill
from nomoat.evaluation.generate import Generator, batch_plan, bits_per_byte
from nomoat.evaluation.prefill import DraftVerifier, Request, enable_packed_prefill
from nomoat.kernels.varlen_attention import SuffixLayout
from nomoat.models.base import load_model, load_tokenizer
from tests.tiny import make_base, make_rows

LIKELIHOOD = 1e-4  # relative: float32 sums in another order


def load(folder: Path, architecture: str) -> tuple[Any, ChatTemplate, list[Request]]:
    files = make_base(folder, architecture)
    template = ChatTemplate(load_tokenizer(files))
    rendered = [template.render(row) for row in make_rows(6)]
    return (
        load_model(files, precision="float32", device="cpu"),
        template,
        [Request(r.row_id, r.prompt_ids, r.completion_ids) for r in rendered],
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "falcon", "gemma3_text"])
def test_batched_answers_are_those_of_generate_alone(tmp_path: Path, architecture: str, packed: bool) -> None:
    model, template, requests = load(tmp_path, architecture)
    stock, _, _ = load(tmp_path, architecture)
    assert not packed or enable_packed_prefill(model, requests[:2]) is (architecture not in ("falcon", "gemma3_text"))
    answers, likelihoods = Generator(model, template, max_new_tokens=12).answer(requests)
    for request, answer, likelihood in zip(requests, answers, likelihoods, strict=True):
        ids = torch.tensor([request.prompt])
        alone = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected = [token for token in alone[0, len(request.prompt) :].tolist() if token not in template.stop_ids]
        assert list(answer.ids) == expected
        assert likelihood == pytest.approx(alone_likelihood(stock, request), rel=LIKELIHOOD)


def test_where_packed_prefill_gives_other_logits_prompts_are_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, template, requests = load(tmp_path, "llama")
    expected = Generator(model, template, max_new_tokens=6).answer(requests)
    blind = SuffixLayout.mask
    monkeypatch.setattr(SuffixLayout, "mask", lambda *given: torch.zeros_like(blind(*given)))  # no causal mask
    assert not enable_packed_prefill(model, requests[:2])
    assert Generator(model, template, max_new_tokens=6).answer(requests) == expected


@pytest.mark.parametrize("architecture", ["llama", "packed llama", "gpt2", "falcon"])
@pytest.mark.parametrize("kept", [0, 1, 5, 11, 12])
def test_a_reference_that_begins_like_the_answer_changes_nothing_but_the_work(tmp_path: Path, architecture: str, kept: int) -> None:
    model, template, requests = load(tmp_path, architecture.removeprefix("packed "))
    assert not architecture.startswith("packed") or enable_packed_prefill(model, requests[:2])
    plain, _ = Generator(model, template, max_new_tokens=12).answer([Request(q.key, q.prompt, (q.reference[-1],)) for q in requests])
    stop = requests[0].reference[-1]
    drafted = [  # every other reference begins with `kept` tokens of the answer and then differs
        Request(q.key, q.prompt, (*answer.ids[: kept if number % 2 else 0], *((7, 8, stop) if number % 3 else (stop,))))
        for number, (q, answer) in enumerate(zip(requests, plain, strict=True))
    ]
    answers, likelihoods = Generator(model, template, max_new_tokens=12).answer(drafted)
    assert answers == plain
    assert likelihoods == pytest.approx([alone_likelihood(model, request) for request in drafted], rel=LIKELIHOOD)


def test_answers_equal_to_their_references_take_no_decoding_step(tmp_path: Path) -> None:
    model, template, requests = load(tmp_path, "llama")
    plain, _ = Generator(model, template, max_new_tokens=6).answer(requests)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    drafted = [Request(q.key, q.prompt, (*answer.ids, 9)) for q, answer in zip(requests, plain, strict=True)]
    heard: list[int] = []
    answers, _ = Generator(model, template, max_new_tokens=6).answer(drafted, heard.append)
    assert answers == plain and tuple(heard) == plain[0].ids
    assert len(calls) == 3  # the shared prefix, the rest of the prompts, the references


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "falcon", "gemma3_text"])
def test_answers_and_likelihoods_are_the_same_without_drafts(tmp_path: Path, architecture: str, packed: bool) -> None:
    model, template, requests = load(tmp_path, architecture)
    plain_model, _, _ = load(tmp_path, architecture)
    if packed:
        enable_packed_prefill(model, requests[:2])
    drafts = like_the_answers(requests, Generator(model, template, max_new_tokens=12).answer(requests)[0])
    answers, likelihoods = Generator(model, template, max_new_tokens=12).answer(drafts)
    plain = Generator(plain_model, template, max_new_tokens=12, draft=False)
    plain_answers, plain_likelihoods = plain.answer(drafts)
    assert answers == plain_answers
    assert likelihoods == pytest.approx(plain_likelihoods, rel=LIKELIHOOD)
    assert plain.log_likelihoods(drafts) == plain_likelihoods
    assert Generator(model, template, max_new_tokens=12).log_likelihoods(drafts) == pytest.approx(plain_likelihoods, rel=LIKELIHOOD)


def like_the_answers(requests: list[Request], answers: list[Any]) -> list[Request]:
    """References that agree with the answers for 0 to 12 tokens and then differ."""
    return [
        Request(q.key, q.prompt, (*answer.ids[: (0, 2, 3, 4, 7, 12)[number]], 7, 8, 9))
        for number, (q, answer) in enumerate(zip(requests, answers, strict=True))
    ]


@pytest.mark.parametrize("accept", ["one token more", "every token"])
def test_a_draft_that_is_accepted_wrongly_shows_beside_the_answers_without_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    model, template, requests = load(tmp_path, "llama")
    plain, _ = Generator(model, template, max_new_tokens=12, draft=False).answer(requests)
    verified = DraftVerifier._accept

    def lenient(self: DraftVerifier, number: int, start: int, predicted: Any, target: Any) -> None:
        said = int((predicted.argmax(-1) == target).long().cumprod(0).sum()) + 1 if accept == "one token more" else len(target)
        agreed = torch.nn.functional.one_hot(target, predicted.shape[-1]).float()[:said]
        verified(self, number, start, torch.cat([agreed, predicted[said:]]), target)

    monkeypatch.setattr(DraftVerifier, "_accept", lenient)
    assert Generator(model, template, max_new_tokens=12).answer(requests)[0] != plain


def test_without_drafts_the_passes_that_answer_hold_no_token_of_a_reference(tmp_path: Path) -> None:
    model, template, requests = load(tmp_path, "llama")
    generator = Generator(model, template, max_new_tokens=6, draft=False)
    expected, _ = generator.answer(requests)
    fed: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"]) if kwargs["use_cache"] else None, with_kwargs=True
    )
    answers, _ = generator.answer([Request(q.key, q.prompt, (7, 8, 9)) for q in requests])
    assert answers == expected
    assert [ids.shape[1] for ids in fed] == [max(len(q.prompt) for q in requests), *[1] * 5]  # whole prompts, then token by token
    padded = [[template.pad_id] * (fed[0].shape[1] - len(q.prompt)) + list(q.prompt) for q in requests]
    assert fed[0].tolist() == padded


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_references_a_few_tokens_at_a_time_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, tokens: int
) -> None:
    model, template, requests = load(tmp_path, architecture)
    plain, _ = Generator(model, template, max_new_tokens=12).answer(requests)
    drafted = like_the_answers(requests, plain)  # they differ before, at and after the end of a piece; the last agrees to the limit
    _, likelihoods = Generator(model, template, max_new_tokens=12).answer(drafted)
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, logits: widths.append(logits.shape[1]))
    monkeypatch.setattr(prefill, "MOST_LOGITS", tokens * len(requests) * model.config.vocab_size)
    answers, in_pieces = Generator(model, template, max_new_tokens=12).answer(drafted)
    assert answers == plain
    assert in_pieces == pytest.approx(likelihoods, rel=1e-5)
    assert max(widths) == tokens


def alone_likelihood(model: Any, request: Request) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*request.prompt, *request.reference]])).logits[0].log_softmax(-1)
    start = len(request.prompt) - 1
    return sum(float(logits[start + place, token]) for place, token in enumerate(request.reference))


def test_an_answer_stops_at_the_end_of_turn_and_says_so(tmp_path: Path) -> None:
    model, template, requests = load(tmp_path, "llama")
    first = Generator(model, template, max_new_tokens=4).answer(requests[:1])[0][0]
    template.stop_ids = frozenset({first.ids[1]})  # the second token of the answer
    short = Generator(model, template, max_new_tokens=4).answer(requests)[0][0]
    assert short.ids == first.ids[:1] and short.stopped and not first.stopped


def test_tokens_are_streamed_as_they_come(tmp_path: Path) -> None:
    model, template, requests = load(tmp_path, "llama")
    heard: list[int] = []
    answers, _ = Generator(model, template, max_new_tokens=5).answer(requests[:1], heard.append)
    assert tuple(heard) == answers[0].ids


def test_the_batch_plan_takes_every_question_once_longest_first(tmp_path: Path) -> None:
    requests = [Request(str(n), tuple(range(n % 4 + 1)), (1,)) for n in range(10)]
    plan = batch_plan(requests, 3)
    assert sorted(n for batch in plan for n in batch) == list(range(10))
    lengths = [len(requests[n].prompt) for batch in plan for n in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_bits_per_byte_is_the_same_whatever_the_window_starts_with(tmp_path: Path) -> None:
    model, template, _ = load(tmp_path, "llama")
    ids = template.completion_ids("the capital of France is Paris")
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    expected = float(loss) * (len(ids) - 1) / 0.6931471805599453 / 30
    assert bits_per_byte(model, ids, 30) == pytest.approx(expected, rel=LIKELIHOOD)
