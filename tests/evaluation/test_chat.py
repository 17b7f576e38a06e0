"""`make try`: the base's and the adapter's answers, loaded and decoded as in scoring and shown as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nomoat.config.schema import Base, Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation.chat import Chat, open_chat
from nomoat.evaluation.generate import Generator
from nomoat.evaluation.prefill import Request
from nomoat.io import write_jsonl
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import load_adapter
from nomoat.models.base import load_model, load_tokenizer
from tests.evaluation.test_models import make_adapter
from tests.tiny import make_base, make_rows

PROMPT = "sum of 5 and 6"


def open_run(folder: Path, kernels: str = "auto", method: str = "lora") -> Chat:
    """A run directory with all that `make try` reads of one, opened."""
    files = make_base(folder / "base")
    settings = {"lora": {"method": method}, "hardware": {"kernels": kernels}, "eval": {"max_new_tokens": 12}}
    recipe = Recipe.model_validate({"name": "tiny", "base": Base(path=str(folder / "base")), **settings})
    make_adapter(folder / "run" / "adapter", files, method)
    (folder / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict()))
    systems = ("Answer briefly.", "Answer briefly.", None)
    rows = [{**row.record(), "system": system} for row, system in zip(make_rows(3, tier="phrasing"), systems, strict=True)]
    write_jsonl(folder / "run" / "heldout.jsonl", rows)
    return open_chat(folder / "run", device="cpu", max_new_tokens=None)


@pytest.mark.parametrize(("kernels", "method"), [("auto", "lora"), ("plain", "lora"), ("auto", "full")])
def test_both_answer_as_in_scoring_and_every_character_is_shown_once(tmp_path: Path, kernels: str, method: str) -> None:
    chat = open_run(tmp_path, kernels, method)
    assert uses_varlen_attention(chat.models.adapted) == (kernels == "auto"), "it takes another prefill path than scoring"
    files = make_base(tmp_path / "base")
    template = ChatTemplate(load_tokenizer(files))
    turns = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": PROMPT}]
    request = Request("q", template.prompt_ids(turns), template.completion_ids(""))
    answers = {}
    for name in ("base", "adapter"):
        model = load_model(files, precision="float32", device="cpu")
        model = load_adapter(model, tmp_path / "run" / "adapter") if name == "adapter" else model
        [expected], _ = Generator(model, template, max_new_tokens=12, draft=False).answer([request])
        shown: list[str] = []
        answers[name] = chat.stream(PROMPT, name, shown.append)
        assert answers[name] == template.decode(list(expected.ids))
        assert "".join(shown) == answers[name] and not any(text.endswith("\ufffd") for text in shown[:-1])
    assert answers["base"] != answers["adapter"]
