"""A tokenizer or chat template that does not work is found before an engine meets it, in bounded time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import EvaluationError
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.run.templates import check_templates
from cycleqd.weights.checkpoint import open_checkpoint
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
    loops, fails, grows, code = check_templates(opened)
    for found, folder in ((loops, folders[0]), (grows, folders[2])):
        assert found.startswith(f"{folder}: its tokenizer or chat template does not end within 15 s and 4 GiB")
    assert "no system, no user" in fails and fails.startswith(f"{folders[1]}: ")
    assert code.startswith(f"{folders[5]}: ") and "is code of its own (auto_map), which is not run" in code


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
