"""Where everything is under s3://BUCKET/EVOLUTION/. Keys are relative to the evolution; a folder has no trailing slash.

    sources/…                                what a client brought for seeding to read, gone once HEAD is there
    config.json                              the frozen configuration
    seed/{result,run,mlflow}.json            digests and manifests of base, experts, task data and plug-ins
    seed/update/{result,run}.json            the making of snapshot 0
    tasks/NAME/{data/…,plugin.py}
    operators/SHA256.py                      operators of a user's own, as the frozen configuration names them
    engines/SHA256.py                        an engine of the user's own, named in the same way
    models/ID/…                              homes of base, expert-NAME, final, naive and lambda-VALUE
    cores/DIGEST.safetensors                 the models of an evolution in the span, each content once
    generations/NNNNNN/{plan,run,mlflow}.json    the plan is the claim
    generations/NNNNNN/children/ID/…         homes of children
    generations/NNNNNN/update/{result,run}.json
    archives/NNNNNN.json                     snapshot n: the state after n generations
    archives/NNNNNN-E.json                   edition E of it: the living models, scored anew by `cycleqd rescore`
    rescorings/NNNNNN-E/update/{result,run}.json   the making of that edition
    rescoring.json                           a rescoring was begun and has not ended: nothing else moves HEAD
    extensions/NNNNNN/{result,run}.json      what `cycleqd extend` changed of the configuration later, from 1
    HEAD.json                                {snapshot, sha256, edition}
    final/{plan,mlflow}.json                 what finalising reads: kept from cleaning
    final/tuned/{result,run}.json            which λ of task arithmetic is best on the search split
    report/models.json                       ids of the models that a report names: kept from cleaning
    unlogged/FOLDER.json                     the record of that folder is not in MLflow yet
    runs/ID/failures/TASK-….json             why a task of that Kubeflow run failed, until it begins again
    runs/ID/logs/TASK-….json                 the last lines that a task of that run wrote, until it begins again
    repeats/STEP.json                        how often a step's run was repeated, by whichever driver
    parameters/SHA256.json                   a profile, or seeding's configuration, that runs' parameters name

In the span of low-rank experts, expert-NAME, children and combined models are cores of the basis at models/basis, named
by the digest that records, plans and snapshots give a model: equal models share one. source-NAME is an expert as it
came, adapter-NAME the adapter that was extracted from it.

A home holds checkpoint/… (but of a core), merged/… (an intermediate), adapter/… or full/… (of a final core) and the
records of what was done: make/ (base, experts, final, naive), merge/ and mutate/ (children), evaluations/TASK/SPLIT/,
each with a result.json and a run.json.
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
CORES = "cores"
UNLOGGED = "unlogged"
PARAMETERS = "parameters"
EXTENSIONS = "extensions"
TUNED = "final/tuned"
"""The folder of the choice of task arithmetic's best λ."""

BASIS = "basis"
"""Id of the basis of an evolution in the span; it is kept as models are."""

_CHILD = re.compile(r"^g(\d{6})-c(\d{2,})\Z")
_CHILDREN = re.compile(r"g\d{6}-c\d{2,}")
_COMBINED = re.compile(r"^(naive|aggregated|final|lambda-[0-9.]+)\Z")
_OTHERS = re.compile(r"^(base|basis|(expert|source|adapter)-[a-z0-9._-]+)\Z")


def child_generation(model: str) -> int | None:
    """The generation of a child's id ("g000012-c00" → 12); None for a model that is not a child.

    Args:
        model: Model id.
    """
    match = _CHILD.match(model)
    return int(match[1]) if match else None


def is_combined(model: str) -> bool:
    """Whether a model is what finalising may build: a linear combination of models.

    Args:
        model: Model id.
    """
    return bool(_COMBINED.match(model))


def children_in(text: str) -> list[str]:
    """The ids of children that a text names, each once, sorted.

    Args:
        text: Any text, such as the arguments of a task.
    """
    return sorted(set(_CHILDREN.findall(text)))


def home(model: str) -> str:
    """The folder of a model.

    Args:
        model: Model id.

    Raises:
        InvalidInputError: it is not a model id.
    """
    number = child_generation(model)
    if number is not None:
        return f"{generation(number)}/children/{model}"
    if not (is_combined(model) or _OTHERS.match(model)):
        raise InvalidInputError(
            f"'{model}' is not a model id; they look like base, expert-NAME, g000012-c00, naive, aggregated or final"
        )
    return f"models/{model}"


def checkpoint(model: str) -> str:
    """The folder of a model's checkpoint.

    Args:
        model: Model id.
    """
    return f"{home(model)}/checkpoint"


def core(digest: str) -> str:
    """A model in the span of low-rank experts.

    Args:
        digest: The model's.
    """
    return f"{CORES}/{digest}.safetensors"


def adapter(model: str) -> str:
    """The folder of a core's PEFT adapter, which the final model has for those who load it.

    Args:
        model: Model id.
    """
    return f"{home(model)}/adapter"


def full(model: str) -> str:
    """The folder of a core's full checkpoint, which the final model has where no adapter is the same.

    Args:
        model: Model id.
    """
    return f"{home(model)}/full"


def merged(model: str) -> str:
    """The folder of the unmutated intermediate, where merge and mutate are separate stages.

    Args:
        model: Id of a child.
    """
    return f"{home(model)}/merged"


def stage(model: str, name: str) -> str:
    """The folder of the record of how a model was made.

    Args:
        model: Model id.
        name: "merge" or "mutate" for a child, "make" for any other model.
    """
    return f"{home(model)}/{name}"


def makers(model: str) -> tuple[str, ...]:
    """The folders that may hold the record of the checkpoint's making, the last stage first.

    Args:
        model: Model id.
    """
    return tuple(
        stage(model, name) for name in (("mutate", "merge") if child_generation(model) is not None else ("make",))
    )


def evaluation(model: str, task: str, split: str) -> str:
    """The folder of the record and the transcripts of a model on a task.

    Args:
        model: Model id.
        task: Name of the task in the configuration.
        split: "search" or "test".
    """
    return f"{home(model)}/evaluations/{task}/{split}"


def task(name: str) -> str:
    """The folder of a task's data and plug-in.

    Args:
        name: Name of the task in the configuration.
    """
    return f"tasks/{name}"


def generation(number: int) -> str:
    """The folder of a generation.

    Args:
        number: Generation, from 0.
    """
    return f"generations/{number:06d}"


def generation_of(key: str) -> int | None:
    """The generation in whose folder a key is, or whose folder it is; None for what belongs to none.

    Args:
        key: Key or folder, relative to the evolution.
    """
    first, _, rest = f"{key}/".partition("/")
    return int(rest.partition("/")[0]) if first == "generations" else None


def plan(number: int) -> str:
    """The sealed plan of a generation: writing it is the claim.

    Args:
        number: Generation, from 0.
    """
    return f"{generation(number)}/plan.json"


def mlflow(number: int) -> str:
    """The MLflow run ids of a generation and its children.

    Args:
        number: Generation, from 0.
    """
    return f"{generation(number)}/mlflow.json"


def mlflow_of(model: str) -> str:
    """The MLflow run ids among which a model's is.

    Args:
        model: Model id.
    """
    number = child_generation(model)
    if number is not None:
        return mlflow(number)
    return FINAL_MLFLOW if is_combined(model) else SEED_MLFLOW


def update(number: int) -> str:
    """The folder of the record of a generation's update of the archives.

    Args:
        number: Generation, from 0; -1 is seeding.
    """
    return f"{SEED}/update" if number < 0 else f"{generation(number)}/update"


def maker(number: int, edition: int) -> str:
    """The folder of the record of a snapshot's making: of the update, or of the rescoring that made an edition.

    Args:
        number: Snapshot: the number of generations done.
        edition: 0 for the snapshot that the update made, from 1 for those of rescorings.
    """
    return f"{RESCORINGS}/{number:06d}-{edition}/update" if edition else update(number - 1)


def snapshot(number: int, edition: int = 0) -> str:
    """The state after a number of generations.

    Args:
        number: Generations done.
        edition: 0 for the snapshot that the update made, from 1 for those of rescorings.
    """
    return f"archives/{number:06d}-{edition}.json" if edition else f"archives/{number:06d}.json"


def extension(number: int) -> str:
    """The folder of the record of a change of the configuration after seeding.

    Args:
        number: Of the extension, from 1.
    """
    return f"{EXTENSIONS}/{number:06d}"


def result(folder: str) -> str:
    """The sealed record of a stage.

    Args:
        folder: Folder of the stage.
    """
    return f"{folder}/result.json"


def run(folder: str) -> str:
    """When, where and with what a stage was computed.

    Args:
        folder: Folder of the stage.
    """
    return f"{folder}/run.json"


def unlogged(folder: str) -> str:
    """The mark that a record is not in MLflow yet: written before the record, gone once it was logged.

    Args:
        folder: Folder of a stage's record; of a generation, for its plan.
    """
    return f"{UNLOGGED}/{folder}.json"


def parameter(sha256: str) -> str:
    """What a run's parameter names.

    Args:
        sha256: Digest of its bytes, hex.
    """
    return f"{PARAMETERS}/{sha256}.json"
