"""Where the time went."""

from __future__ import annotations

from cycleqd.report.data import ReportData
from cycleqd.report.theme import Theme, drawing, figure, png


def picture(data: ReportData, theme: Theme) -> bytes:
    """Seconds by stage, longest first, as a PNG.

    Args:
        data: Its cost.
        theme: Colours.
    """
    seconds = dict(sorted(data.cost.seconds.items(), key=lambda item: item[1]))
    with drawing(theme):
        made = figure(8.4, 0.7 + 0.34 * max(len(seconds), 2))
        panel = made.subplots()
        panel.barh(list(seconds), list(seconds.values()), height=0.58, color=theme.accent)
        for row, value in enumerate(seconds.values()):
            panel.annotate(duration(value), (value, row), (5, 0), textcoords="offset points", va="center", fontsize=8)
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.set_xticks([])
        panel.tick_params(axis="y", labelcolor=theme.ink)
        panel.margins(x=0.12)
        return png(made)


def duration(seconds: float) -> str:
    """A duration in words: "41 s", "5 min 10 s", "2 h 3 min".

    Args:
        seconds: Wall seconds.
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in decimal units: "610 MB".

    Args:
        count: Bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
