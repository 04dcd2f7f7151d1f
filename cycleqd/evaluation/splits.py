"""Which samples a search may see and which are held out, and the subset of each that is used.

Everything follows from the samples' ids: each id gets a rank by hashing it with the split's seed, so that the order of
the data file, the model and the machine do not matter, and a smaller subset is always part of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.task import Sample
from cycleqd.search.tasks import SplitConfig


def choose(samples: Sequence[Sample], split: SplitConfig, part: Literal["search", "test"]) -> list[Sample]:
    """The samples of one part of the split, in the order of the data.

    By share, the `round(share · n)` samples of lowest rank are for the search and all others for the test, so the two
    are disjoint and together complete.

    Args:
        samples: All n samples of the task.
        split: The task's split, as configured: by share or by explicit ids, and how many samples of a part are used.
        part: Which part.

    Raises:
        InvalidInputError: An id occurs twice or does not exist, the part is empty, or has fewer samples than are asked
            for.
    """
    ids = [sample.id for sample in samples]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InvalidInputError(f"sample id '{twice}' occurs more than once in the task's data; ids must be unique")
    members = _members(ids, split, part)
    limit = split.search_samples if part == "search" else split.test_samples
    if not members:
        raise InvalidInputError(f"the {part} split of {len(ids)} samples is empty; change the split's share or ids")
    if limit is not None and limit > len(members):
        raise InvalidInputError(
            f"{part}_samples is {limit}, but the {part} split has {len(members)} samples; ask for at most that many"
        )
    kept = set(members[:limit])
    return [sample for sample in samples if sample.id in kept]


def _members(ids: Sequence[str], split: SplitConfig, part: Literal["search", "test"]) -> list[str]:
    """Ids of the whole part, by rank."""
    ranked = sorted(ids, key=lambda i: _rank(i, split.seed))
    explicit = split.search_ids if part == "search" else split.test_ids
    if explicit is None:
        cut = round(split.share * len(ranked))
        return ranked[:cut] if part == "search" else ranked[cut:]
    unknown = sorted(set(explicit) - set(ids))
    if unknown:
        raise InvalidInputError(f"{part}_ids names {unknown[:3]}, which the task's data does not hold; remove them")
    named = set(explicit)
    return [i for i in ranked if i in named]


def _rank(sample_id: str, seed: int) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\n{sample_id}".encode()).digest(), sample_id
