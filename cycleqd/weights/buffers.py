"""Memory that tensors pass through: pieces are used again and again, larger areas go back to the kernel.

A fresh page costs more than the bytes that are read into it, and malloc would keep a part of each thread's buffers.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

_SIZES = (8 << 20, 16 << 20)  # a unit of the streaming code in a 16-bit dtype and in fp32
_KEPT = 16  # free pieces of a size, over all threads

_free: dict[int, deque[mmap.mmap]] = {size: deque(maxlen=_KEPT) for size in _SIZES}


def buffer(size: int) -> memoryview:
    """Writable memory of any content; it is free again when no view of it is left.

    Args:
        size: Bytes.
    """
    piece = next((fits for fits in _SIZES if size <= fits), None)
    if piece is None:
        return memoryview(mmap.mmap(-1, size))
    free = _free[piece]
    try:
        memory = free.pop()  # the last one used: its pages are there, and perhaps in a cache
    except IndexError:
        memory = mmap.mmap(-1, piece)
    owner = np.frombuffer(memory, dtype=np.uint8)  # views keep it alive, and unlike them it has a finaliser
    weakref.finalize(owner, free.append, memory).atexit = False
    return owner.data[:size]
