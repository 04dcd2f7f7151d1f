"""Which operators work on which kind of weights: refused by name before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cycleqd.errors import InvalidInputError
from cycleqd.run.checks import Findings, decide
from cycleqd.search.config import Config
from cycleqd.storage.inputs import decided
from cycleqd.storage.staging import too_wide
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSource
from tests.evolution import EXPERTS, write_adapters
from tests.pipelines.configs import two_tasks

NOISE = {"kind": "gaussian", "sigma": 0.01}


def remote(weights: str, **method: dict[str, Any]) -> Config:
    """With experts in S3, so that `weights` alone says what they are."""
    tree = two_tasks().model_dump(mode="json", by_alias=True)
    for expert in tree["models"]["experts"].values():
        expert["path"] = f"s3://models{expert['path']}"
    tree["models"]["weights"] = weights
    tree["method"] |= method
    return Config.model_validate(tree)


def test_operators_of_elements_are_refused_in_the_span() -> None:
    config = remote("span", mutation=NOISE, crossover={"kind": "ties"})
    with pytest.raises(InvalidInputError) as refused:
        decided(config, None)
    crossover, mutation = sorted(str(refused.value).splitlines())
    assert crossover.startswith("crossover 'ties' needs single elements") and "models.weights: span" in crossover
    assert mutation.startswith("mutation 'gaussian' needs single elements")
    assert decided(remote("dense", mutation=NOISE, crossover={"kind": "ties"}), None).models.weights == "dense"


def test_operators_of_cores_are_refused_on_dense_weights() -> None:
    cores = {"kind": "span_gaussian", "sigma": 0.01}
    with pytest.raises(InvalidInputError, match=r"mutation 'span_gaussian' works on cores.*models\.rank"):
        decided(remote("dense", mutation=cores), None)
    assert decided(remote("span", mutation=cores), None).in_span


def local(folders: Mapping[str, Path], **models: Any) -> Config:
    """With experts of two tasks on this machine."""
    tree = two_tasks().model_dump(mode="json", by_alias=True)
    tree["models"] |= models
    for expert, folder in zip(tree["models"]["experts"].values(), folders.values(), strict=True):
        expert["path"] = str(folder)
    return Config.model_validate(tree)


def test_what_no_adapter_carries_is_kept_of_extracted_experts_alone(tiny_models: Path, tmp_path: Path) -> None:
    adapters = write_adapters(tiny_models, tmp_path)
    mixed = {"a": adapters / "a", "b": tiny_models / "b"}
    kept = decided(local(mixed, rank=8, keep_dense=True), None)
    assert kept.in_span and kept.models.keep_dense and len(kept.extracted) == 1
    assert not decided(local(mixed, rank=8), None).models.keep_dense
    with pytest.raises(
        InvalidInputError, match=r"keep_dense keeps what full checkpoints hold.*every expert is an adapter"
    ):
        decided(local({"a": adapters / "a", "b": adapters / "b"}, keep_dense=True), None)
    with pytest.raises(InvalidInputError, match=r"keep_dense keeps what adapters extracted.*set models\.rank"):
        decided(local({"a": tiny_models / "a", "b": tiny_models / "b"}, keep_dense=True), None)
    with pytest.raises(ValidationError, match="weights: dense leaves nothing out; remove one of the two"):
        local(mixed, weights="dense", keep_dense=True)


def test_wide_children_are_refused_where_they_are_served_as_adapters(tiny_models: Path) -> None:
    full = {"a": tiny_models / "a", "b": tiny_models / "b"}
    base = open_checkpoint(LocalSource(tiny_models / "base"))
    wide = replace(
        base, tensors={name: replace(t, shape=tuple(64 * n for n in t.shape)) for name, t in base.tensors.items()}
    )
    experts = [open_checkpoint(LocalSource(folder)) for folder in full.values()]
    assert "adapters of rank 600" in (too_wide(decided(local(full, rank=300), None), wide, experts) or "")
    assert too_wide(decided(local(full, rank=300, keep_dense=True), None), wide, experts) is None


def test_validate_lists_each_operator(tiny_models: Path, tmp_path: Path) -> None:
    """Experts that are adapters make `weights: auto` the span."""
    folder = write_adapters(tiny_models, tmp_path)
    tree = two_tasks().model_dump(mode="json", by_alias=True)
    for expert, name in zip(tree["models"]["experts"].values(), EXPERTS, strict=False):
        expert["path"] = str(folder / name)
    tree["method"] |= {"mutation": NOISE, "crossover": {"kind": "dare"}}
    findings = Findings()
    decide(Config.model_validate(tree), None, findings)
    assert [problem.partition(" needs ")[0] for problem in findings.problems] == [
        "crossover 'dare'",
        "mutation 'gaussian'",
    ]


def test_a_server_scores_adapters_only(tiny_models: Path, tmp_path: Path) -> None:
    """Full experts, also those that adapters are extracted from, are refused by validate and by seeding."""
    folder = write_adapters(tiny_models, tmp_path)

    def served(*full: str, **models: Any) -> Config:
        tree = two_tasks().model_dump(mode="json", by_alias=True)
        tree["evaluation"]["engine"] = "server"
        for expert, name in zip(tree["models"]["experts"].values(), EXPERTS, strict=False):
            expert["path"] = str((tiny_models if name in full else folder) / name)
        tree["models"] |= models
        return Config.model_validate(tree)

    assert decided(served(), None).in_span
    for config, expert in (
        (served("b", rank=4), "expert 'blue'"),
        (served("a", "b"), "expert 'blue', 'red'"),
    ):
        findings = Findings()
        decide(config, None, findings)
        (problem,) = findings.problems
        assert problem.startswith(
            f"evaluation.engine is server, which scores adapters of the base, and {expert} is a full checkpoint: give"
        )
        with pytest.raises(InvalidInputError, match=r"evaluation\.engine is server"):
            decided(config, None)
