"""A model that does not work with transformers is found before an engine meets it, in bounded time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import EvaluationError
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.run.models import try_models
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.local import LocalSource
from tests.evolution import write_models

pytestmark = pytest.mark.timeout(900)
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """altered(name, template, …) → a model's folder with another chat template, or other keys of its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    base = write_models(folder / "given") / "base"

    def make(name: str, template: str | None, **keys: object) -> Path:
        shutil.copytree(base, folder / name)
        file, own = folder / name / "tokenizer_config.json", folder / name / "chat_template.jinja"
        content = json.loads(file.read_text())
        content.pop("chat_template", None)
        own.unlink(missing_ok=True)
        if template is not None:
            content["chat_template"] = template
        file.write_text(json.dumps(content | keys))
        return folder / name

    return make


def test_every_model_is_tried_and_what_does_not_end_is_ended(altered: Callable[..., Path]) -> None:
    folders = [
        altered("loops", LOOPS),
        altered("fails", "{{ raise_exception('no system, no user') }}"),
        altered("grows", "{{ 'x' * 9000000000 }}"),
        altered("none", None),
        altered("good", "{% for m in messages %}{{ m.content }}{% endfor %}"),
        altered("code", "x", auto_map={"AutoTokenizer": ["them/theirs--mine.Mine", None]}, tokenizer_class="Mine"),
    ]
    opened = {folder.name: open_checkpoint(LocalSource(folder)) for folder in folders}
    loops, fails, grows, code = try_models(opened, "transformers")
    for found, folder in ((loops, folders[0]), (grows, folders[2])):
        assert found.startswith(
            f"{folder}: its tokenizer, chat template or model class does not end within 15 s and 4 GiB"
        )
    assert "no system, no user" in fails and fails.startswith(f"{folders[1]}: ")
    assert code.startswith(f"{folders[5]}: ") and "is code of its own (auto_map), which is not run" in code


def configured(folder: Path, **keys: object) -> Checkpoint:
    """A model whose config.json has other values; None: not that key."""
    file = folder / "config.json"
    content = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return open_checkpoint(LocalSource(folder))


def test_what_a_class_fills_in_is_compared_and_tensors_must_be_its_own(altered: Callable[..., Path]) -> None:
    """Llama's class takes an epsilon of 1e-6 and a theta of 10000 where a configuration names none."""
    template = "{{ messages[0].content }}"
    base, same, other, huge, foreign = (
        configured(altered(f"defaults-{number}", template), **keys)
        for number, keys in enumerate(
            (
                {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_parameters": None},
                {"rms_norm_eps": None, "rope_parameters": None, "use_cache": False},
                {"rms_norm_eps": 1e-5},
                {"num_hidden_layers": 10**9},
                {"model_type": "vit", "architectures": ["ViTModel"]},
            )
        )
    )
    opened = {"base": base, "same": same, "other": other, "huge": huge, "foreign": foreign}
    without_end, without_class, differing = try_models(opened, "auto")
    assert f"{huge.location}: its tokenizer, chat template or model class does not end within 15 s" in without_end
    assert f"{foreign.location} cannot be evaluated: transformers has no causal language model for" in without_class
    assert f"{other.location} and its base {base.location} differ in rms_norm_eps: 1e-05 against 1e-06; o" in differing


def test_fused_experts_are_for_the_transformers_engine_and_must_be_whole(tmp_path: Path, tiny_models: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    MixtralForCausalLM(MixtralConfig(vocab_size=300, **small, **heads)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_models / "base").save_pretrained(tmp_path)
    whole = open_checkpoint(LocalSource(tmp_path))
    shutil.copytree(tmp_path, tmp_path / "broken")
    file, last = tmp_path / "broken" / "model.safetensors", "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    tensors = load_file(file)
    del tensors[last]
    save_file(tensors, file, metadata={"format": "pt"})
    opened = {"base": whole, "broken": open_checkpoint(LocalSource(tmp_path / "broken"))}
    assert last in whole.tensors and last not in opened["broken"].tensors
    converted, misfit = try_models(opened, "auto")
    assert converted.startswith(f"{tmp_path}: its tensors are converted while they are loaded")
    assert misfit.startswith(f"{tmp_path}/broken cannot be evaluated: ")
    assert list(try_models(opened, "transformers")) == [misfit]


def test_nobody_is_asked_whether_to_run_a_models_code(
    altered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", asked.append)
    folder = altered("asks", "x", auto_map={"AutoTokenizer": ["them/theirs--mine.Mine", None]}, tokenizer_class="Mine")
    with pytest.raises(EvaluationError, match="custom code"):
        ModelFolder.open(folder, None)
    assert asked == []


def test_a_template_that_fails_of_anything_is_one_sentence(altered: Callable[..., Path]) -> None:
    opened = ModelFolder.open(altered("divides", "{{ 1 / (messages | length - 1) }}"), None)
    with pytest.raises(EvaluationError, match=r"the chat template refuses a conversation \(division by zero\)"):
        opened.encode([[{"role": "user", "content": "hello"}]])
