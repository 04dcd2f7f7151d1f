"""The grids in the terminal: no label touches the next, however fine the bins and narrow the terminal."""

from __future__ import annotations

import importlib
import io

import pytest
from rich.console import Console

from tests.search.world import World, config

module = importlib.import_module("cycleqd.cli.archive")  # cycleqd.cli.archive is the command


@pytest.mark.parametrize(("bins", "width"), [(15, 80), (30, 80), (15, 40), (40, 30)])
@pytest.mark.parametrize("bounds", [{}, {"code": [0, 1], "db": [0.5, 0.51], "os": [0, 1]}])
def test_every_edge_is_readable(
    bins: int, width: int, bounds: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"bins": bins, **({"bounds": bounds} if bounds else {})}
    snapshot = World(config({"grid": grid})).seeded()
    written = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=written, width=width))
    monkeypatch.setattr(module, "say", lambda sentence: None)
    for archive in snapshot.archives:
        written.seek(0)
        written.truncate()
        module._draw(archive)
        lines = written.getvalue().splitlines()
        assert all(len(line) <= width for line in lines)
        edges = [word for line in lines if line.startswith(" " * 7) and "·" not in line for word in line.split()]
        wanted = module._labels(archive.grid.axes[0].edges[1:])
        assert edges == wanted and len(set(edges)) == bins
        cells = [word for line in lines if not line.startswith(" " * 7) for word in line.split()[1:]]
        assert len(cells) == bins * bins
