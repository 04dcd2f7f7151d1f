"""Exact JSON round trips of the vocabulary."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.search.records import Child, ModelRef, Plan, Scored, canonical, digest

finite = st.floats(allow_nan=False, allow_infinity=False)
refs = st.builds(ModelRef, id=st.text(max_size=12), digest=st.text("0123456789abcdef", min_size=64, max_size=64))
records = st.dictionaries(st.text(max_size=8), finite | st.integers() | st.booleans() | st.lists(finite, max_size=2))
children = st.builds(
    Child,
    id=st.text(max_size=12),
    generation=st.integers(0, 10**6),
    index=st.integers(0, 99),
    base=refs,
    parents=st.tuples(refs, refs),
    crossover=records,
    mutation=records,
)
plans = st.lists(st.tuples(st.sampled_from(["code", "db", ""]), children), max_size=3).flatmap(
    lambda made: st.builds(
        Plan,
        generation=st.integers(0, 10**6),
        snapshot=st.text(max_size=64),
        focus=st.just(tuple(focus for focus, _ in made)),
        children=st.just(tuple(child for _, child in made)),
    )
)
bits = st.lists(st.booleans(), max_size=20).map(tuple)
scored = st.builds(
    Scored,
    model=refs,
    scores=st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=5),
    verdicts=st.none() | st.dictionaries(st.text(max_size=5), bits, max_size=3),
)


@given(st.one_of(refs, children, plans, scored))
def test_json_round_trip_is_exact(record: ModelRef | Child | Plan | Scored) -> None:
    data = canonical(record.to_json())
    again = type(record).from_json(json.loads(data))
    assert again == record
    assert canonical(again.to_json()) == data


def test_canonical_json_has_one_form() -> None:
    assert canonical({"b": 0.1 + 0.2, "a": ["γ", 1, None]}) == '{"a":["γ",1,null],"b":0.30000000000000004}'.encode()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(math.nan)
