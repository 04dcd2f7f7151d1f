"""What leads from MLflow's runs to the evolution: keys of runs, tags and parameters of models and lineage, datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cycleqd.search import operators
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import checkpoint_url, manifest_from
from cycleqd.storage.frozen import flat
from cycleqd.storage.objects import Store
from cycleqd.tracking.tracker import Ids, load_ids

if TYPE_CHECKING:
    from mlflow.entities import Dataset

_DATASET_DIGEST = 36  # characters that MLflow takes


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
    """The stored run ids among which a model's is; none where MLflow has been away since the model was planned.

    Args:
        store: Objects of the evolution.
        model: Model id.
    """
    return load_ids(store, layout.mlflow_of(model)) or Ids("")


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


def combined_tags(inputs: JSON) -> dict[str, str]:
    """What a combined model was made of, as tags.

    Args:
        inputs: Of the record of its making.
    """
    return {
        "cycleqd.parents": ",".join(parent["id"] for parent in inputs["models"]),
        "cycleqd.parent_digests": ",".join(parent["digest"] for parent in inputs["models"]),
        "cycleqd.coefficients": ",".join(map(repr, inputs["coefficients"])),
    }


def describe(child: Child) -> str:
    """A child's making in one sentence.

    Args:
        child: The child as planned.
    """
    pairs = " and ".join(f"{p.id} (ω {w:.4f})" for p, w in zip(child.parents, child.omega, strict=True))
    return f"Child of {pairs}; mutation: {operators.describe(child.mutation)}."


def checkpoint_tags(store: Store, model: str, made: JSON) -> dict[str, str]:
    """The tags that hold a model's digest, and where it is: in the span that depends on the digest.

    Args:
        store: Objects of the evolution.
        model: Model id.
        made: What a record says of the files.
    """
    recorded = manifest_from(made)
    return {"cycleqd.digest": recorded.digest, "cycleqd.checkpoint": checkpoint_url(store, model, recorded)}


def where_tags(run: Mapping[str, str], evaluation: str = "") -> dict[str, str]:
    """Tags that lead from a run to the KFP run, pod, image and code that made what it stands for, and back by a search.

    Those of an evaluation are apart: it may have been done elsewhere, long after the making.

    Args:
        run: The run record.
        evaluation: ".search.TASK" for an evaluation on that split and task; empty for the making.
    """
    keys = {"kfp_run": "kfp_run", "kfp_pod": "kfp_pod", "image": "image", "code": "code_version"}
    return {f"cycleqd.{tag}{evaluation}": run[key] for tag, key in keys.items() if run.get(key)}


def dataset(name: str, url: str, sha256: str, profile: JSON) -> Dataset:
    """Data as MLflow shows it. Its digests are short: the whole one goes into the profile.

    Args:
        name: Names the data.
        url: Where they are.
        sha256: Their digest, hex.
        profile: What else is known of them, a dict of JSON values.
    """
    from mlflow.entities import Dataset

    whole = json.dumps({**profile, "sha256": sha256})
    return Dataset(name, sha256[:_DATASET_DIGEST], "s3", json.dumps({"uri": url}), profile=whole)
