"""Cores by name and content: EVOLUTION/MODEL/DIGEST, as a server of models is asked for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.search.fields import NAME
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.weights.manifest import CORE, Manifest
from cycleqd.weights.span import Core


@dataclass(frozen=True)
class Address:
    """Where a core lies in the bucket, and what it must be: the digest of its manifest (one file)."""

    evolution: str
    model: str
    digest: str

    def __str__(self) -> str:
        return f"{self.evolution}/{self.model}/{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what `str` gives; nothing else is one, so that no name leads out of the evolutions' models.

        Args:
            text: From a request.

        Raises:
            InvalidInputError: It is something else.
        """
        evolution, model, digest = text.split("/") if text.count("/") == 2 else ("", "", "")
        if not re.fullmatch(NAME, evolution) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise InvalidInputError(f"{text[:200]!r} names no adapter; names are EVOLUTION/MODEL/DIGEST")
        layout.home(model)
        return cls(evolution, model, digest)


def fetch_core(store: Store, address: Address) -> Core:
    """A core whose bytes have the address' digest; no record needs to be believed.

    Args:
        store: The evolution that the address names.
        address: The core's.

    Raises:
        IntegrityError: It is gone, or something else.
    """
    key = f"{layout.checkpoint(address.model)}/{CORE}"
    data = store.find(key)
    if data is None:
        raise IntegrityError(f"{store.url(key)} is not there: the model is no core, or was cleaned up")
    found = Manifest.of_core(data).digest
    if found != address.digest:
        raise IntegrityError(f"{store.url(key)} has digest {found}, asked for was {address.digest}")
    return Core.from_bytes(data, store.url(key))
