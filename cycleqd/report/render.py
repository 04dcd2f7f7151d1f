"""From report data to files: PNG pictures and one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cycleqd.progress import Bar, no_bar
from cycleqd.report import cost, curves, family, heatmaps, scores
from cycleqd.report.data import ReportData
from cycleqd.report.page import Picture, page
from cycleqd.report.theme import DARK, LIGHT, Theme
from cycleqd.report.verdicts import SPLITS

_DENSITY = 1.65  # pictures are drawn for a page of 10.6 inches and shown on one of 1030 CSS pixels
Draw = Callable[[Theme], bytes]


def write(data: ReportData, folder: Path, bar: Bar = no_bar, command: str = "") -> Path:
    """Write report.html and its pictures (light, one PNG each); returns the page's path.

    Equal data give equal bytes with equal libraries. The page comes last, by a rename: a report is whole or absent.

    Args:
        data: All that the report shows.
        folder: Made when missing.
        bar: Shows how far drawing is.
        command: With which the evolution is run again; "" leaves it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = curves.measured(data)
    drawn, pictures = drawings(data, series), {}
    with bar("drawing", len(drawn)) as advance:
        for name, draw in drawn.items():
            light = draw(LIGHT)
            (folder / f"{name}.png").write_bytes(light)
            pictures[name] = Picture(_uri(light), _uri(draw(DARK)), *_size(light))
            advance(1)
    part = folder / "report.html.part"
    part.write_text(page(data, series, pictures, command), encoding="utf-8")
    return part.rename(folder / "report.html")


def drawings(data: ReportData, series: curves.Series) -> dict[str, Draw]:
    """Every picture that the data allow, by file name.

    Args:
        data: All that the report shows.
        series: Measures over generations.
    """
    found: dict[str, Draw] = {}
    for split in SPLITS:
        if any(data.scored(split, row.id) for row in data.rows):
            found[f"scores-{split}"] = partial(scores.forest, data, split)
    found["archives"] = partial(heatmaps.archives, data.state)
    found["curves"] = partial(curves.curves, data, series)
    found["fronts"] = partial(curves.fronts, data)
    if any(scores.ratios_to_base(data, row.id) for row in data.rows):
        found["forgetting"] = partial(scores.forgetting, data)
    found["family"] = partial(family.picture, data)
    if data.cost.seconds:
        found["cost"] = partial(cost.picture, data)
    return found


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _size(data: bytes) -> tuple[int, int]:
    """Width and height in CSS pixels at which a PNG is shown: its header's, less its higher resolution."""
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    return round(width / _DENSITY), round(height / _DENSITY)
