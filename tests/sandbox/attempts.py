"""Ways out of the sandbox, as a table. Each prints ESCAPED when it has worked; `C` holds what was planted outside (see `world.py`).

A control runs the same code as an ordinary process, where it must print ESCAPED: so an attempt that could never work anywhere is found out.
`control` is a reason where that would harm the machine or needs something that not every machine has.
"""

from dataclasses import dataclass, field

CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    "0 or more, or minus the error number"
    r = getattr(libc, name)(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return r if r >= 0 else -ctypes.get_errno()
def syscall(number, *args):
    return call("syscall", number, *args)
def reached(number, *args):
    "the kernel looked at the arguments: the call is there for us"
    if os.uname().machine == "x86_64" and syscall(number, *args) not in (-errno.EPERM, -errno.ENOSYS):
        print("ESCAPED")
"""
OWN = "it would change this machine"
ROOT = "only root can do it anywhere"


@dataclass(frozen=True)
class Attempt:
    """`limits` are passed to `run`; `reason` is the limit that must have ended it, None where any end will do."""

    name: str
    code: str
    control: bool | str = True
    limits: dict = field(default_factory=dict)
    reason: str | None = None
    says: str = ""


def repeat(times, code, first=""):
    return f"import os, threading, time\n{first}\nfor n in range({times}): {code}\nprint('ESCAPED')"


def read(path):
    return f"if 'planted' in open({path}).read(): print('ESCAPED')"


def each(statement, items):
    return f"for x in {items}:\n    try:\n        {statement}\n    except (OSError, ValueError): pass"


def calls(number, *args):
    return f"{CALLS}\nreached({', '.join(map(str, (number, *args)))})"


ATTEMPTS = [
    # files
    Attempt("read a planted file", read("C['secret']")),
    Attempt("read the shadow file", "if ':' in open('/etc/shadow').read(): print('ESCAPED')", ROOT),
    Attempt("read the real user table", "if len(open('/etc/passwd').readlines()) > 1: print('ESCAPED')"),
    Attempt("climb with dots", read("'../' * 30 + C['secret']")),
    Attempt("a symbolic link to it", "import os; os.symlink(C['secret'], 'link')\n" + read("'link'")),
    Attempt("a hard link to it", "import os; os.link(C['secret'], 'hard')\n" + read("'hard'")),
    Attempt("the root of another process", each(read("f'/proc/{x}/root' + C['secret']"), "['self', C['parent'], C['victim']]")),
    Attempt("the working directory of another process", each(read("f'/proc/{x}/cwd/secret.txt'"), "[C['victim']]")),
    Attempt("list the folder it lies in", "import os\nif 'secret.txt' in os.listdir(C['folder']): print('ESCAPED')"),
    Attempt(
        "a file that was open", each("if b'planted' in os.pread(x, 99, 0): print('ESCAPED')", "range(3, 256)").join(["import os\n", ""])
    ),
    Attempt(
        "a handle of the file system's root",
        CALLS + "fd = os.open('/usr', os.O_RDONLY)\nh = (ctypes.c_uint32 * 4)(8, 1, 2, 0)\n"
        "f = call('open_by_handle_at', fd, h, os.O_RDONLY)\nif f >= 0: print('ESCAPED')",
        "it depends on the file system",
    ),
    Attempt(
        "leave a changed root",
        "import os\nos.mkdir('jail'); here = os.open('/', os.O_RDONLY); os.chroot('jail'); os.fchdir(here)\n"
        "for _ in range(30): os.chdir('..')\nos.chroot('.')\n" + read("C['secret']"),
        ROOT,
    ),
    Attempt("write outside", "open(C['folder'] + '/written', 'w').write('x'); print('ESCAPED')"),
    Attempt("write into the system", each("open(x + '/written', 'w'); print('ESCAPED')", "['/', '/usr', '/usr/bin', '/etc', '/dev']"), OWN),
    Attempt("write into this Python", "import sys; open(sys.prefix + '/written', 'w'); print('ESCAPED')", OWN),
    Attempt("preload a library everywhere", "open('/etc/ld.so.preload', 'w').write('/scratch/x.so'); print('ESCAPED')", OWN),
    Attempt("change a program's mode", "import os, sys; os.chmod(sys.executable, 0o777); print('ESCAPED')", OWN),
    Attempt("rename a folder of the system", "import os; os.rename('/usr', '/usr2'); print('ESCAPED')", OWN),
    # the environment and other processes
    Attempt("read the environment", "import os\nif 'planted' in str(dict(os.environ)): print('ESCAPED')"),
    Attempt("the environment of the parent", each(read("f'/proc/{x}/environ'"), "[C['parent'], C['victim'], 1]")),
    Attempt("see other processes", "import os\nif os.path.exists(f\"/proc/{C['victim']}\"): print('ESCAPED')"),
    Attempt("kill another process", "import os; os.kill(C['victim'], 9); print('ESCAPED')"),
    Attempt("kill every process", "import os; os.kill(-1, 9)", OWN),
    Attempt(
        "kill the overseer",
        "import contextlib, os\nfor s in range(1, 65):\n    with contextlib.suppress(OSError): os.kill(1, s)\nprint('still here')",
        OWN,
        says="still here",
    ),
    Attempt(
        "stop the overseer",
        "import contextlib, os\nwith contextlib.suppress(OSError): os.kill(os.getppid(), 19)\nprint('still here')",
        OWN,
        says="still here",
    ),
    Attempt("trace another process", CALLS + each("print('ESCAPED') if call('ptrace', 0x4206, x, 0, 0) == 0 else 0", "[C['victim'], 1]")),
    Attempt("memory of another process", each("open(f'/proc/{x}/mem', 'rb+'); print('ESCAPED')", "[C['victim'], 1]")),
    Attempt(
        "read the memory of the overseer",
        CALLS + "b = ctypes.create_string_buffer(8); iov = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)\n"
        "r = call('process_vm_readv', C['victim'] if os.path.exists('/proc/1') else 1, iov, 1, iov, 1, 0)\n"
        "if r not in (-errno.EPERM, -errno.ESRCH): print('ESCAPED')",
    ),
    Attempt(
        "a process that stays",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.execv('/bin/sleep', [C['token'], '60'])\n    os._exit(0)\ntime.sleep(.1); print('left')",
        "the test itself looks for it",
        says="left",
    ),
    Attempt(
        "hold the output open",
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('left')",
        "it would wait",
        limits={"timeout_s": 20},
        says="left",
    ),
    Attempt(
        "forge the report",
        each('os.write(x, b\'{"status": 0, "files": []}\\n\')', "range(3, 64)").join(["import os\n", "\nos._exit(7)"]),
        OWN,
    ),
    # privileges
    Attempt("become root", "import os; os.setuid(0); print('ESCAPED')", ROOT),
    Attempt("become root in the group", "import os; os.setgid(0); print('ESCAPED')", ROOT),
    Attempt(
        "a program that makes root",
        "import subprocess\nif subprocess.run(['/usr/bin/su', '-c', 'id -u'], capture_output=True, text=True,"
        " stdin=subprocess.DEVNULL).stdout.strip() == '0': print('ESCAPED')",
        ROOT,
    ),
    Attempt(
        "hold capabilities",
        CALLS + "h = (ctypes.c_uint32 * 2)(0x20080522, 0); d = (ctypes.c_uint32 * 6)()\n"
        "if call('capget', h, d) == 0 and any(d): print('ESCAPED')",
        ROOT,
    ),
    Attempt("may gain capabilities", CALLS + "if any(call('prctl', 23, c, 0, 0, 0) == 1 for c in range(41)): print('ESCAPED')"),
    Attempt("may gain privileges", CALLS + "if call('prctl', 39, 0, 0, 0, 0) == 0: print('ESCAPED')"),
    Attempt("a new user namespace", CALLS + "if call('unshare', 0x10000000) == 0: print('ESCAPED')"),
    Attempt(
        "a new user namespace by clone",
        CALLS + "p = syscall(56, 0x10000011, 0, 0, 0, 0)\nif p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
    ),
    Attempt(
        "a new user namespace by clone3",
        CALLS + "a = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)\np = syscall(435, a, 64)\n"
        "if p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
    ),
    Attempt(
        "the namespaces of the parent",
        CALLS + "f = os.open(f\"/proc/{C['parent']}/ns/net\", 0)\nif call('setns', f, 0) == 0: print('ESCAPED')",
        ROOT,
    ),
    Attempt("mount", CALLS + "os.mkdir('m')\nif call('mount', b'x', b'm', b'tmpfs', 0, 0) == 0: print('ESCAPED')", OWN),
    Attempt("mount the processes", CALLS + "os.mkdir('m')\nif call('mount', b'x', b'm', b'proc', 0, 0) == 0: print('ESCAPED')", OWN),
    Attempt("make it writable", CALLS + "if call('mount', 0, b'/', 0, 0x20 | 0x1000, 0) == 0: print('ESCAPED')", OWN),
    Attempt("unmount", CALLS + "if call('umount2', b'/usr', 2) == 0: print('ESCAPED')", OWN),
    Attempt("mount by the new calls", calls(430, 0, 0)),
    # limits
    Attempt("raise a limit", "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1)); print('ESCAPED')", ROOT),
    Attempt("raise the limit of the overseer", "import resource as r\nr.prlimit(1, r.RLIMIT_NPROC, (-1, -1)); print('ESCAPED')", ROOT),
    Attempt("processes without end", repeat(200, "\n    if os.fork() == 0: time.sleep(1); os._exit(0)"), limits={"processes": 16}),
    Attempt("threads without end", repeat(200, "threading.Thread(target=time.sleep, args=(.5,)).start()"), limits={"processes": 16}),
    Attempt("processes that breed", "import os\nwhile True:\n    os.fork()", OWN, limits={"timeout_s": 1.0, "processes": 16}),
    Attempt("one large block of memory", "x = bytearray(2 << 30); print('ESCAPED')", limits={"memory_mb": 256}),
    Attempt(
        "memory in many processes",
        "import os, time\nfor n in range(8):\n    if os.fork() == 0:\n        x = b'x' * (40 << 20); time.sleep(3)\n"
        "        os._exit(0)\ntime.sleep(3)\nprint('ESCAPED')",
        limits={"memory_mb": 128},
        reason="memory",
    ),
    Attempt("memory in a file", repeat(100, "os.write(f, bytes(1 << 20))", "f = os.memfd_create('x')")),
    Attempt("memory in stdin", repeat(100, "os.write(0, bytes(1 << 20))"), "its stdin is another"),
    Attempt(
        "memory that is shared", CALLS + "i = call('shmget', 0, 1 << 20, 0o1600)\nif i >= 0: call('shmctl', i, 0, 0); print('ESCAPED')"
    ),
    Attempt("memory in messages", CALLS + "i = call('msgget', 0, 0o1600)\nif i >= 0: call('msgctl', i, 0, 0); print('ESCAPED')"),
    Attempt("memory that stays", CALLS + "if call('mlockall', 3) == 0: print('ESCAPED')", ROOT),
    Attempt("fill the scratch folder", repeat(40, "f.write(bytes(1 << 20)); f.flush()", "f = open('x', 'wb')"), limits={"disk_mb": 16}),
    Attempt("fill it with several files", repeat(40, "open(f'x{n}', 'wb').write(bytes(1 << 20))"), limits={"disk_mb": 16}),
    Attempt(
        "fill the other folders",
        "import os, tempfile\nmade = []\nfor d in (tempfile.mkdtemp(), '/dev/shm'):\n    for n in range(20):\n"
        "        made.append(f'{d}/fill{os.getpid()}-{n}'); open(made[-1], 'wb').write(bytes(1 << 20))\n"
        "print('ESCAPED')\nfor p in made: os.unlink(p)",
        limits={"disk_mb": 16},
    ),
    Attempt("files without end", repeat(9000, "open(f'x{n}', 'w')")),
    Attempt("say too much", "import sys\nwhile True: sys.stdout.write('x' * 65536)", "it would never end", reason="output"),
    Attempt("complain too much", "import sys\nwhile True: sys.stderr.write('x' * 65536)", "it would never end", reason="output"),
    Attempt("sleep", "import time; time.sleep(60)", "it would wait", limits={"timeout_s": 0.7}, reason="time"),
    Attempt("compute without end", "while True: pass", "it would never end", limits={"cpu_s": 1, "timeout_s": 30}, reason="cpu"),
    Attempt(
        "hear no signal",
        "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
        "it would never end",
        limits={"cpu_s": 1, "timeout_s": 30},
        reason="cpu",
    ),
    Attempt("stop itself", "import os; os.kill(os.getpid(), 19)", "it would wait", limits={"timeout_s": 0.7}, reason="time"),
    Attempt("read what is typed", "import sys\nif 'planted' in sys.stdin.read(): print('ESCAPED')"),
    Attempt("the terminal", "open('/dev/tty'); print('ESCAPED')", "a test has no terminal"),
    Attempt("a higher priority", "import os; os.nice(-5); print('ESCAPED')", ROOT),
    # the network
    Attempt("connect by TCP", "import socket; socket.create_connection(('127.0.0.1', C['tcp']), 2); print('ESCAPED')"),
    Attempt(
        "send by UDP",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', C['udp'])); print('ESCAPED')",
    ),
    Attempt("connect by IPv6", "import socket; socket.socket(socket.AF_INET6); print('ESCAPED')"),
    Attempt("a socket file outside", "import socket; socket.socket(socket.AF_UNIX).connect(C['unix']); print('ESCAPED')"),
    Attempt("a socket name outside", "import socket; socket.socket(socket.AF_UNIX).connect('\\0' + C['abstract']); print('ESCAPED')"),
    Attempt("ask the kernel about the network", "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('ESCAPED')"),
    Attempt("packets", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); print('ESCAPED')", ROOT),
    Attempt("raw packets", "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('ESCAPED')", ROOT),
    Attempt(
        "a virtual machine's host",
        "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('ESCAPED')",
        "not every kernel has it",
    ),
    Attempt("look up a name", "import socket; socket.getaddrinfo('example.com', 80); print('ESCAPED')", "a test has no network"),
    Attempt("the name of the machine", "import socket\nif socket.gethostname() == C['host']: print('ESCAPED')"),
    # devices and the kernel
    Attempt(
        "open devices",
        each(
            "open(x, 'rb'); print('ESCAPED')",
            "['/dev/kmsg', '/dev/mem', '/dev/kvm', '/dev/fuse', '/dev/net/tun', '/dev/ptmx', '/dev/vsock', '/dev/vda', '/dev/sda']",
        ),
    ),
    Attempt("make a device", "import os; os.mknod('disk', 0o60666, os.makedev(254, 0)); print('ESCAPED')", ROOT),
    Attempt("change the kernel's settings", "open('/proc/sys/kernel/core_pattern', 'r+'); print('ESCAPED')", ROOT),
    Attempt("the kernel's own files", "import os; os.listdir('/sys/class'); print('ESCAPED')"),
    Attempt("read the kernel's log", CALLS + "if call('klogctl', 10, 0, 0) >= 0: print('ESCAPED')", ROOT),
    Attempt(
        "rename the machine",
        CALLS + "import socket; n = socket.gethostname().encode()\nif call('sethostname', n, len(n)) == 0: print('ESCAPED')",
        ROOT,
    ),
    Attempt("keyrings", calls(250, 0, -3, 0)),
    Attempt("programs in the kernel", calls(321, 0, 0, 0)),
    Attempt("watch the processor", calls(298, 0, 0, -1, -1, 0)),
    Attempt("queues into the kernel", calls(425, 0, 0)),
    Attempt("handle page faults", calls(323, -1)),
    Attempt("load a module", calls(313, -1, 0, 0), "not every kernel has modules"),
    Attempt("another kernel", calls(246, 0, 17, 0, 0), OWN),
]
