"""The words and tables of the report, and the page that holds them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from cycleqd.report import curves, family
from cycleqd.report.cost import duration, size
from cycleqd.report.data import ReportData, Row, Split
from cycleqd.report.scores import ratios_to_base
from cycleqd.report.statistics import Interval, average, share
from cycleqd.report.theme import percent
from cycleqd.report.verdicts import SPLITS, verdicts

_FEW = 30
_TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Picture:
    """A picture in both themes as data: URIs, with the size in CSS pixels at which its letters fit the page's."""

    light: str
    dark: str
    width: int
    height: int


def page(data: ReportData, series: curves.Series, pictures: Mapping[str, Picture], command: str = "") -> str:
    """The HTML page.

    Args:
        data: All that the report shows.
        series: Measures over generations.
        pictures: By name.
        command: With which the evolution is run again; "" leaves it out.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=data.config.name,
        data=data,
        cards=cards(data),
        verdicts=verdicts(data),
        notes=notes(data),
        tables=[(SPLITS[split], split, table(data, split)) for split in ("test", "search") if table(data, split)],
        columns=[*data.tasks, "average"],
        pictures=pictures,
        alts=alternatives(data, series),
        lineage=list(family.lineage(data)),
        hidden=len(family.tree(data)) - len(family.drawn(family.tree(data))),
        recipe=[(name, beta, [task for task, line in data.state.bests.items() if line.model.id == name])
                for name, beta in data.recipe],
        measures=[(name, f"{values[0]:.4g}", f"{values[-1]:.4g}") for name, values in series.items()
                  if name != "generation"],
        costs=costs(data),
        origins=list(origins(data, command)),
        settings=yaml.safe_dump(data.config.frozen(), sort_keys=False, allow_unicode=True),
    )  # fmt: skip


def cards(data: ReportData) -> list[tuple[str, str, str]]:
    """The figures at the top: value, what it is, a remark.

    Args:
        data: All that the report shows.
    """
    state = data.state
    found: list[tuple[str, str, str]] = []
    for split in ("test", "search"):
        if (tallies := data.scored(split, "final")) is not None:
            best = average(tallies)
            found.append((f"{percent(best.value)} %", "final model, average", f"{SPLITS[split]}, {interval(best)}"))
            break
    elites = [elite for archive in state.archives for elite in archive.elites.values()]
    cells = sum(archive.grid.cells for archive in state.archives)
    found.append((str(state.evaluations), "children evaluated", f"in {state.generation} generations"))
    distinct = len({elite.model.id for elite in elites})
    found.append((str(distinct), "models alive in the archives", f"{len(elites)} of {cells} cells filled"))
    for name, count in curves.passed(data).items():
        found.append(
            ("never" if count is None else str(count), f"evaluations to pass the {name}", "average, search split")
        )
    return found


def notes(data: ReportData) -> list[str]:
    """What a reader must know before believing a figure.

    Args:
        data: All that the report shows.
    """
    found = []
    for task in data.flat:
        found.append(
            f"Every expert scores the same on {task}, which so gave the search no information (bins on its axis: "
            f"{data.state.axes[task].bins})."
        )
    if not data.recipe:
        found.append(
            "The evolution is not finalised yet: there is no final model, and the family tree is the best child's."
        )
    elif data.final_snapshot != data.state.generation:
        found.append(
            f"The final model was built from snapshot {data.final_snapshot}; the search has since gone on to "
            f"{data.state.generation}: finalise again."
        )
    if data.recipe and data.tuned is None:
        found.append(
            "Task arithmetic with tuned λ was not measured (method.baselines.task_arithmetic): whether the search was"
            " worth more than a sweep of one coefficient is not known."
        )
    if data.recipe and data.scored("test", "final") is None:
        found.append("The final model was not scored on held-out samples: the search split's figures are optimistic.")
    for task, count in sorted(held_out(data).items()):
        if count < _FEW:
            found.append(
                f"Only {count} samples of {task} are held out: its error bars, and those of averages, are rough."
            )
    if data.best not in data.children:
        found.append("No child has a better average than the best expert so far.")
    return found


def held_out(data: ReportData) -> dict[str, int]:
    """Search task → samples of its test split; empty when nothing was scored there.

    Args:
        data: All that the report shows.
    """
    tallies = next((found for row in data.rows if (found := data.scored("test", row.id))), {})
    return {task: tally.total for task, tally in tallies.items()}


def table(data: ReportData, split: Split) -> list[tuple[Row, list[Interval], list[bool]]]:
    """Models, their estimates on each task and on average, and whether each is the column's best.

    Args:
        data: All that the report shows.
        split: Which samples.
    """
    found = []
    for row in data.rows:
        if (tallies := data.scored(split, row.id)) is not None:
            found.append((row, [*(share(tally) for tally in tallies.values()), average(tallies)]))
    tops = [max(column) for column in zip(*([e.value for e in estimates] for _, estimates in found), strict=True)]
    return [(row, cells, [e.value == top for e, top in zip(cells, tops, strict=True)]) for row, cells in found]


def alternatives(data: ReportData, series: curves.Series) -> dict[str, str]:
    """A text for each picture: what it shows.

    Args:
        data: All that the report shows.
        series: Measures over generations.
    """
    state = data.state
    filled = ", ".join(f"{a.quality} {len(a.elites)} of {a.grid.cells}" for a in state.archives)
    first, last = series["best_average"][0], series["best_average"][-1]
    ratios = ", ".join(f"{task} {ratio.value:.2f}" for task, ratio in ratios_to_base(data, "final").items())
    seconds = ", ".join(f"{stage} {duration(value)}" for stage, value in data.cost.seconds.items())
    return {
        "scores-test": f"Scores on the {SPLITS['test']} with 95 % intervals; the table holds the same figures.",
        "scores-search": f"Scores on the {SPLITS['search']} with 95 % intervals; the table holds the same figures.",
        "archives": f"Heatmaps of the {len(state.archives)} archives; cells filled: {filled}.",
        "curves": f"Measures over {state.generation} generations; the best average rose from {percent(first)} % to "
        f"{percent(last)} %.",
        "fronts": curves.describe_front(data),
        "forgetting": f"Scores on tasks outside the search as ratios to the base's; final: {ratios or 'not scored'}.",
        "family": f"Family tree of {len(family.tree(data))} models from the experts to the final one; listed below.",
        "cost": f"Wall time by stage: {seconds}.",
    }


def costs(data: ReportData) -> Iterator[tuple[str, str]]:
    """The cost table.

    Args:
        data: All that the report shows.
    """
    cost = data.cost
    yield "evaluations (a model on a task and split)", f"{cost.evaluations:,}"
    yield "samples judged", f"{cost.samples:,}"
    yield "time in stages", duration(sum(cost.seconds.values()))
    yield "checkpoints written", size(cost.written)
    yield "checkpoints read to make others", size(cost.read)
    yield "in the bucket now", size(cost.stored)


def origins(data: ReportData, command: str) -> Iterator[tuple[str, str]]:
    """When, by what and where the evolution was computed.

    Args:
        data: All that the report shows.
        command: With which it is run again.
    """
    origin = data.origin
    began, ended = (datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC) for ms in (origin.began, origin.ended))
    yield "first and last stage", f"{began:%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M} UTC"
    yield "cycleqd", ", ".join(origin.versions)
    yield "libraries", ", ".join(origin.libraries)
    yield "processors", "; ".join(origin.machines)
    if origin.images:
        yield "images", ", ".join(origin.images)
    if command:
        yield "run again by", command


def interval(estimate: Interval) -> str:
    """An interval in words: "41.2 to 53.9 %".

    Args:
        estimate: A score with its interval.
    """
    return f"{percent(estimate.low)} to {percent(estimate.high)} %"
