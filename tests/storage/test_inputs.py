"""Which operators work on which kind of weights: refused by name before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import InvalidInputError
from cycleqd.run.checks import Findings, decide
from cycleqd.search.config import Config
from cycleqd.storage.inputs import decided
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
