"""SVD mutation (paper section 3.3): every singular direction of a matrix is scaled by a random factor of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cycleqd.search.operators import Parameters
from cycleqd.search.operators.mutation import Floats, Matrix, SpanMutation
from cycleqd.search.randomness import tensor_stream


class Svd(SpanMutation):
    """rescale: w ~ U[0, w_max], which keeps the expected task vector at 2; additive: w ~ 1 + U[0, w_max].

    w_max: 0.3 for additive and 2 for rescale, unless it is given. embeddings: whether token embeddings and the head
    are mutated too, as the paper's "every matrix" says.
    """

    kind: Literal["svd"] = "svd"
    mode: Literal["rescale", "additive"] = "additive"
    w_max: float = Field(default=0.3, ge=0)
    embeddings: bool = True

    @model_validator(mode="before")
    @classmethod
    def _by_mode(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("mode") == "rescale":
            return {"w_max": 2.0, **value}
        return value

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
