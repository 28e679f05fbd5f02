"""Runs a script without rights that it does not need: ``sandbox.py TASK SCRIPT ARGUMENT ...``.

What clients send is worked on in the processes of replicas, which do no more than compute. They
may read files; they write none, start no program, open no socket, and reach no other process.
That is the task ``computes``; the janitor's, ``cleans``, is to kill and to remove. Each thread has
rights of its own, so they are given up before the script imports libraries, which start threads.
Rights that the kernel cannot take away stay. It imports little, for a quota is in force by then.
"""

import contextlib
import ctypes
import itertools
import os
import resource
import struct
import sys

KERNEL = ctypes.CDLL(None)

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
CAPABILITIES = 0x20080522  # Version 3 of ``capset``'s header
KEPT = 1 << 1  # ``CAP_DAC_OVERRIDE``: root's models and imports may lie in another's home

ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # What a filter of system calls returns; this is ``EPERM``
FOREIGN = 0x40000000  # First system call of x32, on x86-64
IO_URING_SETUP = 425
SECCOMP = {"x86_64": (0xC000003E, 317, 41), "aarch64": (0xC00000B7, 277, 198)}
"""Number of the architecture, and of ``seccomp`` and ``socket`` on it."""
SPECULATE = 4  # Flag: do not slow down all that it computes, as kernels before 5.16 would

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
BENEATH, WRITE = 1, 2  # Kind of a rule, and a right
FORBIDDEN = (  # First version of Landlock that knows them, field of its rules, and bits
    (1, 0, 0x1FF3),  # to run, write, make and remove files of all kinds
    (2, 0, 0x2000),  # to move and link them
    (3, 0, 0x4000),  # to shorten them
    (5, 0, 0x8000),  # to control devices
    (6, 2, 0x3),  # to reach others by abstract sockets and by signals
)


def drop_privileges() -> None:
    """Leave no way to gain rights, nor any network, core dump, or capability but one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # they would hold what clients sent
    KERNEL.prctl(PR_SET_NO_NEW_PRIVS, *_longs(1, 0, 0, 0))
    _refuse_sockets()
    for number in itertools.count():
        if KERNEL.prctl(PR_CAPBSET_DROP, *_longs(number, 0, 0, 0)):
            break
    keep_capabilities(KEPT)


def keep_capabilities(kept: int) -> int:
    """Give up this thread's capabilities but some; return which of these it has."""
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES), (ctypes.c_uint32 * 6)()
    KERNEL.capget(header, sets)
    kept &= sets[1]  # of the permitted
    KERNEL.capset(header, (ctypes.c_uint32 * 6)(kept, kept))
    return kept


def _longs(*values: int) -> list[ctypes.c_ulong]:
    return list(map(ctypes.c_ulong, values))


def _refuse_sockets() -> None:
    """Have the kernel refuse new sockets of every family, also by way of ``io_uring``."""
    if (machine := os.uname().machine) not in SECCOMP or sys.maxsize < 1 << 32:
        return
    architecture, seccomp, socket = SECCOMP[machine]
    filters = [
        (0x20, 0, 0, 4),  # of what architecture is the call
        (0x15, 0, 5, architecture),
        (0x20, 0, 0, 0),  # which one is it
        (0x35, 3, 0, FOREIGN),
        (0x15, 2, 0, socket),
        (0x15, 1, 0, IO_URING_SETUP),
        (0x06, 0, 0, ALLOW),
        (0x06, 0, 0, REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in filters))
    program = struct.pack("@HP", len(filters), ctypes.addressof(code))
    KERNEL.syscall(*_longs(seccomp, 1, SPECULATE), program)


def forbid_changes() -> None:
    """Forbid changes of files and of other processes; needs :func:`drop_privileges` before."""
    version = KERNEL.syscall(*_longs(LANDLOCK_CREATE, 0, 0, 1))
    rules = [0, 0, 0]
    for first, at, bits in FORBIDDEN:
        rules[at] |= bits * (version >= first)
    size = 24 if rules[2] else 8
    ruleset = KERNEL.syscall(*_longs(LANDLOCK_CREATE), struct.pack("=3Q", *rules), *_longs(size, 0))
    if ruleset < 0:
        return
    with open(os.devnull) as null:  # libraries are silenced with it
        rule = struct.pack("=Qi", WRITE, null.fileno())
        KERNEL.syscall(*_longs(LANDLOCK_ADD, ruleset, BENEATH), rule, *_longs(0))
    KERNEL.syscall(*_longs(LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)


if __name__ == "__main__":
    task, __file__ = sys.argv[1:3]
    if task == "computes":  # it can be started again, who started it cannot
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    drop_privileges()
    if task == "computes":
        forbid_changes()
    del sys.argv[:2]
    with open(__file__) as script:  # runpy takes 10 ms of CPU time for it
        exec(compile(script.read(), __file__, "exec"))
