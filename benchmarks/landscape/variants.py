"""What is compared: the methods of examples/methods, and CycleQD with one operator or setting changed at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Method = dict[str, Any]

FOLDER = Path(__file__).parents[2] / "examples" / "methods"
REFERENCE = "cycleqd"


def methods() -> dict[str, Method]:
    """The sections `method` of examples/methods by file name, the reference first."""
    found = {path.stem: yaml.safe_load(path.read_text())["method"] for path in sorted(FOLDER.glob("*.yaml"))}
    return {REFERENCE: found.pop(REFERENCE), **found}


def operators() -> dict[str, Method]:
    """The reference, and what becomes of it with one change; "no mutation, random parents" takes two."""
    reference = methods()[REFERENCE]
    changes: dict[str, Method] = {
        REFERENCE: {},
        "no mutation": {"mutation": {"kind": "none"}},
        "no mutation, random parents": {"mutation": {"kind": "none"}, "parents": {"kind": "random"}},
        **{f"svd additive, w_max {w}": {"mutation": _svd("additive", w)} for w in (0.1, 0.6, 1.0)},
        "svd rescale, w_max 2": {"mutation": _svd("rescale", 2.0)},
        "gaussian, sigma 0.03": {"mutation": {"kind": "gaussian", "sigma": 0.03}},
        "random parents": {"parents": {"kind": "random"}},
        "all archives at a time, 2 children each": {"focus": "all", "children": 2},
        "1 child a generation": {"children": 1},
        "18 children a generation": {"children": 18},
        "15 bins": {"grid": {"bins": 15}},
        "crossover sigma 0.01": {"crossover": {"mu": 1.0, "sigma": 0.01}},
        "crossover sigma 1": {"crossover": {"mu": 1.0, "sigma": 1.0}},
        "crossover ties": {"crossover": {"kind": "ties", "sigma": 0.3}},
        "crossover dare": {"crossover": {"kind": "dare", "sigma": 0.3}},
        "crossover combination": {"crossover": {"kind": "combination"}},
    }
    return {name: {**reference, **change} for name, change in changes.items()}


def _svd(mode: str, w_max: float) -> Method:
    return {"kind": "svd", "mode": mode, "w_max": w_max}
