"""One look for all pictures, in light and dark, and PNG bytes that depend on nothing but the data and the library."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colours. hues: one a task or expert, in order, distinct also with the common colour blindnesses."""

    name: str
    paper: str
    ink: str
    muted: str
    line: str
    empty: str
    accent: str
    hues: tuple[str, ...]

    def hue(self, index: int) -> str:
        """The colour of a task or expert; they repeat after the last.

        Args:
            index: Its position, from 0.
        """
        return self.hues[index % len(self.hues)]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1b2130",
    muted="#667085",
    line="#e4e7ec",
    empty="#f3f4f7",
    accent="#4f46e5",
    hues=("#2f6fdb", "#e0762b", "#1f9d78", "#a855c7", "#d6456b", "#8a7a2e"),
)
DARK = Theme(
    name="dark",
    paper="#161a23",
    ink="#e8eaf1",
    muted="#98a2b5",
    line="#2b3140",
    empty="#1e2430",
    accent="#8f8bff",
    hues=("#6ea8ff", "#f5a15f", "#4cc9a0", "#cf94ee", "#f5839f", "#cdbb62"),
)


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """matplotlib's defaults plus this theme, whatever the user's own matplotlibrc sets.

    Args:
        theme: Colours.
    """
    settings = {
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same pixels on every machine
        "font.size": 9,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.labelsize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": False,
        "grid.color": theme.line,
        "grid.linewidth": 0.8,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.facecolor": theme.paper,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.75,
        "legend.fontsize": 8,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.style.context(["default", settings]):
        yield


def figure(width: float, height: float) -> Figure:
    """A figure, laid out so that nothing overlaps.

    Args:
        width: Inches.
        height: Inches.
    """
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def png(made: Figure) -> bytes:
    """The figure as PNG, drawn once, without the library's version or any time in it.

    Args:
        made: The finished figure.
    """
    canvas = FigureCanvasAgg(made)
    canvas.draw()  # type: ignore[no-untyped-call]
    data = io.BytesIO()
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).convert("RGB").save(data, "PNG")
    return data.getvalue()


def percent(value: float) -> str:
    """A fraction as a percentage: "62.5", "62", without trailing zeros.

    Args:
        value: A fraction.
    """
    return f"{100 * value:.1f}".removesuffix(".0")


def percent_axis(axes: Axes, which: str) -> None:
    """Label an axis of fractions in percent, with light grid lines.

    Args:
        axes: The panel.
        which: "x" or "y".
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: percent(value))
    axes.grid(axis=which)  # type: ignore[arg-type]
