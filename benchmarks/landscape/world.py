"""The problem: tasks whose scores are formulas of a model's task vector, and experts that are partly right.

A model is a task vector of a few square matrices, one a layer; the base is 0. Task k has a goal of low rank in every
layer. Its score falls with the distance from the goal in the goal's own rows and columns, and with `conflict` times all
that lies outside of them, which is where other tasks' skills are. Layers count for a task by weights of its own, so
that what is good for one task in a layer need not be paid for by another. Expert k has its goal's directions, too small
on the whole, each by a factor of its own, and noise beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Model = NDArray[np.float64]
"""A task vector, [layers, side, side]."""

_FLOOR, _WIDTH = 0.05, 0.8  # of a score: what it falls to, and the distance over which it falls to a third


@dataclass(frozen=True)
class Settings:
    """What a problem is like.

    Attributes:
        tasks: K.
        conflict: How much of a distance what lies beside a goal's rows and columns counts for, from 0.
        ruggedness: Depth of the ripples around a goal, from 0: local optima.
        samples: A score is the share of so many samples that were passed; 0: exact.
        layers: Matrices of a task vector.
        side: Rows and columns of each.
        rank: Directions of a goal in each.
    """

    tasks: int = 3
    conflict: float = 0.1
    ruggedness: float = 0.3
    samples: int = 100
    layers: int = 4
    side: int = 16
    rank: int = 3


class World:
    """One problem of a seed."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(settings.tasks,)))
        shape = (settings.tasks, settings.layers)
        self.left = np.linalg.qr(rng.normal(size=(*shape, settings.side, settings.rank)))[0]
        self.right = np.linalg.qr(rng.normal(size=(*shape, settings.side, settings.rank)))[0]
        self.goals = np.exp(rng.normal(0, 0.3, (*shape, settings.rank)))
        self.importance = rng.dirichlet(np.full(settings.layers, 2.0), settings.tasks)
        learned = self.goals * np.exp(rng.normal(-0.2, 0.4, self.goals.shape))
        noise = rng.normal(0, 0.05, (*shape, settings.side, settings.side))
        experts = (self.left * learned[..., None, :]) @ self.right.swapaxes(-1, -2) + noise
        self.experts: Sequence[Model] = list(experts)

    def chances(self, model: Model) -> NDArray[np.float64]:
        """The true scores, [tasks]: the chance that a sample is passed.

        Args:
            model: A task vector.
        """
        size = (self.goals**2).sum(axis=-1)
        inside = self.left.swapaxes(-1, -2) @ model @ self.right  # [tasks, layers, rank, rank]
        goals = self.goals[..., None] * np.eye(self.settings.rank)
        off = inside - goals
        outside = np.maximum((model**2).sum(axis=(-1, -2)) - (inside**2).sum(axis=(-1, -2)), 0)
        distance = ((off**2).sum(axis=(-1, -2)) + self.settings.conflict * outside) / size
        waves = 5 * np.pi * off / np.sqrt(size / self.settings.rank)[..., None, None]
        ripples = (1 - np.cos(waves)).mean(axis=(-1, -2))
        height = (self.importance * (distance + self.settings.ruggedness * ripples / 2)).sum(axis=-1)
        found: NDArray[np.float64] = _FLOOR + (1 - _FLOOR) * np.exp(-height / _WIDTH)
        return found

    def scores(self, model: Model) -> Mapping[str, float]:
        """What an evaluation gives, by task: with noise, the same for the same model.

        Args:
            model: A task vector.
        """
        chances, samples = self.chances(model), self.settings.samples
        if samples:
            luck = np.random.default_rng([self.seed, int(digest(model)[:15], 16)])
            chances = luck.binomial(samples, chances) / samples
        return dict(zip(names(self.settings.tasks), map(float, chances), strict=True))


def names(tasks: int) -> list[str]:
    """The tasks' names.

    Args:
        tasks: K.
    """
    return [f"task{k + 1}" for k in range(tasks)]


def digest(model: Model) -> str:
    """sha256 (hex) of a task vector in float32, as a checkpoint would be stored.

    Args:
        model: A task vector.
    """
    return hashlib.sha256(model.astype("<f4").tobytes()).hexdigest()
