"""What leads from MLflow's runs to the evolution: their keys, and the tags and parameters of models and lineage."""

from __future__ import annotations

from collections.abc import Mapping

from cycleqd.search import operators
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.frozen import flat
from cycleqd.storage.objects import Store
from cycleqd.tracking.tracker import Ids, need_ids


def generation_key(number: int) -> str:
    """The key of a generation's run.

    Args:
        number: Generation, from 0.
    """
    return f"generation:{number:06d}"


def model_key(model: str) -> str:
    """The key of a model's run.

    Args:
        model: Model id.
    """
    return f"model:{model}"


def ids_of(store: Store, model: str) -> Ids:
    """The stored run ids among which a model's is.

    Args:
        store: Objects of the evolution.
        model: Model id.
    """
    number = layout.child_generation(model)
    if number is not None:
        return need_ids(store, layout.mlflow(number))
    return need_ids(store, layout.FINAL_MLFLOW if layout.is_combined(model) else layout.SEED_MLFLOW)


def model_tags(store: Store, model: str, kind: str) -> dict[str, str]:
    """What every model's run is tagged with: kind, id, where its checkpoint is.

    Args:
        store: Objects of the evolution.
        model: Model id.
        kind: "base", "expert", "child", or the id of a combined model.
    """
    return {
        "cycleqd.kind": kind,
        "cycleqd.model": model,
        "cycleqd.checkpoint": store.url(layout.checkpoint(model)),
    }


def lineage_tags(child: Child) -> dict[str, str]:
    """A child's parents, ω and seed as tags: the family tree can be read from MLflow alone.

    Args:
        child: The child as planned.
    """
    tags = {
        "cycleqd.generation": str(child.generation),
        "cycleqd.parents": ",".join(parent.id for parent in child.parents),
        "cycleqd.parent_digests": ",".join(parent.digest for parent in child.parents),
        "cycleqd.omega": ",".join(map(repr, child.omega)),
        "cycleqd.crossover": child.crossover["kind"],
        "cycleqd.mutation": child.mutation["kind"],
        "cycleqd.mutation_seed": str(child.mutation.get("seed", "")),
    }
    return tags


def lineage_params(child: Child) -> dict[str, object]:
    """A child's parents, ω, and its operators' settings and draws as parameters: columns to compare runs by.

    Coefficients of single layers stand in the plan alone: they are longer than what MLflow takes.

    Args:
        child: The child as planned.
    """
    crossover = {key: value for key, value in child.crossover.items() if key not in ("omega", "coefficients")}
    drawn = flat(crossover, "crossover") | flat(child.mutation, "mutation")
    omega = {f"omega_{i}": value for i, value in enumerate(child.omega, 1)}
    parents = {f"parent_{i}": parent.id for i, parent in enumerate(child.parents, 1)}
    return {"generation": child.generation, **parents, **omega, **drawn}


def describe(child: Child) -> str:
    """A child's making in one sentence.

    Args:
        child: The child as planned.
    """
    pairs = " and ".join(f"{p.id} (ω {w:.4f})" for p, w in zip(child.parents, child.omega, strict=True))
    return f"Child of {pairs}; mutation: {operators.describe(child.mutation)}."


def digest_tag(made: JSON) -> dict[str, object]:
    """The tag that holds a model's digest.

    Args:
        made: What a record says of the files.
    """
    return {"cycleqd.digest": made["digest"]}


def where_tags(run: Mapping[str, str], evaluation: str = "") -> dict[str, str]:
    """Tags that lead from a run to the KFP run, pod, image and code that made what it stands for, and back by a search.

    Those of an evaluation are apart: it may have been done elsewhere, long after the making.

    Args:
        run: The run record.
        evaluation: ".search.TASK" for an evaluation on that split and task; empty for the making.
    """
    keys = {"kfp_run": "kfp_run", "kfp_pod": "kfp_pod", "image": "image", "code": "code_version"}
    return {f"cycleqd.{tag}{evaluation}": run[key] for tag, key in keys.items() if run.get(key)}
