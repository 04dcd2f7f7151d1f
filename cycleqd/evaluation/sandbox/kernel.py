"""System calls for name spaces and rights that Python 3.11 lacks. Each raises OSError when the kernel refuses.

`zygote.py` uses this file inside a box, so it needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Mapping

NEW_MOUNT = 0x00020000
NEW_HOST_NAME = 0x04000000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PID = 0x20000000
NEW_NETWORK = 0x40000000
ALL_SPACES = NEW_MOUNT | NEW_HOST_NAME | NEW_IPC | NEW_USER | NEW_PID | NEW_NETWORK

MS_NOSUID = 2
MS_NODEV = 4
MS_RECURSIVE = 0x4000
MS_PRIVATE = 1 << 18

_DEATH_SIGNAL, _SECCOMP, _DROP_CAPABILITY, _NO_NEW_PRIVILEGES = 1, 22, 24, 38
_SECCOMP_FILTER = 2
_CAPABILITIES = 64
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(spaces: int) -> None:
    """Move this process into new name spaces.

    Args:
        spaces: Bits of the kinds, as `NEW_MOUNT | NEW_IPC`. A new pid space holds later children only.
    """
    _checked(_libc.unshare(spaces), "unshare")


def join(process: int, spaces: int) -> None:
    """Move this process into the name spaces of another (Linux 5.8).

    Args:
        process: A pidfd of the other process.
        spaces: Bits of the kinds. A joined pid space holds later children only.
    """
    _checked(_libc.setns(process, spaces), "setns")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2).

    Args:
        source: A device or folder; any word where the file system has none.
        target: An existing folder or file, on which it appears.
        kind: The type of file system, as "tmpfs"; empty where `flags` only binds or changes a mount.
        flags: Bits MS_*.
        options: Options of that type of file system, as "size=4096,mode=0755".
    """
    _checked(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def die_with_parent(number: int) -> None:
    """Make the kernel send this process a signal when its parent ends.

    Args:
        number: The signal.
    """
    _checked(_libc.prctl(_DEATH_SIGNAL, number, 0, 0, 0), "prctl")


def set_limits(limits: Mapping[str, int]) -> None:
    """Limit this process and its children, soft and hard.

    Args:
        limits: As of `Limits.of_each_process`.
    """
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))


def keep_capabilities(kept: frozenset[int]) -> None:
    """Remove all other capabilities from the bounding set: no later program of this process gets one.

    Args:
        kept: Numbers of the capabilities that stay.
    """
    for capability in set(range(_CAPABILITIES)) - kept:
        if _libc.prctl(_DROP_CAPABILITY, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more of them


def drop_capabilities() -> None:
    """Give up every capability of this process, at once."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def no_new_privileges() -> None:
    """Programs started from now on gain nothing by set-user-id bits."""
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")


def filter_calls(program: bytes) -> None:
    """Filter the system calls of this process and its children, for good.

    Args:
        program: The filter, an array of struct sock_filter (`seccomp.program`).
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    _checked(_libc.prctl(_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(header), 0, 0), "seccomp")
