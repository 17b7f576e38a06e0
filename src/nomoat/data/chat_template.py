"""From a row to token ids: one rendering, used by training, scoring and `try` alike.

The prompt is rendered by the base's own chat template, the completion is tokenised by itself and appended, and the
end-of-turn token closes it. So what is trained is exactly what is generated later, and the mask follows positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nomoat.data.examples import Example
from nomoat.errors import NomoatError
from nomoat.io import sha256_of

RENDERING_VERSION = "1"
# For a base without a template: plain text, no special tokens. Written into the run with the tokenizer. A line of its own for each text:
# behind "Answer: " an untrained base has to begin with a word that lacks its space, and writes digits.
NEXT_QUESTION = "\n\nQuestion:"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}Question:\n{{ message.content }}\n"
    "{% else %}Answer:\n{{ message.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
_PROBE = "zqprobe"  # a word no template contains


@dataclass(frozen=True)
class TokenizedExample:
    """A row as tokens: `prompt_ids` are given, `completion_ids` (the last is end-of-turn) are learnt."""

    row_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


class ChatTemplate:
    """Renders rows for one tokenizer; knows where a turn ends."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.has_own_template = tokenizer.chat_template is not None
        if not self.has_own_template:
            if tokenizer.eos_token is None:
                raise NomoatError("the base has neither a chat template nor an end-of-text token: nothing could tell it when to stop")
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.end_of_turn = self._find_end_of_turn()
        self.stop_ids = frozenset({self.end_of_turn, tokenizer.eos_token_id} - {None})
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_of_turn

    def messages(self, row: Example, examples: tuple[Example, ...] = ()) -> list[dict[str, str]]:
        """The turns of a row, preceded by worked examples for the few-shot arm."""
        turns = [{"role": "system", "content": row.system}] if row.system else []
        for example in examples:
            turns += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
        return [*turns, {"role": "user", "content": row.prompt}]

    def prompt_ids(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Token ids up to where the assistant's answer begins, with at most one BOS."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self._tokenise(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and self._adds_bos():
            ids = [bos, *ids]
        return tuple(ids)

    def render(self, row: Example) -> TokenizedExample:
        """Prompt and completion ids of a training row; NomoatError for a completion that a plain base could not give whole (see `turn`)."""
        if self.tokenizer.chat_template == PLAIN_TEMPLATE and NEXT_QUESTION in row.completion:
            raise NomoatError(
                f"row {row.id}: its completion holds {NEXT_QUESTION!r}, which ends the turn of a base without a chat template; "
                "reword it, or take a base that has one"
            )
        return TokenizedExample(row.id, self.prompt_ids(self.messages(row)), self.completion_ids(row.completion))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer, closed by the end-of-turn token."""
        return (*self._tokenise(text), self.end_of_turn)

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, without special tokens; see `turn`."""
        return self.turn(ids)[0]

    def turn(self, ids: list[int]) -> tuple[str, bool]:
        """Text of generated ids, and whether it ends where a plain base goes on with a question of its own, which is left out.

        An untrained base without a template closes its answers like that, and not with a special token that it has never seen there.
        """
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.tokenizer.chat_template != PLAIN_TEMPLATE:
            return text, False
        own, next_one, _ = text.partition(NEXT_QUESTION)
        return own, bool(next_one)

    @property
    def fingerprint(self) -> str:
        """Changes when the same row would be rendered otherwise."""
        sample = self.tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False, add_generation_prompt=True)
        return sha256_of([RENDERING_VERSION, self.tokenizer.chat_template, sample, self.end_of_turn, self.tokenizer.bos_token_id])

    def _tokenise(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _adds_bos(self) -> bool:
        """Whether the tokenizer itself begins plain text with BOS (then its model expects one)."""
        return self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]

    def _find_end_of_turn(self) -> int:
        """The first special token the template puts behind an assistant's answer; without one, the end-of-text token."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in self._tokenise(text.rpartition(_PROBE)[2]):
            if token in special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise NomoatError("no end-of-turn token: the chat template closes answers with plain text and the tokenizer has no eos_token")
        return int(self.tokenizer.eos_token_id)
