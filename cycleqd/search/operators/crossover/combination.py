"""Task arithmetic (Ilharco et al. 2023): θ_base + Σ c_i τ_i, which no sum normalises."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Parameters
from cycleqd.search.operators.crossover import PointCrossover

_LAYER = re.compile(r"\.(\d+)\.")  # "model.layers.12.mlp.up_proj.weight", "transformer.h.12.attn.c_proj.weight"


class LinearCombination(PointCrossover):
    """c_i ~ U[low, high], or what an algorithm sets."""

    kind: Literal["combination"] = "combination"
    own: Literal["nothing", "parents", "layers"] = "parents"
    """What has a coefficient of its own: nothing (one for all task vectors), each parent, or each parent's layers."""
    layers: int = Field(default=0, ge=0)
    """With `own: layers`: how many layers the model has. Tensors outside of them get the mean of their parent's."""

    @model_validator(mode="after")
    def _counted(self) -> LinearCombination:
        if (self.own == "layers") != (self.layers > 0):
            raise ValueError(f"own is {self.own} and layers {self.layers}: give the number of layers with own: layers")
        return self

    def size(self, parents: int) -> int:
        """1, K, or K times the number of layers."""
        return {"nothing": 1, "parents": parents, "layers": parents * self.layers}[self.own]

    def at(self, point: Sequence[float], parents: int) -> Parameters:
        """The coefficients, a row a parent; and their means, as ω. Points list one parent's layers after another's."""
        width = max(self.layers, 1)
        rows = [list(point[i : i + width]) for i in range(0, len(point), width)]
        rows = rows * parents if self.own == "nothing" else rows
        return {"omega": [math.fsum(row) / width for row in rows], "coefficients": rows}

    def coefficients(self, values: Parameters, tensor: str) -> Sequence[float]:
        """The parents' coefficients in the tensor's layer. Raises InvalidInputError for one beyond the last."""
        found = _LAYER.search(tensor)
        if self.own != "layers" or found is None:
            return list(values["omega"])
        layer = int(found[1])
        if layer >= self.layers:
            raise InvalidInputError(
                f"{tensor} is in layer {layer} from 0, but method.crossover.layers is {self.layers}; give the model's"
                " number of layers"
            )
        return [row[layer] for row in values["coefficients"]]
