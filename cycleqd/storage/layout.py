"""Where everything is under s3://BUCKET/EVOLUTION/. Keys are relative to the evolution; a folder has no trailing slash.

    sources/…                                what a client brought for seeding to read, gone once HEAD is there
    config.json                              the frozen configuration
    seed/{result,run,mlflow}.json            digests and manifests of base, experts, task data and plug-ins
    seed/update/{result,run}.json            the making of snapshot 0
    tasks/NAME/{data/…,plugin.py}
    operators/SHA256.py                      operators of a user's own, as the frozen configuration names them
    engines/SHA256.py                        an engine of the user's own, named in the same way
    models/ID/…                              homes of base, expert-NAME, final and naive
    generations/NNNNNN/{plan,mlflow}.json    the plan is the claim
    generations/NNNNNN/children/ID/…         homes of children
    generations/NNNNNN/update/{result,run}.json
    archives/NNNNNN.json                     snapshot n: the state after n generations
    archives/NNNNNN-E.json                   edition E of it: the living models, scored anew by `cycleqd rescore`
    rescorings/NNNNNN-E/update/{result,run}.json   the making of that edition
    rescoring.json                           a rescoring was begun and has not ended: nothing else moves HEAD
    HEAD.json                                {snapshot, sha256, edition}
    final/{plan,mlflow}.json                 what finalising reads: kept from cleaning
    report/models.json                       ids of the models that a report names: kept from cleaning
    runs/ID/failures/TASK-….json             why a task of that Kubeflow run failed, until it begins again
    repeats/STEP.json                        how often a step's run was repeated, by whichever driver

A home holds checkpoint/…, merged/… (an intermediate) and the records of what was done: make/ (base, experts, final,
naive), merge/ and mutate/ (children), evaluations/TASK/SPLIT/, each with a result.json and a run.json.
"""

from __future__ import annotations

import re

from cycleqd.errors import InvalidInputError

SOURCES = "sources"
CONFIG = "config.json"
HEAD = "HEAD.json"
RESCORING = "rescoring.json"
RESCORINGS = "rescorings"
SEED = "seed"
SEED_MLFLOW = "seed/mlflow.json"
FINAL_PLAN = "final/plan.json"
FINAL_MLFLOW = "final/mlflow.json"
REPORT_MODELS = "report/models.json"
COMBINED = ("naive", "aggregated", "final")
"""Ids of what finalising may build: linear combinations of models."""

_CHILD = re.compile(r"^g(\d{6})-c(\d{2,})$")
_CHILDREN = re.compile(r"g\d{6}-c\d{2,}")
_MODEL = re.compile(r"^(base|naive|aggregated|final|expert-[a-z0-9._-]+)$")


def child_generation(model: str) -> int | None:
    """The generation of a child's id ("g000012-c00" → 12); None for any other model."""
    match = _CHILD.match(model)
    return int(match[1]) if match else None


def children_in(text: str) -> list[str]:
    """The ids of children that a text names, each once, sorted."""
    return sorted(set(_CHILDREN.findall(text)))


def home(model: str) -> str:
    """The folder of a model. Raises InvalidInputError for what is not a model id."""
    number = child_generation(model)
    if number is not None:
        return f"{generation(number)}/children/{model}"
    if not _MODEL.match(model):
        raise InvalidInputError(
            f"'{model}' is not a model id; they look like base, expert-NAME, g000012-c00, naive, aggregated or final"
        )
    return f"models/{model}"


def checkpoint(model: str) -> str:
    """The folder of a model's checkpoint."""
    return f"{home(model)}/checkpoint"


def merged(model: str) -> str:
    """The unmutated intermediate of separate merge and mutate stages."""
    return f"{home(model)}/merged"


def stage(model: str, name: str) -> str:
    """The folder of a model's merge or mutate record."""
    return f"{home(model)}/{name}"


def makers(model: str) -> tuple[str, ...]:
    """The folders that may hold the record of the checkpoint's making, the last maker first."""
    return tuple(
        stage(model, name) for name in (("mutate", "merge") if child_generation(model) is not None else ("make",))
    )


def evaluation(model: str, task: str, split: str) -> str:
    """The folder of the record and transcripts of a model on a task and split."""
    return f"{home(model)}/evaluations/{task}/{split}"


def task(name: str) -> str:
    """The folder of a task's data and plug-in."""
    return f"tasks/{name}"


def generation(number: int) -> str:
    """The folder of a generation."""
    return f"generations/{number:06d}"


def plan(number: int) -> str:
    """The sealed plan of a generation: writing it is the claim."""
    return f"{generation(number)}/plan.json"


def mlflow(number: int) -> str:
    """The MLflow run ids of a generation and its children."""
    return f"{generation(number)}/mlflow.json"


def update(number: int) -> str:
    """The folder of the record of the update after generation `number`; -1 is seeding's."""
    return f"{SEED}/update" if number < 0 else f"{generation(number)}/update"


def maker(number: int, edition: int) -> str:
    """The folder of the record of a snapshot's making: of the update, or of the rescoring that made an edition."""
    return f"{RESCORINGS}/{number:06d}-{edition}/update" if edition else update(number - 1)


def snapshot(number: int, edition: int = 0) -> str:
    """The state after `number` generations; edition 0 is the update's, later ones are rescorings of it."""
    return f"archives/{number:06d}-{edition}.json" if edition else f"archives/{number:06d}.json"


def result(folder: str) -> str:
    """The sealed record of a stage's folder."""
    return f"{folder}/result.json"


def run(folder: str) -> str:
    """When, where and with what a stage was computed."""
    return f"{folder}/run.json"


def failures(run: str) -> str:
    """The folder of the failures of a Kubeflow run, by its id."""
    return f"runs/{run}/failures"


def failure(run: str, name: str) -> str:
    """The failure of one of its tasks."""
    return f"{failures(run)}/{name}.json"


def repeats(step: str) -> str:
    """How often a step's run was repeated."""
    return f"repeats/{step}.json"
