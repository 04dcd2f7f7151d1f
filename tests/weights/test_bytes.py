"""Children have the bytes that they had: digests of small merges, recorded for every mutation and dtype.

The last bits of a matrix product differ between instruction sets and versions of torch, so the digests hold for the
machine that golden/digests.json names. Regenerate them only when bytes are meant to change; say so in the changelog.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.mutation.gaussian import Gaussian
from cycleqd.search.operators.mutation.none import NoMutation
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.weights.aggregate import combine
from cycleqd.weights.local import LocalSink
from cycleqd.weights.merge import merge
from tests.weights.models import drawn, mean, opened, tensors, write_model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "digests.json").read_text())
MUTATIONS: dict[str, Mutation] = {
    "none": NoMutation(),
    "rescale": Svd(mode="rescale", w_max=2.0),
    "additive": Svd(mode="additive", w_max=0.3),
    "no embeddings": Svd(mode="additive", w_max=0.3, embeddings=False),
    "gaussian": Gaussian(sigma=0.0003),
}


def machine() -> dict[str, str]:
    return {"torch": torch.__version__.split("+")[0], "cpu": torch.backends.cpu.get_cpu_capability()}


pytestmark = pytest.mark.skipif(GOLDEN["machine"] != machine(), reason=f"recorded on {GOLDEN['machine']}")


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts."""
    folder = tmp_path_factory.mktemp("zoo") / request.param
    for seed in range(3):
        write_model(folder / str(seed), tensors(seed, getattr(torch, request.param)))
    return folder


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_child_has_the_bytes_that_it_had(zoo: Path, tmp_path: Path, kind: str) -> None:
    base, *parents = (opened(zoo / str(seed)) for seed in range(3))
    mutation = drawn(MUTATIONS[kind], seed=5618372024948280)
    made = merge(base, parents, mean(1.01, 0.98), LocalSink(tmp_path), mutation=mutation)
    assert made.digest == GOLDEN[zoo.name][kind]


def test_an_aggregate_has_the_bytes_that_it_had(zoo: Path, tmp_path: Path) -> None:
    base, *models = (opened(zoo / str(seed)) for seed in range(3))
    assert combine(base, models, [0.7, 0.2], LocalSink(tmp_path)).digest == GOLDEN[zoo.name]["aggregate"]
