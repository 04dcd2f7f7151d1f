"""Counts and costs that `validate` states, worked by hand."""

from __future__ import annotations

from cycleqd.cli.validate import cost_lines
from cycleqd.run.checks import check_method
from cycleqd.run.estimate import Estimate, ServerCost, cells, estimate, measured, planned_children
from cycleqd.run.replies import Generated, generated, replies
from cycleqd.run.sizes import Sizes
from cycleqd.search.config import Config, load
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from tests.pipelines.configs import LLAMA3, two_tasks

NO_SAMPLES: dict[str, dict[str, int]] = {}
GB = 1_000_000_000
SMALL = Sizes(given=3000, largest=1000, seeded=0, child=1000)


def cost_of(config: Config, stored: Sizes, seconds: dict[str, float] | None = None) -> Estimate:
    return estimate(config, stored, seconds or {}, NO_SAMPLES, {})


def test_the_published_setting() -> None:
    config = load(LLAMA3)
    assert planned_children(config) == 1200
    assert cells(config) == {"mbpp": 225, "db": 225, "os": 225}
    cost = cost_of(config, Sizes(given=64 * GB, largest=16 * GB, seeded=0, child=16 * GB))
    assert cost.models == 1204
    assert cost.evaluations == (1 + 3 + 1200 + 2 + 10) * 3 + (1 + 3 + 2 + 1 + 1) * 3
    assert cost.baseline == 10 * 3 + 3  # each λ searched, the best one held out
    assert cost.engine_starts == 4 + 1200 + 2  # a model, a child, and finalising on both splits
    assert cost.seconds is None and cost.replies is None
    assert cost.given == 64 * GB
    assert cost.written == (1200 + 12) * 16 * GB
    assert cost.kept == (675 + 12) * 16 * GB
    tasks = 1200 * (2 + 1 + 1)  # select, update, merge, one evaluation of all tasks: a driver and a pod each
    assert cost.pods == 2 * tasks + 120 + 3 * 1200  # drivers of 120 runs of ten; of generations, loops, children
    assert list(check_method(config)) == []


def test_the_published_setting_in_the_span() -> None:
    config = in_span(load(LLAMA3), rank=64, children=16)
    stored = Sizes(given=64 * GB, largest=16 * GB, seeded=4 * GB, child=33_000_000)
    samples = {
        "mbpp": {"search": 189, "test": 189},
        "db": {"search": 170, "test": 171},
        "os": {"search": 55, "test": 55},
    }
    cost = estimate(config, stored, {}, samples, {})
    children = 16 * 1200
    assert cost.models == 1 + 3 + 3 + children  # the full experts, too
    assert cost.evaluations == (7 + children + 12) * 3 + (7 + 3 + 1) * 3
    assert cost.engine_starts == 1 + 1200 + 2
    assert cost.pods == 1200 * 2 * 5 + 120 + 1200  # no loop
    assert cost.written == 4 * GB + (3 + 2 * children + 12) * 33_000_000
    assert cost.kept == 4 * GB + (3 + 675 + 12) * 33_000_000
    assert cost.replies is not None
    a_model = 189 * 200 + 170 * 250 + 55 * 400
    assert cost.replies.tokens == (7 + children + 12) * a_model + 11 * (189 * 200 + 171 * 250 + 55 * 400)
    assert cost.replies.hours == cost.replies.tokens / 5000 / 3600
    assert cost.replies.assumed == ("mbpp", "db", "os") and not cost.replies.rate_measured


def test_dense_swaps_are_priced() -> None:
    config = in_span(load(LLAMA3), rank=64, children=16)
    config = config.model_copy(update={"models": config.models.model_copy(update={"keep_dense": True})})
    stored = Sizes(given=64 * GB, largest=16 * GB, seeded=4 * GB, child=33_000_000, swapped=16 * GB)
    cost = cost_of(config, stored)
    children = 16 * 1200
    assert cost.swapped == 16 * GB
    assert cost.swaps == (3 + children + 12) + (3 + 3 + 1)  # a split each: experts, children, what finalising makes
    assert cost.written == 4 * GB + (3 + 2 * children + 12) * 33_000_000 + 16 * GB  # the final model's checkpoint, too
    assert cost.kept == 4 * GB + (3 + 675 + 12) * 33_000_000 + 16 * GB
    assert cost.engine_starts == 1 + 1200 + 2
    (said,) = [line for line in cost_lines(cost) if "dense swaps" in line]
    assert said.startswith(
        "children are scored by dense swaps, because models.keep_dense keeps what no adapter carries"
    )
    assert f"up to {cost.swaps} times a full checkpoint of 16.0 GB" in said and "not mutated" in said
    assert not any("dense swaps" in line for line in cost_lines(cost_of(load(LLAMA3), SMALL)))


def test_a_server_starts_once_and_makes_each_adapter() -> None:
    config = in_span(load(LLAMA3), rank=None, children=16)
    assert cost_of(config, SMALL).served is None
    served = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"engine": "server"})})
    stored = Sizes(
        given=17 * GB, largest=16 * GB, seeded=GB // 2, child=2_000_000, adapter=252_000_000, slot=370_000_000
    )
    cost = cost_of(served, stored)
    assert cost.engine_starts == 1
    adapters = (3 + 16 * 1200 + 12) + (3 + 3 + 1)  # experts, children and combined; held out the best elite, too
    assert cost.served == ServerCost(adapters, 252 / 180, 252_000_000, 16, 370_000_000, GB // 2)
    (line,) = [line for line in cost_lines(cost) if line.startswith("server: ")]
    assert (
        f"at most {adapters} adapters of cores, each in 1.4 s of one CPU thread at 180.0 MB a second (measured" in line
    )
    assert "252.0 MB of its disk; 16 share a batch, each in 370.0 MB of the GPU's memory" in line
    assert cost_of(in_span(served, rank=None, children=2), stored).served == ServerCost(
        3 + 2 * 1200 + 12 + 7, 252 / 180, 252_000_000, 3, 370_000_000, GB // 2
    )


def in_span(config: Config, rank: int | None, children: int) -> Config:
    """As `decided` leaves it, where every expert is a full checkpoint, or without a rank an adapter."""
    experts = {name: expert.model_copy(update={"rank": rank}) for name, expert in config.models.experts.items()}
    models = config.models.model_copy(update={"weights": "span", "experts": experts})
    method = config.method.model_copy(update={"children": children})
    return config.model_copy(update={"models": models, "method": method})


def test_what_was_generated_gives_tokens_and_rate() -> None:
    config = two_tasks()
    samples = {task: {"search": 10, "test": 20} for task in config.tasks}
    found = {
        "one": Generated(samples=40, tokens=400, seconds=1.0),
        "two": Generated(samples=40, tokens=1200, seconds=3.0),
    }
    made = replies(config, samples, searched=100, held_out=5, found=found)
    assert made is not None
    assert made.a_sample == {"one": 10, "two": 30, "three": 512}  # at most, where nothing is known
    assert made.tokens == 100 * 10 * (10 + 30) + 5 * 20 * (10 + 30 + 512)
    assert made.rate == 400 and made.rate_measured and made.assumed == ("three",)
    assert made.hours == made.tokens / 400 / 3600
    assert replies(config, {**samples, "two": {}}, 100, 5, found) is None  # data in S3


def test_what_was_generated_is_read_from_the_newest_records(store: Store) -> None:
    config = two_tasks()
    assert generated(store, config) == {}
    for number in range(14):
        folder = layout.evaluation(f"g{number:06d}-c00", "one", "search")
        facts = {"tokens": 0 if number < 2 else 100, "seconds": {"generating": 0.5}}
        store.put_json(layout.run(folder), facts)
        store.put_json(layout.result(folder), {"outputs": {"count": 10}})
    assert generated(store, config) == {"one": Generated(samples=120, tokens=1200, seconds=6.0)}


def test_pods_of_a_generation_of_three_children() -> None:
    config = two_tasks(group="generation")
    method = config.method.model_copy(update={"generations": 1, "children": 3})
    cost = cost_of(config.model_copy(update={"method": method}), SMALL)
    assert cost.pods == 2 * 5 + 1  # docs/kubernetes.md, "What it costs"


def test_intermediates_are_written_where_merging_is_apart() -> None:
    fused, apart = (cost_of(two_tasks(fused=fused), SMALL) for fused in (True, False))
    assert apart.written - fused.written == 1200 * 1000


def test_measured_seconds_give_the_time() -> None:
    cost = cost_of(two_tasks(), SMALL, {"make": 2.0, "evaluate": 3.0})
    evaluations = (1 + 2 + 1200 + 3 + 10) * 2 + (1 + 2 + 3 + 1) * 3
    assert cost.evaluations == evaluations
    assert cost.seconds == 1200 * 2.0 + evaluations * 3.0


def test_seconds_are_those_of_the_newest_children(store: Store) -> None:
    def record(folder: str, seconds: float) -> None:
        parts = {"load": 1.0, "evaluate": seconds - 1, "generating": seconds - 2}  # generating is part of evaluate
        store.put_json(f"{folder}/run.json", {"started": 5000, "finished": 5000 + 1000 * seconds, "seconds": parts})

    assert measured(store) == {}
    for model in ("base", "final"):
        for task in ("one", "two"):
            record(layout.evaluation(model, task, "search"), 70)
            record(layout.evaluation(model, task, "test"), 90)
    assert measured(store) == {"evaluate": 70}
    for number in range(45):
        child, seconds = f"g{number:06d}-c00", 200 if number < 10 else 102
        record(layout.stage(child, "merge"), 6)
        for task in ("one", "two"):
            record(layout.evaluation(child, task, "search"), seconds)
    assert measured(store) == {"make": 6, "evaluate": 102}
    record(layout.stage("g000044-c00", "mutate"), 301)
    assert measured(store) == {"make": 307, "evaluate": 102}


def test_a_budget_bounds_the_children() -> None:
    config = load(LLAMA3)
    stop = config.method.stop.model_copy(update={"evaluations": 50})
    every = config.method.model_copy(update={"focus": "all", "generations": 10, "stop": stop})
    assert planned_children(config.model_copy(update={"method": every})) == 30
    longer = every.model_copy(update={"generations": 100})
    assert planned_children(config.model_copy(update={"method": longer})) == 50
