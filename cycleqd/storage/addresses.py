"""Models in the span by name and content: EVOLUTION/MODEL/DIGEST, as a server of models is asked for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cycleqd.errors import InvalidInputError
from cycleqd.search.fields import NAME
from cycleqd.storage import layout


@dataclass(frozen=True)
class Address:
    """A model in the span: its evolution, its id, and the digest that it must have."""

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
