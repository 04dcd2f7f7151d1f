"""Open descriptors: waiting for one, reading several to their ends, and making one of bytes in memory."""

from __future__ import annotations

import fcntl
import math
import os
import select
import selectors
from collections.abc import Callable, Sequence


def ready(descriptor: int, seconds: float | None = None, *, writing: bool = False) -> tuple[bool, bool]:
    """(readable, writable), at once or within a time. An ended or failed descriptor counts as readable.

    Uses poll: select() fails for descriptors from 1024 on, and hundreds of boxes live at once.

    Args:
        descriptor: Any pollable descriptor (pipe, socket, terminal, pidfd).
        seconds: How long to wait at most; None waits without end.
        writing: Also wait until it can be written to.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | (select.POLLOUT if writing else 0))
    events = poll.poll(None if seconds is None else math.ceil(seconds * 1000))
    flags = events[0][1] if events else 0
    return bool(flags & ~select.POLLOUT), bool(flags & select.POLLOUT)


def collect(pipes: Sequence[int], limit: int, exceeded: Callable[[], None]) -> list[bytes]:
    """What comes out of several pipes until each is closed at its other end, in their order.

    Args:
        pipes: Descriptors to read from; they stay open.
        limit: Bytes kept of each; what comes after them is read and dropped.
        exceeded: Called whenever bytes were dropped.
    """
    kept = {pipe: bytearray() for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                chunk, room = os.read(key.fd, 1 << 16), limit - len(kept[key.fd])
                if not chunk:
                    selector.unregister(key.fd)
                kept[key.fd] += chunk[:room]
                if len(chunk) > room:
                    exceeded()
    return [bytes(kept[pipe]) for pipe in pipes]


def memory_file(content: bytes) -> int:
    """A descriptor at the start of a nameless file in memory, which nobody can change. The caller closes it.

    Args:
        content: What the file holds.
    """
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
