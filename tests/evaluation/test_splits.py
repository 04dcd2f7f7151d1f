"""Laws of the search and test splits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.splits import choose
from cycleqd.evaluation.task import Sample
from cycleqd.search.tasks import SplitConfig


def samples(ids: list[str]) -> list[Sample]:
    return [Sample(id=i, record={}) for i in ids]


def ids(found: list[Sample]) -> list[str]:
    return [sample.id for sample in found]


names = st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=40, unique=True)
TEN = samples([str(i) for i in range(10)])


@given(names, st.integers(0, 5), st.floats(0.3, 0.7), st.randoms())
def test_the_parts_are_disjoint_complete_and_free_of_the_datas_order(
    names: list[str], seed: int, share: float, order: random.Random
) -> None:
    split = SplitConfig(share=share, seed=seed)
    search, test = choose(samples(names), split, "search"), choose(samples(names), split, "test")
    assert sorted(ids(search) + ids(test)) == sorted(names)
    assert len(search) == round(share * len(names))
    shuffled = list(names)
    order.shuffle(shuffled)
    assert set(ids(choose(samples(shuffled), split, "search"))) == set(ids(search))


@given(names, st.integers(0, 5), st.data())
def test_a_smaller_subset_is_part_of_a_larger_one_and_never_of_the_other_part(
    names: list[str], seed: int, data: st.DataObject
) -> None:
    whole = choose(samples(names), SplitConfig(seed=seed), "search")
    larger = data.draw(st.integers(1, len(whole)))
    smaller = data.draw(st.integers(1, larger))
    few = choose(samples(names), SplitConfig(seed=seed, search_samples=smaller), "search")
    many = choose(samples(names), SplitConfig(seed=seed, search_samples=larger), "search")
    assert len(few) == smaller
    assert set(ids(few)) <= set(ids(many)) <= set(ids(whole))
    assert not set(ids(many)) & set(ids(choose(samples(names), SplitConfig(seed=seed, search_samples=larger), "test")))


def test_the_samples_come_in_the_order_of_the_data_and_seeds_differ() -> None:
    found = ids(choose(TEN, SplitConfig(seed=1), "search"))
    assert found == sorted(found)
    assert found != ids(choose(TEN, SplitConfig(seed=2), "search"))


def test_explicit_ids_may_be_subsampled() -> None:
    split = SplitConfig(search_ids=("7", "1", "3"), test_ids=("2",), search_samples=2)
    assert set(ids(choose(TEN, split, "search"))) < {"1", "3", "7"}
    assert ids(choose(TEN, split, "test")) == ["2"]


@pytest.mark.parametrize(
    ("split", "part", "message"),
    [
        (SplitConfig(search_ids=("1", "99"), test_ids=("2",)), "search", r"search_ids names \['99'\]"),
        (SplitConfig(share=1), "test", "the test split of 10 samples is empty"),
        (SplitConfig(search_samples=6), "search", "search_samples is 6, but the search split has 5 samples"),
    ],
)
def test_impossible_wishes_are_refused(split: SplitConfig, part: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        choose(TEN, split, part)


def test_ids_that_occur_twice_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'1' occurs more than once"):
        choose(samples(["1", "2", "1"]), SplitConfig(), "search")
