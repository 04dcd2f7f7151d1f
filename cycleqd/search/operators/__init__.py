"""Operators of the search, a file each: selection, crossover, mutation, the rule for copies, the final model's rule.

A module of selection/, crossover/, mutation/, copies/ or final/ holds one operator: a class with its settings, what it
draws and what it computes. The module's name is its `kind` in the configuration; a user's own is
`kind: path/to/file.py:Class`. An operator sees scores, names and shapes, and never a checkpoint. What it does
to a child's task vector it returns as numbers (coefficients of the parents, factors of singular values), which hold for
task vectors in any form; only operators that work element by element need them dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cycleqd.loading import is_file, source_digest

Parameters = Mapping[str, Any]
"""Plain JSON values: an operator's kind, its settings and what it drew for one child, as a plan holds them."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

Needs = Literal["span", "elements", "cores"]
"""What an operator works on: linear combinations and singular values of task vectors, however they are kept; the single
elements of dense ones; or the cores of those in the span of low-rank experts."""


class Operator(BaseModel):
    """An operator with its settings: strict and immutable, as every part of the configuration is.

    The string below a setting is its line in docs/configuration.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    own_modules: ClassVar[str]
    """Where the library's own are, with "{}" for their kind."""

    needs: ClassVar[Needs] = "span"
    """What task vectors must offer: those that are kept as coefficients of others have no elements."""

    kind: str
    """Which operator; or your own, `file.py:Class` or `package.module:Class`."""

    @property
    def file(self) -> str | None:
        """The file of a user's own operator; None for the library's and for installed code."""
        return self.kind.rpartition(":")[0] if is_file(self.kind) else None

    @property
    def stored(self) -> str:
        """The kind that is frozen: a user's own file is stored by its sha256."""
        if not self.file:
            return self.kind
        return f"operators/{source_digest(type(self))}.py:{self.kind.rpartition(':')[2]}"

    def record(self, drawn: Mapping[str, Any]) -> Parameters:
        """What a plan holds of the operator for one child: its kind and settings, with what it drew.

        Args:
            drawn: What the operator drew for the child, JSON values by name.
        """
        return {**self.model_dump(mode="json"), **drawn}

    def warnings(self) -> Iterator[str]:
        """Settings that are allowed but probably a mistake: clauses such as "w_max is 3: …"."""
        yield from ()


O_co = TypeVar("O_co", bound=Operator, covariant=True)


@dataclass(frozen=True)
class Drawn(Generic[O_co]):
    """An operator and its record for one child: all that it needs to be applied."""

    operator: O_co
    values: Parameters


def describe(values: Parameters) -> str:
    """An operator's record in a few words, seeds left out: "svd (mode additive, w_max 0.3, embeddings True)".

    Args:
        values: The record, as a plan holds it.
    """
    shown = [f"{key} {_short(value)}" for key, value in values.items() if key not in ("kind", "seed")]
    return f"{values['kind']} ({', '.join(shown)})" if shown else str(values["kind"])


def _short(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
