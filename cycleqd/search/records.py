"""The vocabulary: frozen records that all layers share, with exact JSON round trips.

`to_json` gives plain JSON values; `canonical` gives the one byte string of a value, which digests are taken over.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

from pydantic import TypeAdapter

JSON = Any
Scores = Mapping[str, float]
"""Task name → score, a fraction in [0, 1]."""


def average(scores: Scores) -> float:
    """Mean over the search tasks.

    Args:
        scores: Scores on all search tasks.
    """
    return math.fsum(scores.values()) / len(scores)


def canonical(value: JSON) -> bytes:
    """The canonical UTF-8 JSON of a value: sorted keys, no spaces, shortest round-trip floats.

    Args:
        value: JSON value.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: JSON) -> str:
    """sha256 (hex) of the canonical JSON.

    Args:
        value: JSON value.
    """
    return hashlib.sha256(canonical(value)).hexdigest()


class JsonRecord:
    """A frozen dataclass that has a JSON form: an object with a key for each field."""

    def to_json(self) -> JSON:
        """Plain JSON values, as they are stored."""
        return json.loads(canonical(asdict(self)))  # type: ignore[call-overload]  # only dataclasses subclass this

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`.

        Args:
            value: JSON as `to_json` makes it.

        Raises:
            ValueError: a key is missing, or a value is of another type.
        """
        found: Self = cls._adapter().validate_python(value)
        return found

    @classmethod
    @cache
    def _adapter(cls) -> TypeAdapter[Any]:
        return TypeAdapter(cls)


@dataclass(frozen=True, order=True)
class ModelRef(JsonRecord):
    """A model: its id ("base", "expert-code", "g000012-c00", "final") and the digest of its checkpoint.

    The digest is that of the manifest (every file's name, size and sha256): equal bytes, equal digests.
    """

    id: str
    digest: str


@dataclass(frozen=True)
class Child(JsonRecord):
    """One planned child: its parents' task vectors crossed over, then mutated. All that its bytes depend on.

    `id` is "g{generation:06d}-c{index:02d}". crossover, mutation: the operators' records, which are their kinds,
    settings and what they drew for this child; crossover's holds "omega", one weight a parent, and "coefficients" where
    the child is not their mean: of each parent those c of θ_base + Σ c τ, one for all tensors or one a layer.
    """

    id: str
    generation: int
    index: int
    base: ModelRef
    parents: tuple[ModelRef, ...]
    crossover: Mapping[str, JSON]
    mutation: Mapping[str, JSON]

    @property
    def omega(self) -> tuple[float, ...]:
        """The parents' weights, parallel to `parents`."""
        return tuple(self.crossover["omega"])

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """Each parent's id and its share of the child, mutation aside: its mean coefficient, else ω_i / Σω."""
        names = [parent.id for parent in self.parents]
        if rows := self.crossover.get("coefficients"):
            return tuple((name, math.fsum(row) / len(row)) for name, row in zip(names, rows, strict=True))
        total = sum(self.omega)
        return tuple((name, omega / total) for name, omega in zip(names, self.omega, strict=True))

    @property
    def origin(self) -> str:
        """The digest of parents and ω (or coefficients): children of one origin differ in their mutation alone."""
        weights = self.crossover.get("coefficients", self.omega)
        return digest(sorted([parent.digest, weight] for parent, weight in zip(self.parents, weights, strict=True)))


@dataclass(frozen=True)
class Plan(JsonRecord):
    """What a generation makes: the archives it works on and its children, selected from one snapshot.

    `snapshot` is the digest of the snapshot read. `focus` names the quality task of each child's archive ("" for
    methods without archives), parallel to `children`.
    """

    generation: int
    snapshot: str
    focus: tuple[str, ...]
    children: tuple[Child, ...]


@dataclass(frozen=True)
class Scored:
    """A model and its scores on every search task: what is offered to archives and populations.

    `verdicts` (only for Lexicase on samples): task → one bool a sample, in the search split's order. `origin` (only for
    rules for copies that need it): the digest of a child's parents and ω.
    """

    model: ModelRef
    scores: Scores
    verdicts: Mapping[str, tuple[bool, ...]] | None = None
    origin: str = ""

    def copies(self, other: Scored) -> bool:
        """Whether both have the same weights, or the same parents and ω as far as that is known.

        Args:
            other: Another model, or the same.
        """
        return self.model.digest == other.model.digest or (self.origin == other.origin and self.origin != "")

    def to_json(self) -> JSON:
        """JSON as in a snapshot; verdicts, where there are any, as one text of "0" and "1" a task."""
        value: dict[str, JSON] = {"model": self.model.to_json(), "scores": dict(self.scores)}
        if self.verdicts is not None:
            value["verdicts"] = {task: "".join("01"[v] for v in bits) for task, bits in self.verdicts.items()}
        if self.origin:
            value["origin"] = self.origin
        return value

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`.

        Args:
            value: JSON as `to_json` makes it.

        Raises:
            KeyError: a key is missing.
        """
        verdicts = value.get("verdicts")
        return cls(
            model=ModelRef.from_json(value["model"]),
            scores=dict(value["scores"]),
            verdicts=None
            if verdicts is None
            else {task: tuple(bit == "1" for bit in bits) for task, bits in verdicts.items()},
            origin=value.get("origin", ""),
        )


@dataclass(frozen=True)
class Evaluated:
    """A line of the history: a model, its scores, and the generation that made it (-1, seeding, for an expert).

    `origin`: as of `Scored`.
    """

    generation: int
    model: ModelRef
    scores: Scores
    origin: str = ""
