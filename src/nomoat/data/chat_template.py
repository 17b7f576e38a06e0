"""Rows as token ids: one rendering for training, scoring and `make try`.

The prompt is rendered by the base's chat template, the completion is tokenised separately and appended, and the end-of-turn token
closes it. So training sees exactly what is generated later, and the loss mask follows from positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nomoat.data.examples import Example
from nomoat.errors import NomoatError
from nomoat.io import sha256_of

RENDERING_VERSION = "1"
# For a base without a template: plain text without special tokens, saved in the run with the tokenizer. Each text is on a separate line:
# after "Answer: " on one line, an untrained base has to start with a word that lacks its leading space, and writes digits.
NEXT_QUESTION = "\n\nQuestion:"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}Question:\n{{ message.content }}\n"
    "{% else %}Answer:\n{{ message.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
_PROBE = "zqprobe"  # a word that no template contains


@dataclass(frozen=True)
class TokenizedExample:
    """A row as token ids: `prompt_ids` are given, `completion_ids` (the last one is end-of-turn) are learnt."""

    row_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


class ChatTemplate:
    """Renders rows with one tokenizer, and finds the end of a turn.

    Raises NomoatError for a tokenizer with which generation could never stop.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.has_own_template = tokenizer.chat_template is not None
        if not self.has_own_template:
            if tokenizer.eos_token is None:
                raise NomoatError("the base has neither a chat template nor an end-of-text token, so generation could never stop")
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.end_of_turn = self._find_end_of_turn()
        self.stop_ids = frozenset({self.end_of_turn, tokenizer.eos_token_id} - {None})
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_of_turn

    def messages(self, row: Example, examples: tuple[Example, ...] = ()) -> list[dict[str, str]]:
        """The chat turns of a row, after those of the few-shot examples."""
        turns = [{"role": "system", "content": row.system}] if row.system else []
        for example in examples:
            turns += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
        return [*turns, {"role": "user", "content": row.prompt}]

    def prompt_ids(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Token ids up to the start of the assistant's answer, with at most one BOS."""
        ids = self._tokenise(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        bos = [self.tokenizer.bos_token_id]
        if ids[:1] != bos and self.tokenizer("a")["input_ids"][:1] == bos:  # the model of a tokenizer that adds BOS expects one
            ids = bos + ids
        return tuple(ids)

    def render(self, row: Example) -> TokenizedExample:
        """Prompt and completion ids of a training row; NomoatError for a completion that `turn` would cut off."""
        if self.tokenizer.chat_template == PLAIN_TEMPLATE and NEXT_QUESTION in row.completion:
            raise NomoatError(
                f"row {row.id}: its completion contains {NEXT_QUESTION!r}, which ends the turn of a base without a chat template; "
                "reword it, or use a base with a template"
            )
        return TokenizedExample(row.id, self.prompt_ids(self.messages(row)), self.completion_ids(row.completion))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer, closed by the end-of-turn token."""
        return (*self._tokenise(text), self.end_of_turn)

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids without special tokens, cut off as in `turn`."""
        return self.turn(ids)[0]

    def turn(self, ids: list[int]) -> tuple[str, bool]:
        """Text of generated ids without special tokens, and whether it was cut off at the next "Question:" of the plain template.

        An untrained base without a chat template ends its answers that way, not with a special token that it has never seen there.
        """
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.tokenizer.chat_template != PLAIN_TEMPLATE:
            return text, False
        answer, next_question, _ = text.partition(NEXT_QUESTION)
        return answer, bool(next_question)

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes when rows would be rendered differently."""
        sample = self.tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False, add_generation_prompt=True)
        return sha256_of([RENDERING_VERSION, self.tokenizer.chat_template, sample, self.end_of_turn, self.tokenizer.bos_token_id])

    def _tokenise(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _find_end_of_turn(self) -> int:
        """The first special token that the template puts after an assistant's answer; without one, the end-of-text token."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        end = next((token for token in self._tokenise(text.rpartition(_PROBE)[2]) if token in special), self.tokenizer.eos_token_id)
        if end is None:
            raise NomoatError(
                "no end-of-turn token, so generation could never stop: the chat template closes answers with plain text and the "
                "tokenizer has no eos_token"
            )
        return int(end)
