"""Rendering: masks by position, one BOS, an end-of-turn token that is always learnt."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nomoat.data.chat_template import ChatTemplate
from nomoat.errors import NomoatError
from nomoat.models.base import load_tokenizer
from tests.tiny import make_base, make_rows, make_tokenizer


def conversation(folder: Path, **options: Any) -> ChatTemplate:
    return ChatTemplate(load_tokenizer(make_base(folder, **options)))


def test_prompt_and_completion_together_are_the_templates_own_text(tmp_path: Path) -> None:
    talk = conversation(tmp_path)
    row = talk.render(make_rows(1)[0])
    turns = [{"role": "user", "content": "sum of 1 and 2 please"}, {"role": "assistant", "content": "3"}]
    whole = talk.tokenizer.apply_chat_template(turns, tokenize=False)
    assert talk.tokenizer.decode([*row.prompt_ids, *row.completion_ids]) == whole.removesuffix("\n")


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>", None])
def test_the_last_trained_token_is_end_of_turn_whatever_the_pad_token_is(tmp_path: Path, pad: str | None) -> None:
    talk = conversation(tmp_path, pad=pad)
    row = talk.render(make_rows(1)[0])
    assert talk.tokenizer.decode([row.completion_ids[-1]]) == "<|end|>" and row.completion_ids[-1] in talk.stop_ids


def test_there_is_exactly_one_bos_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    talk = conversation(tmp_path / "plain", bos="<|bos|>")
    assert talk.render(make_rows(1)[0]).prompt_ids.count(talk.tokenizer.bos_token_id) == 1
    template = "{{ bos_token }}" + "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    talk = conversation(tmp_path / "own", bos="<|bos|>", template=template)
    assert talk.render(make_rows(1)[0]).prompt_ids.count(talk.tokenizer.bos_token_id) == 1


def test_a_base_without_a_template_gets_a_plain_one_that_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    talk = conversation(tmp_path / "base", template=None)
    assert not talk.has_own_template
    talk.tokenizer.save_pretrained(tmp_path / "saved")
    again = ChatTemplate(AutoTokenizer.from_pretrained(tmp_path / "saved"))
    assert again.render(make_rows(1)[0]) == talk.render(make_rows(1)[0])
    assert "Question:\nsum of" in again.tokenizer.decode(list(again.render(make_rows(1)[0]).prompt_ids))


def test_an_answer_of_a_plain_base_is_cut_off_at_the_next_question(tmp_path: Path) -> None:
    plain, own = conversation(tmp_path / "plain", template=None), conversation(tmp_path / "own")
    continued, ended = "sum\n\nQuestion:\nsum of 1 and 2", "sum"
    for text, said in ((continued, (ended, True)), (ended, (ended, False))):
        assert plain.turn(list(plain.completion_ids(text))) == said and plain.decode(list(plain.completion_ids(text))) == ended
    assert own.turn(list(own.completion_ids(continued))) == (continued, False), "a base with a template ends its own turns"
    row = replace(make_rows(1)[0], completion=continued)
    with pytest.raises(NomoatError, match=f"row {row.id}: its completion contains"):
        plain.render(row)
    assert own.render(row).completion_ids == own.completion_ids(continued)


def test_a_plain_answer_has_the_tokens_that_it_has_in_a_few_shot_example(tmp_path: Path) -> None:
    talk = conversation(tmp_path, template=None)
    row = make_rows(1)[0]
    turns = [*talk.messages(row), {"role": "assistant", "content": row.completion}]
    whole = talk.tokenizer.apply_chat_template(turns, tokenize=False)
    alone = [*talk.prompt_ids(talk.messages(row)), *talk.completion_ids(row.completion)]
    assert talk.tokenizer(whole, add_special_tokens=False)["input_ids"][: len(alone)] == alone


def test_few_shot_examples_come_before_the_question_as_finished_turns(tmp_path: Path) -> None:
    talk = conversation(tmp_path)
    first, second = make_rows(2)
    messages = talk.messages(second, (first,))
    assert [message["content"] for message in messages] == [first.prompt, first.completion, second.prompt]
    ids = talk.prompt_ids(messages)
    assert talk.tokenizer.decode(list(ids)).count("<|end|>") == 3


def test_the_fingerprint_follows_the_template(tmp_path: Path) -> None:
    assert conversation(tmp_path / "a").fingerprint == conversation(tmp_path / "b").fingerprint
    assert conversation(tmp_path / "c", template=None).fingerprint != conversation(tmp_path / "d").fingerprint


def test_a_tokenizer_that_can_never_stop_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_base(tmp_path, template=None))
    tokenizer.eos_token = None
    with pytest.raises(NomoatError, match="stop"):
        ChatTemplate(tokenizer)


@pytest.mark.parametrize(
    ("pieces", "tokens"),  # the bytes ED A0 80 and ED B0 80, which would be U+D800 and U+DC00, as each kind of tokenizer names them
    [(False, "í ł Ģ í ° Ģ"), (True, "<0xED> <0xA0> <0x80> <0xED> <0xB0> <0x80>")],
)
def test_a_fast_tokenizer_never_decodes_half_a_surrogate_pair(tmp_path: Path, pieces: bool, tokens: str) -> None:
    """So UTF-8 can hold every answer, and no file of a run needs an escape."""
    make_tokenizer(tmp_path, pieces=pieces)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(tokens.split())
    assert tokenizer.is_fast and tokenizer.unk_token_id not in ids and None not in ids
    drawn = [random.Random(seed).choices(range(len(tokenizer)), k=12) for seed in range(200)]
    for sequence in (ids, ids[:3], ids[3:], ids[:2], *drawn):
        tokenizer.decode(sequence).encode("utf-8")  # raises for half a pair
    assert "\ufffd" in tokenizer.decode(ids[:3])
