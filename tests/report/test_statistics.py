"""Error bars against textbook values, simulations and their own laws."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.report.data import Tally
from cycleqd.report.statistics import Gain, Interval, average, exact_p, gain, ratio, share

bits = st.integers(1, 60).flatmap(lambda n: st.text("01", min_size=n, max_size=n))


def tally(passed: int, total: int) -> Tally:
    return Tally("1" * passed + "0" * (total - passed))


def test_wilson_against_published_values() -> None:
    # Brown, Cai, DasGupta 2001 and the usual worked example: 8 of 10, and the rule-of-three cases at the ends
    assert share(tally(8, 10)) == Interval(0.8, pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert share(tally(0, 20)) == Interval(0.0, 0.0, pytest.approx(0.1611, abs=1e-4))
    assert share(tally(20, 20)) == Interval(1.0, pytest.approx(0.8389, abs=1e-4), 1.0)


@given(bits)
def test_intervals_hold_their_value_and_stay_fractions(verdicts: str) -> None:
    found = share(Tally(verdicts))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_an_averages_interval_covers_the_truth_in_95_of_100() -> None:
    rng, truth = np.random.default_rng(0), {"a": 0.7, "b": 0.4, "c": 0.55}
    covered = 0
    for _ in range(300):
        found = average({task: tally(int(rng.binomial(80, p)), 80) for task, p in truth.items()})
        covered += found.low <= np.mean(list(truth.values())) <= found.high
    assert 0.91 < covered / 300 < 0.985


def test_a_gain_is_paired() -> None:
    ours, theirs = {"a": Tally("1111100000" * 10)}, {"a": Tally("1111000000" * 10)}
    found = gain(ours, theirs)
    assert found.value == pytest.approx(0.1)
    assert found.certain  # ten samples won, none lost: unpaired, 50 of 100 against 40 of 100 would not be
    shuffled = gain(ours, {"a": Tally("0000000111" * 10)})
    assert shuffled.high - shuffled.low > found.high - found.low


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_a_gain_turns_its_sign_with_its_sides(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (Tally("".join("01"[pair[side]] for pair in pairs)) for side in (0, 1))
    there, back = gain({"a": ours}, {"a": theirs}), gain({"a": theirs}, {"a": ours})
    assert there.value == pytest.approx(ours.score - theirs.score) == pytest.approx(-back.value)
    step = 2 / len(pairs)  # what a gain of few samples moves by; two draws may end on either side of a quantile
    assert there.low == pytest.approx(-back.high, abs=step + 1e-9) and there.low <= there.value <= there.high


def test_equal_verdicts_are_no_gain() -> None:
    same = {"a": tally(3, 10), "b": tally(5, 7)}
    assert gain(same, same) == Gain(0.0, 0.0, 0.0, 1.0)
    assert not gain(same, same).certain


def test_a_ratio() -> None:
    found = ratio(Tally("1100110010" * 20), Tally("1111110010" * 20))
    assert found.value == pytest.approx(5 / 7)
    assert found.low < 5 / 7 < found.high < 1


def test_estimates_are_repeatable() -> None:
    tallies = {"a": tally(31, 80), "b": tally(50, 80)}
    assert average(tallies) == average(dict(tallies))


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(4, 0, 0.125), (5, 0, 1 / 16), (6, 0, 1 / 32), (9, 2, 134 / 2048), (3, 3, 1)]
)
def test_on_one_task_the_test_is_mcnemars(won: int, lost: int, p: float) -> None:
    """The interval of 4:0 excludes zero, and that proves nothing."""
    same = "1" * 20 + "0" * 20
    ours, theirs = {"a": Tally("1" * won + "0" * lost + same)}, {"a": Tally("0" * won + "1" * lost + same)}
    found = gain(ours, theirs)
    assert found.p == exact_p(theirs, ours) == pytest.approx(p)
    assert found.certain == (p < 0.05)
    assert won != 4 or found.low > 0


def test_over_tasks_every_way_that_coins_may_fall_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"a": Tally("11110" + "1"), "b": Tally("111" + "0" * 9), "c": Tally("10" + "1" * 10)}
    theirs = {"a": Tally("00001" + "1"), "b": Tally("000" + "0" * 9), "c": Tally("01" + "1" * 10)}
    coins = [1 / 6] * 5 + [1 / 12] * 5
    falls = [abs(np.dot(signs, coins)) for signs in product((1, -1), repeat=10)]
    expected = np.mean([fall >= 3 / 6 + 3 / 12 - 1e-9 for fall in falls])
    assert exact_p(ours, theirs) == pytest.approx(expected)
    monkeypatch.setattr("cycleqd.report.statistics._OUTCOMES", 1)
    assert exact_p(ours, theirs) == pytest.approx(expected, abs=0.01)
