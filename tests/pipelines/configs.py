"""Configurations whose compiled pipelines are golden files."""

from __future__ import annotations

from pathlib import Path

from cycleqd.search.config import Config, load, parse

ROOT = Path(__file__).parents[2]
LLAMA3 = ROOT / "examples" / "llama3" / "cycleqd.yaml"


def golden_configs() -> dict[str, Config]:
    """One a placement: the published setting on a cluster, every grouping on one machine, large children, the span."""
    return {
        "llama3": load(LLAMA3),
        "task": two_tasks(group="task"),
        "child": two_tasks(group="child"),
        "large": two_tasks(group="child", fused=True),
        "generation": two_tasks(group="generation"),
        "span": in_span(two_tasks(group="generation")),
        "span-kubeflow": in_span(two_tasks(runner="kubeflow", services="external", group="task")),
    }


def in_span(config: Config) -> Config:
    """The configuration as it is once its experts were seen to be adapters, one of them extracted."""
    experts = dict(config.models.experts)
    experts["red"] = experts["red"].model_copy(update={"rank": 8})
    models = config.models.model_copy(update={"weights": "span", "experts": experts})
    return config.model_copy(update={"models": models})


def two_tasks(**place: object) -> Config:
    """Two tasks and one that is only reported; nothing that it names is opened when pipelines are compiled."""
    task = {"class": "package.module:Task", "data": "/data"}
    return parse(
        {
            "name": "golden",
            "models": {
                "base": "/models/base",
                "experts": {
                    "red": {"path": "/models/red", "task": "one"},
                    "blue": {"path": "/models/blue", "task": "two"},
                },
            },
            "tasks": {"one": task, "two": task, "three": {**task, "report_only": True}},
            "place": {"folder": "/state", "fused": False, **place},
        },
        "the golden configuration",
    )
