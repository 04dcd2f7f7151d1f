"""Memory that tensors pass through: pieces are used again and again, larger areas go back to the kernel.

A fresh page costs more than the bytes that are read into it, and malloc would keep a part of each thread's buffers.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

PIECE = 16 << 20
"""Bytes of a piece: what the streaming code reads, computes and writes at a time, in the widest dtype."""

_free: deque[mmap.mmap] = deque(maxlen=16)  # of every thread; a piece beyond them goes back to the kernel


def buffer(size: int) -> memoryview:
    """`size` writable bytes of any content; the memory is free again when no view of it is left."""
    if size > PIECE:
        return memoryview(mmap.mmap(-1, size))
    try:
        memory = _free.pop()  # the last one used: its pages are there, and perhaps in a cache
    except IndexError:
        memory = mmap.mmap(-1, PIECE)
    owner = np.frombuffer(memory, dtype=np.uint8)  # views keep it alive, and unlike them it tells when it goes
    weakref.finalize(owner, _free.append, memory).atexit = False
    return owner.data[:size]
