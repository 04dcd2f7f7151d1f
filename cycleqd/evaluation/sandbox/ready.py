"""Waiting for one descriptor, whatever its number: select() fails from 1024 on, and hundreds of boxes live at once."""

from __future__ import annotations

import math
import select


def ready(descriptor: int, seconds: float | None = None, *, writing: bool = False) -> tuple[bool, bool]:
    """(readable, writable) within `seconds` (None: wait for ever). An ended or failed descriptor counts as readable."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | (select.POLLOUT if writing else 0))
    events = poll.poll(None if seconds is None else math.ceil(seconds * 1000))
    flags = events[0][1] if events else 0
    return bool(flags & ~select.POLLOUT), bool(flags & select.POLLOUT)
