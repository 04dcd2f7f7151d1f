"""What is too long for a run's parameters, which Kubeflow shows as they are: they name it, by its sha256, in S3.

That is the profile that a run was started with and, for seeding, the configuration. Neither decides a result: what does
is frozen at seeding.
"""

from __future__ import annotations

import hashlib
import json

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.search.place import Place
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.formats import FORMAT, decode
from cycleqd.storage.objects import Store

_MARK = "@sha256:"


def keep(store: Store, name: str, value: JSON) -> str:
    """Store a value, once; what a run's parameter says of it: "gpu@sha256:…".

    Args:
        store: Objects of the evolution.
        name: What people call it.
        value: A dict of JSON values, without secrets. The order of its keys is kept.
    """
    data = json.dumps({"format": FORMAT, **value}, ensure_ascii=False).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    store.create(layout.parameter(sha256), data)
    return f"{name}{_MARK}{sha256}"


def is_name(parameter: str) -> bool:
    """Whether a run's parameter names a value that is stored.

    Args:
        parameter: Of any kind.
    """
    return _MARK in parameter


def look_up(store: Store, parameter: str) -> JSON:
    """The value that a run's parameter names.

    Args:
        store: Objects of the evolution.
        parameter: As `keep` returned it.

    Raises:
        InvalidInputError: it names nothing, or nothing that is stored.
        IntegrityError: what is stored was altered.
    """
    _, mark, sha256 = parameter.rpartition(_MARK)
    key = layout.parameter(sha256)
    data = store.find(key) if mark else None
    if data is None:
        raise InvalidInputError(
            f"the parameter '{parameter}' names nothing in {store.url(layout.PARAMETERS)}; start runs with `cycleqd"
            " submit`, `drive` or `schedule`, which store what they name"
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(
            f"{store.url(key)} does not have the sha256 that it is named by; it was altered: delete it"
        )
    return decode(key, data, store.url(key))


def keep_place(store: Store, place: Place) -> str:
    """Store a place; the parameter `profile` that names it.

    Args:
        store: Objects of the evolution.
        place: The section `place`.
    """
    return keep(store, place.name, place.model_dump(mode="json", by_alias=True))


def load_place(store: Store, profile: str) -> Place:
    """The place that a run was started with. Raises as `look_up` does.

    Args:
        store: Objects of the evolution.
        profile: The parameter of a stage.
    """
    return Place.model_validate(look_up(store, profile))
