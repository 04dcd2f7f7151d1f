"""A filter of system calls: refuses those that no benchmark program needs and an attack would.

Classic BPF, as `bwrap --seccomp` and prctl(PR_SET_SECCOMP) take it: an instruction is (code, jt, jf, k). Refused
calls fail with EPERM (sockets: EAFNOSUPPORT), so that an ordinary program carries on. Beyond the usual hardening the
filter closes four gaps: memory that no limit counts (memfd_create, System V shared memory), what the kernel has few of
(128 inotify instances for a user), name spaces inside the box (a user name space gives back capabilities), and sockets
that a network name space does not hold (vsock reaches the hypervisor).
"""

from __future__ import annotations

import errno
import platform
import struct

_LD, _JEQ, _JSET, _JGE, _RET = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets into struct seccomp_data; arguments: the low half (little endian)

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into the terminal of the caller
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS: dict[str, tuple[int, int]] = {  # (x86_64, aarch64)
    # name spaces, mounts and roots
    "chroot": (161, 51), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "open_tree": (428, 428),
    "pivot_root": (155, 41), "setns": (308, 268), "umount2": (166, 39), "unshare": (272, 97),
    # other processes' memory and files
    "pidfd_getfd": (438, 438), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "mq_open": (240, 180), "msgget": (68, 186),
    "semget": (64, 190), "shmget": (29, 194),
    # what the machine has a few of for each user, and machines share a user outside
    "fanotify_init": (300, 262), "inotify_init": (253, 26), "inotify_init1": (294, 26),
    # the kernel itself: its modules, its next start, what it logs and measures
    "acct": (163, 89), "bpf": (321, 280), "delete_module": (176, 106), "finit_module": (313, 273),
    "init_module": (175, 105), "kexec_file_load": (320, 294), "kexec_load": (246, 104), "perf_event_open": (298, 241),
    "quotactl": (179, 60), "reboot": (169, 142), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116),
    # keys
    "add_key": (248, 217), "keyctl": (250, 219), "request_key": (249, 218),
    # calls with a long history of holes
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (435, 435), (41, 198), (53, 199), (16, 29)


def program() -> bytes:
    """The filter for this processor, as bytes of struct sock_filter; empty where its calls are not known."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCH:
        return b""
    column = 0 if machine == "x86_64" else 1
    eperm, enosys = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, _AUDIT_ARCH[machine]), (_RET, 0, 0, _KILL), (_LD, 0, 0, _NR)]
    if machine == "x86_64":
        code += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, eperm)]  # the x32 numbers
    for numbers in _CALLS.values():
        code += [(_JEQ, 0, 1, numbers[column]), (_RET, 0, 0, eperm)]
    # clone3 hides its flags behind a pointer; "no such call" makes the C library fall back to clone.
    code += [(_JEQ, 0, 1, _CLONE3[column]), (_RET, 0, 0, enosys)]
    clone = [(_LD, 0, 0, _ARG0), (_JSET, 0, 1, _NEW_NAMESPACES), (_RET, 0, 0, eperm), (_RET, 0, 0, _ALLOW)]
    terminal = [(_LD, 0, 0, _ARG1)]
    for request in _TERMINAL_INPUT:
        terminal += [(_JEQ, 0, 1, request), (_RET, 0, 0, eperm)]
    terminal.append((_RET, 0, 0, _ALLOW))
    family = [(_LD, 0, 0, _ARG0)]
    for known in _FAMILIES:
        family += [(_JEQ, 0, 1, known), (_RET, 0, 0, _ALLOW)]
    # As a kernel without the family: useradd and su take that as "no audit here", and give up on a plain refusal.
    family.append((_RET, 0, 0, _ERRNO | errno.EAFNOSUPPORT))
    branches = ((_CLONE, clone), (_IOCTL, terminal), (_SOCKET, family), (_SOCKETPAIR, family))
    for numbers, branch in branches:
        code += [(_JEQ, 0, len(branch), numbers[column]), *branch]
    code.append((_RET, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
