"""Batched greedy answers and likelihoods equal those of each row alone, through transformers' own generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation import prefill
from nomoat.evaluation.generate import Generator, batch_plan, bits_per_byte
from nomoat.evaluation.prefill import Request, enable_packed_prefill
from nomoat.kernels.varlen_attention import SuffixLayout
from nomoat.models.base import load_model, load_tokenizer
from tests.tiny import make_base, make_rows


def load(folder: Path, architecture: str) -> tuple[Any, ChatTemplate, list[Request]]:
    files = make_base(folder, architecture)
    talk = ChatTemplate(load_tokenizer(files))
    rendered = [talk.render(row) for row in make_rows(6)]
    return (
        load_model(files, precision="float32", device="cpu"),
        talk,
        [Request(r.row_id, r.prompt_ids, r.completion_ids) for r in rendered],
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "falcon", "gemma3_text"])
def test_batched_answers_are_those_of_generate_alone(tmp_path: Path, architecture: str, packed: bool) -> None:
    model, talk, questions = load(tmp_path, architecture)
    stock, _, _ = load(tmp_path, architecture)
    assert not packed or enable_packed_prefill(model, questions[:2]) is (architecture not in ("falcon", "gemma3_text"))
    answers, likelihoods = Generator(model, talk, max_new_tokens=12).answer(questions)
    for question, answer, likelihood in zip(questions, answers, likelihoods, strict=True):
        ids = torch.tensor([question.prompt])
        alone = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected = [token for token in alone[0, len(question.prompt) :].tolist() if token not in talk.stop_ids]
        assert list(answer.ids) == expected
        assert likelihood == pytest.approx(alone_likelihood(stock, question), rel=1e-4)


def test_where_end_to_end_is_not_the_same_prompts_are_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, talk, questions = load(tmp_path, "llama")
    expected = Generator(model, talk, max_new_tokens=6).answer(questions)
    blind = SuffixLayout.mask
    monkeypatch.setattr(SuffixLayout, "mask", lambda *given: torch.zeros_like(blind(*given)))  # tokens that see what follows them
    assert not enable_packed_prefill(model, questions[:2])
    assert Generator(model, talk, max_new_tokens=6).answer(questions) == expected


@pytest.mark.parametrize("architecture", ["llama", "packed llama", "gpt2", "falcon"])
@pytest.mark.parametrize("kept", [0, 1, 5, 11, 12])
def test_a_reference_that_begins_like_the_answer_changes_nothing_but_the_work(tmp_path: Path, architecture: str, kept: int) -> None:
    model, talk, questions = load(tmp_path, architecture.removeprefix("packed "))
    assert not architecture.startswith("packed") or enable_packed_prefill(model, questions[:2])
    plain, _ = Generator(model, talk, max_new_tokens=12).answer([Request(q.key, q.prompt, (q.reference[-1],)) for q in questions])
    stop = questions[0].reference[-1]
    drafted = [  # of every second row the first `kept` tokens are what the model says, then comes something else
        Request(q.key, q.prompt, (*answer.ids[: kept if number % 2 else 0], *((7, 8, stop) if number % 3 else (stop,))))
        for number, (q, answer) in enumerate(zip(questions, plain, strict=True))
    ]
    answers, likelihoods = Generator(model, talk, max_new_tokens=12).answer(drafted)
    assert answers == plain
    assert likelihoods == pytest.approx([alone_likelihood(model, question) for question in drafted], rel=1e-4)


def test_answers_equal_to_their_references_take_no_step_of_their_own(tmp_path: Path) -> None:
    model, talk, questions = load(tmp_path, "llama")
    plain, _ = Generator(model, talk, max_new_tokens=6).answer(questions)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    drafted = [Request(q.key, q.prompt, (*answer.ids, 9)) for q, answer in zip(questions, plain, strict=True)]
    heard: list[int] = []
    answers, _ = Generator(model, talk, max_new_tokens=6).answer(drafted, heard.append)
    assert answers == plain and tuple(heard) == plain[0].ids
    assert len(calls) == 3  # what the prompts share, the rest of them, the references


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_references_a_few_tokens_at_a_time_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, tokens: int
) -> None:
    model, talk, questions = load(tmp_path, architecture)
    plain, _ = Generator(model, talk, max_new_tokens=12).answer(questions)
    drafted = [  # said so far, then otherwise: before, at and after the end of a piece; and one that is said to the limit
        Request(q.key, q.prompt, (*answer.ids[: (0, 2, 3, 4, 7, 12)[number]], 7, 8, 9))
        for number, (q, answer) in enumerate(zip(questions, plain, strict=True))
    ]
    _, likelihoods = Generator(model, talk, max_new_tokens=12).answer(drafted)
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, logits: widths.append(logits.shape[1]))
    monkeypatch.setattr(prefill, "MOST_LOGITS", tokens * len(questions) * model.config.vocab_size)
    answers, in_pieces = Generator(model, talk, max_new_tokens=12).answer(drafted)
    assert answers == plain
    assert in_pieces == pytest.approx(likelihoods, rel=1e-5)
    assert max(widths) == tokens


def alone_likelihood(model: Any, question: Request) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*question.prompt, *question.reference]])).logits[0].log_softmax(-1)
    start = len(question.prompt) - 1
    return sum(float(logits[start + place, token]) for place, token in enumerate(question.reference))


def test_an_answer_stops_at_the_end_of_turn_and_says_so(tmp_path: Path) -> None:
    model, talk, questions = load(tmp_path, "llama")
    first = Generator(model, talk, max_new_tokens=4).answer(questions[:1])[0][0]
    talk.stop_ids = frozenset({first.ids[1]})  # the second token the model would say anyway
    short = Generator(model, talk, max_new_tokens=4).answer(questions)[0][0]
    assert short.ids == first.ids[:1] and short.stopped and not first.stopped


def test_tokens_are_streamed_as_they_come(tmp_path: Path) -> None:
    model, talk, questions = load(tmp_path, "llama")
    heard: list[int] = []
    answers, _ = Generator(model, talk, max_new_tokens=5).answer(questions[:1], heard.append)
    assert tuple(heard) == answers[0].ids


def test_the_batch_plan_takes_every_question_once_longest_first(tmp_path: Path) -> None:
    questions = [Request(str(n), tuple(range(n % 4 + 1)), (1,)) for n in range(10)]
    plan = batch_plan(questions, 3)
    assert sorted(n for batch in plan for n in batch) == list(range(10))
    lengths = [len(questions[n].prompt) for batch in plan for n in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_bits_per_byte_is_the_same_whatever_the_window_starts_with(tmp_path: Path) -> None:
    model, talk, _ = load(tmp_path, "llama")
    ids = talk.completion_ids("the capital of France is Paris")
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    expected = float(loss) * (len(ids) - 1) / 0.6931471805599453 / 30
    assert bits_per_byte(model, ids, 30) == pytest.approx(expected, rel=1e-4)
