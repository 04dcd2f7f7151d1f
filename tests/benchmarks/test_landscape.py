"""The landscape: its formulas, its intervals, and that it sees an algorithm that got worse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.landscape import variants
from benchmarks.landscape.evolution import Evolution, configured, measured
from benchmarks.landscape.tables import Difference, difference, t_quantile, table
from benchmarks.landscape.world import Settings, World
from cycleqd.search.operators.crossover.mean import Mean
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.search.records import average

EVALUATIONS, SEEDS = 36, range(10)
# By how much the best single model, and the last third of the children, beat the naive merge on 10 problems of three
# tasks, with half the 95 % interval. Where results are meant to change: `python -m tests.benchmarks.test_landscape`.
KNOWN: dict[str, dict[str, tuple[float, float]]] = {
    "cycleqd": {"single": (0.052, 0.011), "late": (0.031, 0.012)},
    "cmaes-layers": {"single": (0.054, 0.03), "late": (0.035, 0.024)},
    "cmaes": {"single": (0.071, 0.018), "late": (0.051, 0.015)},
    "fixed-axis": {"single": (0.043, 0.013), "late": (0.035, 0.011)},
    "lexicase": {"single": (0.033, 0.021), "late": (0.006, 0.014)},
    "nsga2": {"single": (0.04, 0.012), "late": (0.02, 0.012)},
    "random-search": {"single": (0.076, 0.014), "late": (0.029, 0.013)},
    "task-arithmetic-experts": {"single": (0.074, 0.015), "late": (0.072, 0.015)},
    "task-arithmetic": {"single": (0.071, 0.013), "late": (0.07, 0.013)},
}


def gains(method: variants.Method) -> dict[str, Difference]:
    found = [measured(method, World(Settings(), seed), EVALUATIONS) for seed in SEEDS]
    naive = [each["naive"] for each in found]
    return {key: difference([each[key] for each in found], naive) for key in ("single", "late")}


def is_worse(name: str) -> bool:
    """By more than the interval, in either of the two."""
    found = gains(variants.methods()[name])
    return any(found[key].mean < mean - half for key, (mean, half) in KNOWN[name].items())


def test_every_method_beats_the_naive_merge_by_as_much_as_it_did() -> None:
    assert set(variants.methods()) == set(KNOWN)
    for name, known in KNOWN.items():
        mean, half = known["single"]
        assert mean > half and not is_worse(name), name


def test_methods_that_got_worse_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # scores told upside down
        patch.setattr("cycleqd.search.coefficients.average", lambda scores: -average(scores))
        assert is_worse("cmaes") and is_worse("task-arithmetic")
    with monkeypatch.context() as patch:  # a mutation without effect
        patch.setattr(Svd, "factors", lambda self, values, matrix: np.ones(matrix.directions, np.float32))
        assert is_worse("cycleqd") and is_worse("nsga2")
    with monkeypatch.context() as patch:  # a crossover that copies the first parent
        patch.setattr(Mean, "coefficients", lambda self, values, tensor: [1.0, 0.0])
        assert is_worse("fixed-axis") and is_worse("lexicase")


def test_scores_are_what_the_formula_says() -> None:
    world = World(Settings(ruggedness=0.0, samples=0), 0)
    goals = (world.left * world.goals[..., None, :]) @ world.right.swapaxes(-1, -2)
    for task, goal in enumerate(goals):
        assert world.chances(goal)[task] == pytest.approx(1.0)
        assert world.chances(world.experts[task])[task] > world.chances(0 * goal)[task]
    assert world.chances(0 * goals[0]) == pytest.approx(0.05 + 0.95 * np.exp(-1 / 0.8))
    hard = World(Settings(ruggedness=0.0, samples=0, conflict=0.5), 0)
    assert all(hard.chances(sum(world.experts)) < world.chances(sum(world.experts)))  # type: ignore[arg-type]
    rugged = World(Settings(ruggedness=1.0, samples=0), 0)
    assert rugged.chances(goals[0])[0] == pytest.approx(1.0)
    assert all(rugged.chances(0.9 * goals[0]) < world.chances(0.9 * goals[0]))


def test_noise_is_of_as_many_samples_and_a_models_own() -> None:
    world = World(Settings(samples=50), 1)
    models = [world.experts[0] * (1 + 1e-4 * i) for i in range(400)]
    scores = np.array([list(world.scores(model).values()) for model in models])
    assert world.scores(models[0]) == world.scores(models[0].copy())
    assert np.allclose(scores * 50, np.round(scores * 50))
    chances = world.chances(world.experts[0])
    assert np.allclose(scores.std(axis=0), np.sqrt(chances * (1 - chances) / 50), rtol=0.15)


def test_all_variants_run_within_the_budget_and_the_same_again() -> None:
    world = World(Settings(tasks=5, layers=2, side=6, rank=2), 3)
    for name, method in (variants.methods() | variants.operators()).items():
        made = Evolution(configured(method, world, 14), world)
        made.run()
        assert made.state.evaluations == 14, name
    again = [measured(method, world, 14), measured(method, world, 14)]
    assert again[0] == again[1]


def test_intervals() -> None:
    tabulated = {(0.975, 9): 2.2622, (0.975, 19): 2.0930, (0.995, 9): 3.2498, (0.9975, 19): 3.1737, (0.999, 9): 4.2968}
    for (probability, degrees), quantile in tabulated.items():
        assert t_quantile(probability, degrees) == pytest.approx(quantile, rel=0.01)
    rng = np.random.default_rng(0)
    caught = 0
    for _ in range(2000):
        found = difference(rng.normal(0.3, 1, 20).tolist(), [0.0] * 20)
        caught += abs(found.mean - 0.3) <= found.half
    assert caught / 2000 == pytest.approx(0.95, abs=0.015)
    assert difference([1, 2, 4], [0, 0, 0], 5).half > difference([1, 2, 4], [0, 0, 0]).half


def test_the_table_marks_what_the_interval_shows() -> None:
    def figures(*averages: float) -> list[dict[str, float]]:
        rest = {"worst": 0.1, "single": 0.2, "shrinkage": 0.05, "naive": 0.3, "expert": 0.35}
        return [{"average": value, **rest} for value in averages]

    shown = table({"a": figures(0.50, 0.51, 0.52), "b": figures(0.40, 0.41, 0.42), "c": figures(0.1, 0.9, 0.5)}, "a")
    lines = {line.split(" | ")[0].strip("| "): line for line in shown.splitlines()}
    assert lines["a"].startswith("| a | 51.0 | 10.0 | 20.0 | 5.0 | +21.0 ± ")
    assert lines["b"].startswith("| b | -10.0 ± 0.0 * | +0.0 ± 0.0 | +0.0 ± 0.0 | 5.0 | +11.0 ± ")
    assert "*" not in lines["c"].split(" | ")[1]
    assert lines["naive merge"].startswith("| naive merge | -21.0 ± ")


def test_the_command_explains_itself_and_refuses_too_few_seeds() -> None:
    call = [sys.executable, "-m", "benchmarks.landscape"]
    root = Path(__file__).parents[2]
    assert (
        "--ruggedness" in subprocess.run([*call, "--help"], cwd=root, capture_output=True, text=True, check=True).stdout
    )
    few = subprocess.run([*call, "--seeds", "3"], cwd=root, capture_output=True, text=True)
    assert few.returncode == 2 and "--seeds is 3: intervals need 10 at least" in few.stderr


if __name__ == "__main__":
    for key, one in variants.methods().items():
        shown = {what: (round(gain.mean, 3), round(gain.half, 3)) for what, gain in gains(one).items()}
        print(f'    "{key}": {shown},'.replace("'", '"'))
