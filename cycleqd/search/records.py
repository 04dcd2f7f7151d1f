"""The vocabulary: frozen records that all layers share, with exact JSON round trips.

`to_json` gives plain JSON values; `canonical` gives the one byte string of a value, which digests are taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

JSON = Any
Scores = Mapping[str, float]
"""Task name → score, a fraction in [0, 1]."""


def canonical(value: JSON) -> bytes:
    """The canonical UTF-8 JSON of a value: sorted keys, no spaces, shortest round-trip floats, no NaN.

    Raises ValueError for NaN and infinities.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: JSON) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


@dataclass(frozen=True, order=True)
class ModelRef:
    """A model: its id ("base", "expert-code", "g000012-c00", "final") and the digest of its checkpoint.

    The digest is that of the manifest (every file's name, size and sha256): equal bytes, equal digests.
    """

    id: str
    digest: str

    def to_json(self) -> JSON:
        """JSON as in plans, snapshots and results."""
        return {"id": self.id, "digest": self.digest}

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`; KeyError where a key is missing."""
        return cls(id=value["id"], digest=value["digest"])


@dataclass(frozen=True)
class Mutation:
    """How a child's task vector is mutated (paper section 3.3; Gaussian: ablation), with the seed of its random stream.

    kind "none" | "svd" | "gaussian". For svd: mode "rescale" draws w ~ U[0, w_max], "additive" 1 + U[0, w_max].
    sigma is the standard deviation for gaussian. `embeddings`: whether token embeddings and the head take part.
    """

    kind: str = "none"
    mode: str = "rescale"
    w_max: float = 0.0
    sigma: float = 0.0
    embeddings: bool = True
    seed: int = 0

    def to_json(self) -> JSON:
        """JSON with every field, also those that `kind` does not use."""
        return {
            "kind": self.kind,
            "mode": self.mode,
            "w_max": self.w_max,
            "sigma": self.sigma,
            "embeddings": self.embeddings,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`; TypeError where a field is unknown."""
        return cls(**value)


@dataclass(frozen=True)
class Child:
    """One planned child: θ_base + Σ ω_i τ_i / Σ ω_i over its parents, then mutated. All that its bytes depend on.

    `id` is "g{generation:06d}-c{index:02d}". Parents and ω are parallel tuples (CycleQD: two of each).
    """

    id: str
    generation: int
    index: int
    base: ModelRef
    parents: tuple[ModelRef, ...]
    omega: tuple[float, ...]
    mutation: Mutation

    def to_json(self) -> JSON:
        """JSON as in a plan, and among the inputs in the records of merge and mutate."""
        return {
            "id": self.id,
            "generation": self.generation,
            "index": self.index,
            "base": self.base.to_json(),
            "parents": [p.to_json() for p in self.parents],
            "omega": list(self.omega),
            "mutation": self.mutation.to_json(),
        }

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`; KeyError where a key is missing."""
        return cls(
            id=value["id"],
            generation=value["generation"],
            index=value["index"],
            base=ModelRef.from_json(value["base"]),
            parents=tuple(ModelRef.from_json(p) for p in value["parents"]),
            omega=tuple(value["omega"]),
            mutation=Mutation.from_json(value["mutation"]),
        )


@dataclass(frozen=True)
class Plan:
    """What a generation makes: the archives it works on and its children, selected from one snapshot.

    `snapshot` is the digest of the snapshot read. `focus` names the quality task of each child's archive ("" for
    methods without archives), parallel to `children`.
    """

    generation: int
    snapshot: str
    focus: tuple[str, ...]
    children: tuple[Child, ...]

    def to_json(self) -> JSON:
        """JSON as in a generation's plan.json."""
        return {
            "generation": self.generation,
            "snapshot": self.snapshot,
            "focus": list(self.focus),
            "children": [c.to_json() for c in self.children],
        }

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`; KeyError where a key is missing."""
        return cls(
            generation=value["generation"],
            snapshot=value["snapshot"],
            focus=tuple(value["focus"]),
            children=tuple(Child.from_json(c) for c in value["children"]),
        )


@dataclass(frozen=True)
class Scored:
    """A model and its scores on every search task: what is offered to archives and populations.

    `verdicts` (only for Lexicase on samples): task → one bool a sample, in the search split's order.
    """

    model: ModelRef
    scores: Scores
    verdicts: Mapping[str, tuple[bool, ...]] | None = None

    def to_json(self) -> JSON:
        """JSON as in a snapshot; verdicts, where there are any, as one text of "0" and "1" a task."""
        value: dict[str, JSON] = {"model": self.model.to_json(), "scores": dict(self.scores)}
        if self.verdicts is not None:
            value["verdicts"] = {task: "".join("01"[v] for v in bits) for task, bits in self.verdicts.items()}
        return value

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`; KeyError where a key is missing."""
        verdicts = value.get("verdicts")
        return cls(
            model=ModelRef.from_json(value["model"]),
            scores=dict(value["scores"]),
            verdicts=None
            if verdicts is None
            else {task: tuple(bit == "1" for bit in bits) for task, bits in verdicts.items()},
        )
