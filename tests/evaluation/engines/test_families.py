"""Every causal language model of transformers, as small as it can be: merged, mutated, found to fit, loaded, run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cycleqd.evaluation.engines.common.architecture import filled, fit
from cycleqd.weights.compatibility import default_problems, problems
from cycleqd.weights.local import LocalSink
from cycleqd.weights.merge import merge
from tests.evaluation.engines.families import smallest
from tests.weights.models import drawn, mean, opened

_LARGE = "parts of fixed sizes make it too large: tens of millions of parameters"
_NO_CLASS = "transformers has no AutoModelForCausalLM for the configuration that such a model is saved with"
_DRAFT = "it drafts for another model, and has no vocabulary of its own"
_SOUND = "it makes sound, with another model that reads the text"
_SHAPE = "sizes that fit each other do not follow from a few"
SKIPPED: dict[str, str] = {
    **dict.fromkeys(("blt", "longcat_flash", "phi4_multimodal", "xlm"), _LARGE),
    **dict.fromkeys(("emu3", "mllama"), _NO_CLASS),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFT),
    **dict.fromkeys(("musicgen", "musicgen_melody"), _SOUND),
    **dict.fromkeys(("kimi_linear", "nemotron_h", "reformer", "zamba", "zamba2"), _SHAPE),
    "cohere_compass_text": "its rotary embedding is given for each kind of layer, and has no default",
    "dbrx": "its class wants a theta that the default of its nested configuration lacks",
    "gemma3n": "it needs the package timm",
}
"""Families that are not built here, and why."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noised(base: Path, folder: Path, seed: int) -> Path:
    """An expert: the base's folder with every weight a little off."""
    shutil.copytree(base, folder)
    torch.manual_seed(seed)
    weights = {
        name: value + torch.randn_like(value) * 1e-3 if value.is_floating_point() else value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_family_is_merged_and_its_child_runs(family: str, tmp_path: Path, one_thread: None) -> None:
    if family in SKIPPED:
        pytest.skip(SKIPPED[family])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(smallest(family)).save_pretrained(tmp_path / "base")
    base, *experts = (opened(tmp_path / "base"), *(opened(noised(tmp_path / "base", tmp_path / n, 1)) for n in "ab"))
    assert problems(base, experts) == []
    merge(base, experts, mean(0.6, 0.4), LocalSink(tmp_path / "child"), mutation=drawn(), threads=1)
    config = AutoConfig.from_pretrained(tmp_path / "child")
    assert fit(config, opened(tmp_path / "child").tensors).problem is None
    mine, *theirs = (filled(AutoConfig.from_pretrained(model.location)) for model in (base, *experts))
    assert default_problems(base, mine, zip(experts, theirs, strict=True)) == []
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "child", output_loading_info=True)
    assert not any(found.values()), found
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits
    assert torch.isfinite(logits).all()
