"""SVD mutation (paper section 3.3): every singular direction of a matrix is scaled by a random factor of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators import Floats, Parameters
from cycleqd.search.operators.mutation import Matrix, SpanMutation
from cycleqd.search.randomness import tensor_stream


def _usual(settings: dict[str, Any]) -> float:
    return 2.0 if settings.get("mode") == "rescale" else 0.3


class Svd(SpanMutation):
    """U Σ Vᵀ becomes U (Σ W) Vᵀ with W = diag(w) of random w_i."""

    kind: Literal["svd"] = "svd"
    mode: Literal["rescale", "additive"] = "additive"
    """`additive`: w ~ 1 + U[0, w_max]; `rescale`: w ~ U[0, w_max]."""
    w_max: float = Field(default_factory=_usual, ge=0)
    """End of the range of w; empty: 0.3 for `additive`, and 2 for `rescale`, which keeps the expected task vector."""
    embeddings: bool = True
    """Whether token embeddings and the head are mutated, too, as the paper's "every matrix" says."""

    def mutates(self, matrix: Matrix) -> bool:
        """All, or all but embeddings and heads."""
        return self.embeddings or not matrix.embedding

    def factors(self, values: Parameters, matrix: Matrix) -> Floats:
        """Uniform draws from the matrix's own stream; fewer directions have the first ones of more."""
        w = tensor_stream(values["seed"], matrix.name).uniform(0.0, self.w_max, matrix.directions)
        return np.asarray(w + (1.0 if self.mode == "additive" else 0.0), np.float32)

    def warnings(self) -> Iterator[str]:
        """Factors that can only shrink, or that grow a task vector fast."""
        if self.mode == "rescale" and self.w_max <= 1:
            yield (
                f"w_max is {self.w_max:g}: rescaling by U[0, w_max] can then only shrink task vectors;"
                " 2 keeps their expected size"
            )
        if self.mode == "additive" and self.w_max > 1:
            yield f"w_max is {self.w_max:g}: additive mutation adds that much; 0.3 is the usual value"
