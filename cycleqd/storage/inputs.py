"""Where an evolution's models are before seeding, and what follows from their kinds: dense checkpoints or the span."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.search.config import Config
from cycleqd.storage.checkpoints import S3Source
from cycleqd.storage.hub import HUB, snapshot
from cycleqd.weights.local import LocalSource
from cycleqd.weights.lora import is_adapter
from cycleqd.weights.protocols import Source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LARGE = 10**9
"""Bytes of weights above which a full checkpoint is merged and mutated at once: else it is written and read again."""


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_source(client: S3Client | None, path: str) -> Source:
    """A model's folder.

    Args:
        client: For s3:// URLs; None where S3 cannot be read.
        path: A folder of this machine, an s3:// URL, or hf://ORG/NAME.

    Raises:
        InvalidInputError: There is no such folder on this machine, or it is in S3 and there is no client.
        UnavailableError: The Hugging Face Hub cannot be reached.
    """
    if path.startswith(HUB):
        return LocalSource(snapshot(path), name=path)
    if path.startswith("s3://"):
        if client is None:
            raise InvalidInputError(f"{path} is in S3, which cannot be read here; set models.weights to dense or span")
        bucket, _, prefix = path.removeprefix("s3://").partition("/")
        return S3Source(client, bucket, prefix)
    if not Path(path).is_dir():
        raise InvalidInputError(_no_folder(path))
    return LocalSource(path)


def _no_folder(path: str) -> str:
    """That a folder is missing; where its name could be a model's on the Hub, what to do then."""
    name = "/".join(Path(path).parts[-2:])
    if Path(path).parent.is_dir() or not _HUB_NAME.fullmatch(name):
        return f"There is no checkpoint folder {path}; check the path."
    return (
        f"There is no checkpoint folder {path}; check the path, or, if {name} of the Hugging Face Hub is meant, write"
        f" {HUB}{name}, or download it (hf download {name} --local-dir FOLDER) and give its folder."
    )


def decided(config: Config, client: S3Client | None) -> Config:
    """The configuration with `models.weights` decided, by what the experts are, and `place.fused`, by the base's size.

    Args:
        config: As the user wrote it.
        client: For models in S3; None where it cannot be read. `place.fused` may then stay undecided, as it does where
            the base's folder is missing.

    Raises:
        InvalidInputError: The experts are not of the kind that `models.weights` or `models.keep_dense` asks for, or of
            two kinds without `models.rank`; an expert's folder is missing; or operators or the engine do not work on
            such weights.
    """
    return sized(_with_weights(config, client), client)


def sized(config: Config, client: S3Client | None) -> Config:
    """The configuration with `place.fused` decided where the base can be looked at.

    Args:
        config: `models.weights` decided.
        client: For a base in S3; None where it cannot be read.
    """
    try:
        return with_fused(config, find_source(client, config.models.base).files())
    except (InvalidInputError, UnavailableError):  # said where models are checked
        return config


def with_fused(config: Config, base: Mapping[str, int]) -> Config:
    """The configuration with `place.fused` decided: `auto` is whether a child's weights are over 1 GB, as the base's.

    Args:
        config: `models.weights` decided.
        base: The base's files and their bytes.
    """
    if config.place.fused != "auto":
        return config
    weights = sum(size for name, size in base.items() if name.endswith(".safetensors"))
    place = config.place.model_copy(update={"fused": not config.in_span and weights > LARGE})
    return config.model_copy(update={"place": place})


def _with_weights(config: Config, client: S3Client | None) -> Config:
    models = config.models
    remote = any(expert.path.startswith("s3://") for expert in models.experts.values())
    if client is None and remote and models.weights != "auto":
        return _refuse_unsuited(config)  # the user's word; seeding looks
    full = [name for name, e in models.experts.items() if not is_adapter(find_source(client, e.path).files())]
    ranks = {name: models.experts[name].rank or models.rank for name in full}
    wanted = models.weights
    if wanted == "auto":
        wanted = "span" if any(ranks.values()) or len(full) < len(models.experts) else "dense"
    if wanted == "dense" and len(full) < len(models.experts):
        raise InvalidInputError(
            f"models.weights is dense, but {_names(set(models.experts) - set(full))} is a LoRA adapter: remove"
            " models.weights, or merge the adapter into its base (peft's merge_and_unload)"
        )
    without = [name for name, rank in ranks.items() if rank is None]
    if wanted == "span" and without:
        raise InvalidInputError(
            f"{_names(without)} is a full checkpoint, and models.weights is span: set models.rank (64, say), the rank"
            " of the adapter to extract from it"
        )
    if models.keep_dense and wanted == "dense":
        raise InvalidInputError(
            "models.keep_dense keeps what adapters extracted from full checkpoints leave out, and none is extracted:"
            " set models.rank (64, say), or remove models.keep_dense"
        )
    if models.keep_dense and not full:
        raise InvalidInputError(
            "models.keep_dense keeps what full checkpoints hold beside adapters, and every expert is an adapter: remove"
            " it, or give an expert as a full checkpoint"
        )
    experts = {
        name: expert.model_copy(update={"rank": ranks.get(name) if wanted == "span" else None})
        for name, expert in models.experts.items()
    }
    chosen = models.model_copy(update={"weights": wanted, "experts": experts})
    return _refuse_unsuited(config.model_copy(update={"models": chosen}))


def _refuse_unsuited(config: Config) -> Config:
    """The configuration; raises InvalidInputError for each operator that does not work on its kind of weights, and for
    a server where full checkpoints would have to be scored.
    """
    unsuited, why = (
        ("elements", "needs single elements of dense weights, which models.weights: span does not keep; choose another")
        if config.in_span
        else ("cores", "works on cores, which models.weights: dense does not keep; choose another, or set models.rank")
    )
    operators = config.method.operators
    found = [f"{key} '{operator.kind}' {why}" for key, operator in operators.items() if operator.needs == unsuited]
    full = set(config.models.experts) if not config.in_span else {n.removeprefix("source-") for n in config.extracted}
    if config.evaluation.engine == "server" and full:
        found.append(
            f"evaluation.engine is server, which scores adapters of the base, and {_names(full)} is a full checkpoint:"
            " give experts as adapters (docs/adapters.md), or take the vllm engine"
        )
    if found:
        raise InvalidInputError("\n".join(found))
    return config


def _names(experts: Iterable[str]) -> str:
    return "expert " + ", ".join(f"'{name}'" for name in sorted(experts))
