"""Tokenizers, chat templates and end tokens of adapters and full models against the base's, with real tokenizers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import (
    Model,
    completing,
    end_tokens,
    ending_at,
    problems,
    prompt_problems,
    refuse_problems,
    warnings,
)
from cycleqd.weights.local import LocalSource
from cycleqd.weights.lora import open_adapter
from tests.evolution import TEMPLATE, write_adapters
from tests.weights.models import opened

KINDS = ("adapter", "full")
Change = Callable[[Any], object]
MakeOther = Callable[..., Model]
OTHER = TEMPLATE.replace("assistant: ", "model: ")


@pytest.fixture
def base(tiny_models: Path, tmp_path: Path) -> Checkpoint:
    """The base in a folder of the test's own."""
    shutil.copytree(tiny_models / "base", tmp_path / "base")
    return opened(tmp_path / "base")


@pytest.fixture
def make_other(base: Checkpoint, tiny_models: Path, tmp_path: Path) -> MakeOther:
    """make_other(kind, change) → an expert, with the base's tokenizer as transformers saves it after the change."""

    def make(kind: str, change: Change | None = None, edit: Callable[[Path], object] | None = None) -> Model:
        folder = tmp_path / "adapters" / "a"
        if kind == "adapter":
            (tmp_path / "adapters").mkdir()
            write_adapters(tiny_models, tmp_path / "adapters")
        else:
            shutil.copytree(tiny_models / "a", folder)
        tokenizer = AutoTokenizer.from_pretrained(base.location)
        if change:
            change(tokenizer)
        tokenizer.save_pretrained(folder)
        if edit:
            edit(folder)
        return open_adapter(LocalSource(folder), base) if kind == "adapter" else opened(folder)

    return make


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def as_trainers_leave_it(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 17
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.backend_tokenizer.enable_truncation(17)


def by_older_libraries(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", legacy=False)
    edit_json(folder / "special_tokens_map.json", pad_token={"content": "[PAD]", "lstrip": False})
    edit_json(folder / "added_tokens.json", **{"[PAD]": 259})


@pytest.mark.parametrize("kind", KINDS)
def test_what_trainers_leave_in_a_tokenizer_is_no_difference(
    base: Checkpoint, make_other: MakeOther, kind: str
) -> None:
    other = make_other(kind, as_trainers_leave_it, by_older_libraries)
    saved = json.loads((Path(other.location) / "tokenizer.json").read_text())
    assert saved["padding"] and saved["truncation"] and saved["added_tokens"][-1]["content"] == "[PAD]"
    assert problems(base, [other]) == warnings(base, [other]) == prompt_problems(base, [other]) == []
    assert end_tokens(base, [other]) == (2,) and ending_at(base, base, (2,)) == {}


def test_an_adapter_without_a_tokenizer_has_the_bases(base: Checkpoint, tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    other = open_adapter(LocalSource(write_adapters(tiny_models, tmp_path / "plain") / "a"), base)
    assert sorted(other.source.files()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert problems(base, [other]) == warnings(base, [other]) == prompt_problems(base, [other]) == []
    assert end_tokens(base, [other]) == (2,)


def swapped(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


DIFFERENT: dict[str, tuple[Change | None, Callable[[Path], object] | None, str]] = {
    "a new token": (lambda t: t.add_tokens(["<|im_start|>"]), None, r"260 against 259 tokens, '<\|im_start\|>' is 259"),
    "an end token of its own": (
        lambda t: t.add_special_tokens({"eos_token": "<end>"}),
        None,
        r"'<end>' is 259 against None",
    ),
    "an end token for padding, too": (
        lambda t: t.add_special_tokens({"eos_token": "<end>", "pad_token": "<end>"}),
        None,
        r"'<end>' is 259 against None",
    ),
    "other ids": (None, swapped, r"259 against 259 tokens, 'A' is \d+ against \d+"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DIFFERENT)
def test_another_vocabulary_is_refused_by_one_sentence(
    base: Checkpoint, make_other: MakeOther, kind: str, name: str
) -> None:
    change, edit, how = DIFFERENT[name]
    other = make_other(kind, change, edit)
    (sentence,) = problems(base, [other])
    assert sentence.startswith(f"{other.location} and its base {base.location} have different tokenizers (")
    assert sentence.endswith("; fine-tune with the base's tokenizer.")
    with pytest.raises(InvalidInputError, match=how):
        refuse_problems(base, [other])


def spm(*tokens: str, score: float = 0.0) -> bytes:
    """A sentencepiece model, as its protocol buffer has it: pieces (text, score, type), then a trainer's setting."""
    found = b""
    for token in tokens:
        text = token.encode()
        piece = bytes([0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18\x01"
        found += bytes([0x0A, len(piece)]) + piece
    return found + b"\x12\x03\x18\x80\x04"


def test_sentencepiece_models_are_compared_with_what_was_added_to_them(base: Checkpoint, make_other: MakeOther) -> None:
    """tokenizer.json is preferred where it is there; the pieces' places are the ids."""
    tokens = list(json.loads((Path(base.location) / "tokenizer.json").read_text())["model"]["vocab"])

    def saved(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(spm(*tokens))

    other = make_other("adapter", None, saved)
    folder, mine = Path(other.location), Path(base.location) / "tokenizer.model"
    assert problems(base, [other]) == []
    mine.write_bytes(spm(*tokens))
    edit_json(folder / "added_tokens.json", **{"</s>": 2, "<pad>": 0})
    assert problems(opened(mine.parent), [other]) == []
    edit_json(folder / "added_tokens.json", **{"<|im_end|>": 259})
    assert "'<|im_end|>' is 259 against None" in problems(base, [other])[0]
    edit_json(folder / "added_tokens.json", **{"<|im_end|>": 2})
    mine.write_bytes(spm(*tokens, score=-1.0))
    assert "tokenizer.model differs" in problems(opened(mine.parent), [other])[0]
    mine.unlink()
    (folder / "tokenizer.model").write_bytes(spm(*tokens[::-1]))
    assert "'<s>' is 257 against 1" in problems(opened(mine.parent), [open_adapter(LocalSource(folder), base)])[0]


@pytest.mark.parametrize("content", [b"", b"pieces", b"\x0a\x05ab", b"\x0a", b"\x12\x03\x18\x80\x04"])
def test_a_broken_sentencepiece_model_is_one_sentence(base: Checkpoint, make_other: MakeOther, content: bytes) -> None:
    def saved(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(content)

    with pytest.raises(InvalidInputError, match=r"^tokenizer.model of .* is broken \(.*\); fetch it again\.$"):
        problems(base, [make_other("full", None, saved)])


def in_the_settings(folder: Path) -> None:
    """Where older libraries keep a template."""
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": f"{text}\n"}])


def with_template(text: str) -> Change:
    return lambda tokenizer: setattr(tokenizer, "chat_template", text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", [None, in_the_settings])
def test_another_chat_template_is_a_warning(
    base: Checkpoint, make_other: MakeOther, kind: str, edit: Callable[[Path], object] | None
) -> None:
    other = make_other(kind, with_template(OTHER), edit)
    assert problems(base, [other]) == prompt_problems(base, [other]) == []
    (sentence,) = warnings(base, [other])
    assert sentence.startswith(f"{other.location} has another chat template than its base {base.location}: ")
    who = "it and all children" if kind == "adapter" else "it has its own, and children"
    assert f"{who} are prompted with the base's; if all experts" in sentence


@pytest.mark.parametrize("kind", KINDS)
def test_one_template_in_two_places_is_no_difference(base: Checkpoint, make_other: MakeOther, kind: str) -> None:
    assert warnings(base, [make_other(kind, None, in_the_settings)]) == []


def test_a_template_that_writes_another_end_token_is_another_one(base: Checkpoint, make_other: MakeOther) -> None:
    edit_json(Path(base.location) / "tokenizer_config.json", chat_template=None)
    (Path(base.location) / "chat_template.jinja").write_text(f"{TEMPLATE}{{{{ eos_token }}}}")
    other = make_other("adapter", lambda tokenizer: setattr(tokenizer, "eos_token", "!"))
    assert len(warnings(base, [other])) == 1


def test_a_base_without_a_template_has_the_experts_where_they_agree(base: Checkpoint, make_other: MakeOther) -> None:
    other, full = make_other("adapter"), Path(base.location).with_name("full")
    template = Path(base.location) / "chat_template.jinja"
    shutil.copytree(base.location, full)
    template.unlink()
    without = opened(template.parent)
    assert prompt_problems(without, [other]) == warnings(without, [other]) == []
    assert completing(without, without, [other]) == {"chat_template.jinja": TEMPLATE.strip().encode()}
    (full / "chat_template.jinja").write_text(OTHER)
    (sentence,) = prompt_problems(without, [other, opened(full)])
    assert sentence.startswith(f"{base.location} has no chat template, ") and "different ones" in sentence
    for folder in (full, Path(other.location)):
        (folder / "chat_template.jinja").unlink()
    (sentence,) = prompt_problems(without, [open_adapter(LocalSource(other.location), base), opened(full)])
    assert sentence.startswith(f"{base.location} has no chat template, ") and "no expert has one" in sentence


def test_an_expert_without_a_tokenizer_gets_the_bases(base: Checkpoint, make_other: MakeOther) -> None:
    def bare(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).unlink()

    other = make_other("full", None, bare)
    assert isinstance(other, Checkpoint)
    assert problems(base, [other]) == prompt_problems(base, [other]) == []
    for name, content in completing(other, base, [other]).items():
        (Path(other.location) / name).write_bytes(content)
    asked = [{"role": "user", "content": "one"}]
    mine, theirs = (AutoTokenizer.from_pretrained(model.location) for model in (base, other))
    assert theirs.apply_chat_template(asked) == mine.apply_chat_template(asked)
    assert completing(base, base, [other]) == {}
    bare(Path(base.location))
    (sentence,) = prompt_problems(opened(Path(base.location)), [other])
    assert sentence.startswith(f"{base.location} has no tokenizer; ")


def generation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return found


def test_replies_end_where_the_base_or_an_expert_ends(base: Checkpoint, make_other: MakeOther) -> None:
    """An adapter's tokenizer says where, if it is not the base's, and its configurations do."""
    other = make_other("adapter", lambda tokenizer: setattr(tokenizer, "eos_token", "!"))
    mark = AutoTokenizer.from_pretrained(base.location).convert_tokens_to_ids("!")
    assert problems(base, [other]) == [] and end_tokens(base, [other]) == (2, mark)
    changed = ending_at(base, base, (2, mark))
    before = generation(Path(base.location))
    assert json.loads(changed["generation_config.json"]) == {**before, "eos_token_id": [2, mark]}
    edit_json(Path(other.location) / "generation_config.json", eos_token_id=[7, 2])
    assert end_tokens(base, [open_adapter(LocalSource(other.location), base)]) == (2, *sorted((7, mark)))


def test_a_model_whose_configuration_names_its_end_token(base: Checkpoint, make_other: MakeOther) -> None:
    other = make_other("full", None, lambda folder: (folder / "generation_config.json").unlink())
    assert isinstance(other, Checkpoint)
    assert end_tokens(base, [other]) == (2,) and ending_at(other, base, (2,)) == {}
    (written,) = ending_at(other, base, (2, 7)).values()
    assert json.loads(written) == {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [2, 7]}
