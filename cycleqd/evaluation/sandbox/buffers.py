"""The memory that the sockets of a box can hold: the kernel's, and so that of no process.

A cgroup would count what they do hold, but a pod may not make one. So each socket counts as if its buffers were full.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_NUMBER = re.compile(rb"^(sockets: used|TCP: inuse|TCP6: inuse) (\d+)", re.MULTILINE)
_LARGEST = 4 << 20  # of a TCP buffer, where the kernel does not say


def most(process: int) -> int:
    """Bytes that the buffers of all sockets in a process's network can hold; 0 when it is gone.

    Args:
        process: Any process of the box.
    """
    counts = dict[bytes, int]()
    for name in ("sockstat", "sockstat6"):
        try:
            text = Path(f"/proc/{process}/net/{name}").read_bytes()
        except OSError:
            continue
        counts |= {key: int(count) for key, count in _NUMBER.findall(text)}
    tcp = counts.get(b"TCP: inuse", 0) + counts.get(b"TCP6: inuse", 0)
    others = max(0, counts.get(b"sockets: used", 0) - tcp)
    return tcp * _tcp_bytes() + others * _bytes()


@functools.cache
def _bytes() -> int:
    """Of a socket that is not TCP: what its owner may set, which the kernel doubles."""
    return 2 * sum(_setting(f"core/{name}_max") for name in ("rmem", "wmem"))


@functools.cache
def _tcp_bytes() -> int:
    return max(_bytes(), sum(_setting(f"ipv4/tcp_{name}") for name in ("rmem", "wmem")))


def _setting(name: str) -> int:
    """The last number of a setting of the kernel's network; in a container some are out of sight."""
    try:
        return int(Path("/proc/sys/net", name).read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return _LARGEST if name.startswith("ipv4") else 212992
