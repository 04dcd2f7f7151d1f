"""Keys of what is kept of runs on a cluster, relative to an evolution's prefix; `layout` lists all keys."""

from __future__ import annotations


def failures(run: str) -> str:
    """The folder of the failures of a Kubeflow run.

    Args:
        run: Id of the run in Kubeflow Pipelines.
    """
    return f"runs/{run}/failures"


def failure(run: str, name: str) -> str:
    """The failure of one task of a Kubeflow run.

    Args:
        run: Id of the run in Kubeflow Pipelines.
        name: Name of the task, with a digest of its arguments.
    """
    return f"{failures(run)}/{name}.json"


def last_lines_of(run: str) -> str:
    """The folder of what tasks of a Kubeflow run wrote.

    Args:
        run: Id of the run in Kubeflow Pipelines.
    """
    return f"runs/{run}/logs"


def last_lines(run: str, name: str) -> str:
    """What one task of a Kubeflow run wrote.

    Args:
        run: Id of the run in Kubeflow Pipelines.
        name: Name of the task, with a digest of its arguments.
    """
    return f"{last_lines_of(run)}/{name}.json"


def repeats(step: str) -> str:
    """How often a step's run was repeated.

    Args:
        step: Name of the step, as drivers call it.
    """
    return f"repeats/{step}.json"
