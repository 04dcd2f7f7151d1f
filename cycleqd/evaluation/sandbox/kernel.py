"""The few system calls of name spaces that Python 3.11 does not have. Each raises OSError when the kernel refuses."""

from __future__ import annotations

import ctypes
import os
import struct

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

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(spaces: int) -> None:
    """Move this process into new name spaces."""
    _checked(_libc.unshare(spaces), "unshare")


def join(process: int, spaces: int) -> None:
    """Move into the name spaces of the process behind a pidfd (Linux 5.8); a pid space counts for children only."""
    _checked(_libc.setns(process, spaces), "setns")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    _checked(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def die_with_parent(number: int) -> None:
    """Ask for signal `number` when the parent ends."""
    _checked(_libc.prctl(_DEATH_SIGNAL, number, 0, 0, 0), "prctl")


def keep_capabilities(kept: frozenset[int]) -> None:
    """Remove every other capability from the bounding set: no later program of this process gets one."""
    for capability in set(range(_CAPABILITIES)) - kept:
        if _libc.prctl(_DROP_CAPABILITY, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more of them


def no_new_privileges() -> None:
    """Programs started from now on gain nothing by set-user-id bits."""
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")


def filter_calls(program: bytes) -> None:
    """Install a seccomp program (an array of struct sock_filter)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    _checked(_libc.prctl(_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(header), 0, 0), "seccomp")
