"""Models of the Hugging Face Hub: from its cache without a network, and one sentence where there is neither."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.storage.inputs import find_source
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSource
from tests.weights.models import tensors, write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, with the model org/tiny, and no network."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--org--tiny"
    write_model(repository / "snapshots" / COMMIT, tensors(0))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / COMMIT


def test_a_cached_model_is_opened_without_a_network_and_named_as_it_was_given(cache: Path) -> None:
    source = find_source(None, "hf://org/tiny")
    assert source.location == "hf://org/tiny" and isinstance(source, LocalSource) and source.folder == cache
    assert open_checkpoint(source).tensors
    assert find_source(None, f"hf://org/tiny@{COMMIT}").location == f"hf://org/tiny@{COMMIT}"
    assert find_source(None, str(cache)).location == "hf://org/tiny", "its commit says nothing to a reader"
    shutil.rmtree(cache)
    cache.mkdir()
    with pytest.raises(InvalidInputError, match=r"^hf://org/tiny has no .*safetensors files"):
        open_checkpoint(find_source(None, str(cache)))


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        ("hf://org/other", UnavailableError, r"hf download org/other --local-dir FOLDER\) and give its folder$"),
        ("hf://other", InvalidInputError, r"^hf://other is no model on the Hugging Face Hub; write hf://ORG/NAME or"),
        ("hf://org/../etc", InvalidInputError, r"is no model on the Hugging Face Hub"),
        ("Qwen/Qwen2.5-0.5B", InvalidInputError, r"There is no checkpoint folder .*, write hf://Qwen/Qwen2.5-0.5B, or"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    cache: Path, tmp_path: Path, path: str, error: type[Exception], sentence: str
) -> None:
    given = path if path.startswith("hf://") else str(tmp_path / path)
    with pytest.raises(error, match=sentence) as caught:
        find_source(None, given)
    assert "\n" not in str(caught.value)


def test_a_wrong_folder_beside_others_is_only_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"There is no checkpoint folder .*models/bas; check the path\.$"):
        (tmp_path / "models").mkdir()
        find_source(None, str(tmp_path / "models" / "bas"))
