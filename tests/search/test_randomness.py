"""Streams: reproducible, and independent of each other."""

import numpy as np
import pytest

from cycleqd.search.randomness import integer_seed, stream


def test_equal_arguments_give_equal_draws_and_any_other_gives_others() -> None:
    draws = {
        key: tuple(stream(*key).integers(2**63, size=4))  # type: ignore[arg-type]
        for key in (
            (0, 0, 0, "parents"),
            (1, 0, 0, "parents"),
            (0, 1, 0, "parents"),
            (0, 0, 1, "parents"),
            (0, 0, 0, "omega"),
            (0, 0, 0, "mutation"),
        )
    }
    assert len(set(draws.values())) == len(draws)
    assert tuple(stream(0, 0, 0, "parents").integers(2**63, size=4)) == draws[(0, 0, 0, "parents")]


def test_neighbouring_streams_are_uncorrelated() -> None:
    normals = np.array([stream(7, generation, 0, "omega").normal(size=2000) for generation in range(20)])
    correlations = np.corrcoef(normals)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_streams_do_not_change_between_versions() -> None:
    assert integer_seed(stream(42, 3, 1, "mutation")) == 5618372024948280
    assert stream(42, 3, 1, "omega").normal(1.0, 0.01) == pytest.approx(1.0074093149139323, rel=1e-12)
