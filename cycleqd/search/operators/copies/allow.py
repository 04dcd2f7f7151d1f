"""Copies are models as others are."""

from __future__ import annotations

from typing import Literal

from cycleqd.search.operators.copies import Copies


class Allow(Copies):
    """No rule: the paper has none."""

    kind: Literal["allow"] = "allow"
