"""System calls that a program in the sandbox cannot make, as a filter that the kernel runs (seccomp).

libseccomp, the library behind most container programs, translates names to the machine's numbers. Namespaces do not hold everything: a
virtual machine's sockets to its host, keyrings and memory without a process belong to none of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from functools import cache

DENIED = (
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp", "perf_event_open", "userfaultfd"),
    # mounts, roots and namespaces
    *("mount", "umount", "umount2", "pivot_root", "chroot", "setns", "unshare", "move_mount", "open_tree", "mount_setattr"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "name_to_handle_at", "open_by_handle_at", "fanotify_init", "quotactl", "quotactl_fd"),
    # memory that no limit of a process counts
    *("memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "msgget", "semget", "mq_open"),
    # the kernel and the machine
    *("bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl", "init_module", "finit_module"),
    *("delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "sethostname", "setdomainname", "acct", "syslog"),
    *("settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "adjtimex", "iopl", "ioperm", "modify_ldt", "personality"),
    *("lookup_dcookie", "nfsservctl", "vhangup", "vmsplice", "migrate_pages", "move_pages", "mbind", "set_mempolicy"),
)
NEW_NAMESPACE = (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
AF_UNIX, TIOCSTI, TIOCLINUX = 1, 0x5412, 0x541C
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NOT_EQUAL, MASKED_EQUAL = 1, 7


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@cache
def compiled() -> bytes:
    """The filter as the kernel takes it.

    Raises:
      OSError: libseccomp is missing, or too old for one of the rules.
    """
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))

    def refuse(name: str, error: int, *compare: _Compare) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # a call that this version of the library does not know
            return
        rules = (_Compare * len(compare))(*compare)
        if library.seccomp_rule_add_array(context, ctypes.c_uint32(REFUSE | error), number, len(compare), rules) < 0:
            raise OSError(f"libseccomp takes no rule for {name}")

    for name in DENIED:
        refuse(name, errno.EPERM)
    for flag in NEW_NAMESPACE:
        refuse("clone", errno.EPERM, _Compare(0, MASKED_EQUAL, flag, flag))
    refuse("clone3", errno.ENOSYS)  # its flags lie in memory, where no filter sees them; the C library falls back to clone
    for name in ("socket", "socketpair"):
        refuse(name, errno.EAFNOSUPPORT, _Compare(0, NOT_EQUAL, AF_UNIX, 0))
    for request in (TIOCSTI, TIOCLINUX):
        refuse("ioctl", errno.EPERM, _Compare(1, MASKED_EQUAL, 0xFFFFFFFF, request))
    with tempfile.TemporaryFile() as file:
        exported = library.seccomp_export_bpf(context, file.fileno())
        library.seccomp_release(context)
        if exported < 0:
            raise OSError(-exported, f"libseccomp cannot export the filter: {os.strerror(-exported)}")
        file.seek(0)
        return file.read()
