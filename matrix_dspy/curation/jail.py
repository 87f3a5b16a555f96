"""The inside of the sandbox: a script of the standard library alone, run as `python jail.py CONFIG` in its own process.

It gives up what it may do (namespaces, read-only mounts, capabilities, Landlock, limits, a seccomp filter), writes to
the verdict file which of these hold, and only then runs the code. Nothing here imports the package: the process must
start fast and find no library outside the standard one.

Descriptors: 0 the code's standard input, 1 and 2 its output, and two files in memory named in CONFIG: the job (code,
tests and a nonce) and the verdict. A verdict counts only with the nonce in front. The nonce is known to one thread,
which closes the job before the code starts; the code runs in the main thread and meets it in no frame of its own.
"""

import _thread
import builtins
import ctypes
import errno
import gc
import json
import os
import platform
import resource
import signal
import struct
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

MODULE = "solution"
MOST_MESSAGE = 300
"""Characters of an exception's message that are passed on."""
MOST_TESTS = 1000
"""Tests reported one by one."""
WORK_SIZE = "size=16m,nr_inodes=1024,mode=0777"
LEAST_STACK = 1 << 20
"""Bytes of a thread's stack; with the limit on memory it bounds the number of threads."""
REFUSED_EVENTS = frozenset(
    {"sys._current_frames", "sys._current_exceptions", "gc.get_objects", "gc.get_referrers", "gc.get_referents"}
)
"""Ways into another thread's frames, refused by an audit hook."""

_libc = ctypes.CDLL(None, use_errno=True)
_SELF = sys.modules[__name__]
_BUILTINS = (compile, exec, sys.settrace, sys.setprofile)
"""As they are before the code could put others in their place."""


def call_system(number: int, *arguments: Any) -> int:
    """Make one system call; raises OSError."""
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call_libc(name: str, *arguments: Any) -> None:
    """Call a function of the C library that answers 0; raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def set_process(option: int, value: int) -> None:
    """Set one property of this process (prctl)."""
    call_libc("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


# Namespaces and mounts ------------------------------------------------------------------------------------------------

NAMESPACES = {"mount": 0x00020000, "network": 0x40000000, "ipc": 0x08000000, "host name": 0x04000000}
_NEW_USER = 0x10000000
_MS_PRIVATE = 1 << 18
_AT_RECURSIVE, _AT_HERE = 0x8000, -100


def enter_namespaces() -> list[str]:
    """Leave the host's mounts, network and IPC behind, by right or through a namespace of users; returns which."""
    flags = sum(NAMESPACES.values())
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(flags) == 0:
        return list(NAMESPACES)
    call_libc("unshare", flags | _NEW_USER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)
    return ["user", *NAMESPACES]


def close_mounts(work: str) -> None:
    """Make every mount read-only in this namespace, and put an empty one in memory over the working folder."""
    attributes = struct.pack("=QQQQ", 1, 0, _MS_PRIVATE, 0)
    call_system(442, _AT_HERE, b"/", _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    no_suid_dev_exec = 2 | 4 | 8
    call_libc("mount", b"tmpfs", work.encode(), b"tmpfs", ctypes.c_ulong(no_suid_dev_exec), WORK_SIZE.encode())


def drop_capabilities() -> None:
    """Give up every capability; with no_new_privs none comes back."""
    call_libc("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


def leave_root(library: str, work: str) -> bool:
    """Become nobody where that still lets the standard library be read."""
    if os.geteuid() != 0:
        return False
    try:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        if os.access(os.path.join(library, "os.py"), os.R_OK, effective_ids=True):  # noqa: PTH118
            os.seteuid(0)
            os.chown(work, 65534, 65534)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            return True
        os.seteuid(0)
        os.setegid(0)
    except OSError:
        pass
    return False


# Landlock -------------------------------------------------------------------------------------------------------------

_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute (which maps libraries), read a file, list a folder."""
_FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many file rights each version of Landlock knows."""
_READABLE = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"),
    *("/dev/urandom", "/dev/zero", "/dev/null"),
)


def restrict_files(work: str) -> int:
    """Allow reading of the standard library and system libraries, and everything in `work`; returns Landlock's version.

    Raises OSError where the kernel has no Landlock.
    """
    version = call_system(444, None, ctypes.c_size_t(0), 1)
    handled = (1 << max(n for since, n in _RIGHTS.items() if since <= version)) - 1
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = call_system(444, struct.pack("=QQQ", handled, network, scopes), ctypes.c_size_t(size), 0)
    for path in {*_READABLE, *sys.path, sys.base_exec_prefix + "/lib"}:
        _allow(rules, path, _READ & handled)
    _allow(rules, "/dev/null", (1 << 1 | 1 << 2) & handled)
    _allow(rules, work, handled)
    call_system(446, rules, 0)
    os.close(rules)
    return version


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):  # noqa: PTH112
        rights &= _FILE_ONLY
    call_system(445, rules, 1, struct.pack("=Qi", rights, place), 0)
    os.close(place)


# Seccomp --------------------------------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine to the column of the tables below, and the number the kernel knows it by."""

ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70),
    "sched_yield": (24, 124), "mremap": (25, 216), "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233),
    "dup": (32, 23), "dup3": (292, 24), "nanosleep": (35, 101), "getitimer": (36, 102), "setitimer": (38, 103),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getgroups": (115, 158), "getpgid": (121, 155),
    "getsid": (124, 156), "getpriority": (140, 141), "sendfile": (40, 71), "recvfrom": (45, 207),
    "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205), "setsockopt": (54, 208),
    "getsockopt": (55, 209), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "uname": (63, 160), "sigaltstack": (131, 132),
    "statfs": (137, 43), "fstatfs": (138, 44), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223),
    "fallocate": (285, 47), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169), "getcpu": (309, 168), "exit": (60, 93), "exit_group": (231, 94),
    "epoll_ctl": (233, 21), "epoll_create1": (291, 20), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19), "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48),
    "faccessat2": (439, 439), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "pipe2": (293, 59), "getrandom": (318, 278), "copy_file_range": (326, 285),
    "statx": (332, 291), "rseq": (334, 293), "membarrier": (324, 283), "stat": (4, None), "lstat": (6, None),
    "poll": (7, None), "access": (21, None), "pipe": (22, None), "select": (23, None), "dup2": (33, None),
    "alarm": (37, None), "readlink": (89, None), "getpgrp": (111, None), "time": (201, None),
    "arch_prctl": (158, None), "epoll_create": (213, None), "epoll_wait": (232, None), "eventfd": (284, None),
    "getdents": (78, None),
}  # fmt: skip
"""What Python needs; all else is refused: no sockets, no new process or program, no signal to another process."""
CHANGING: dict[str, tuple[int | None, int | None]] = {
    "mkdirat": (258, 34), "unlinkat": (263, 35), "renameat": (264, 38), "renameat2": (316, 276), "linkat": (265, 37),
    "symlinkat": (266, 36), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None), "creat": (85, None),
    "link": (86, None), "unlink": (87, None), "symlink": (88, None),
}  # fmt: skip
"""Changes of the tree of files, allowed where Landlock or a mount bounds them."""
MARKING: dict[str, tuple[int | None, int | None]] = {
    "truncate": (76, 45), "fchmod": (91, 52), "fchmodat": (268, 53), "utimensat": (280, 88), "chmod": (90, None),
    "utime": (132, None), "utimes": (235, None),
}  # fmt: skip
"""Changes of a file's marks, which Landlock does not see: allowed only where all other mounts are read-only."""
CHECKED: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "ioctl": (16, 29), "fcntl": (72, 25), "mmap": (9, 222),
    "clone": (56, 220), "sendto": (44, 206), "socketpair": (53, 199), "tgkill": (234, 131), "prlimit64": (302, 261),
    "clone3": (435, 435), "openat2": (437, 437),
}  # fmt: skip
"""Allowed or not by their arguments."""

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000
Step = tuple[int, int, int, int]


def build_filter(machine: str, pid: int, may_change: bool, may_mark: bool) -> list[Step]:
    """Return the seccomp program: system calls that are allowed, a few by their arguments; all else fails."""
    column, architecture = ARCHITECTURES[machine]
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _FAIL | errno.EPERM)
    unknown = (_RETURN, 0, 0, _FAIL | errno.ENOSYS)

    def demand(*steps: tuple[int, int, int, bool]) -> list[Step]:
        """Allow where every (test, offset, value, wanted) holds."""
        body: list[Step] = []
        for i, (test, offset, value, wanted) in enumerate(steps):
            away = 2 * (len(steps) - i) - 1
            body += [(_LOAD, 0, 0, offset), (test, 0, away, value) if wanted else (test, away, 0, value)]
        return [*body, allow, refuse]

    def either(offset: int, values: tuple[int, ...]) -> list[Step]:
        jumps = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        return [(_LOAD, 0, 0, offset), *jumps, refuse, allow]

    bodies: dict[str, list[Step]] = {
        "open": [allow] if may_change else demand((_HAS_BITS, _argument(1), _WRITING, False)),
        "openat": [allow] if may_change else demand((_HAS_BITS, _argument(2), _WRITING, False)),
        "ioctl": either(_argument(1), (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
        # the owner of a descriptor is sent signals
        "fcntl": demand(*((_EQUAL, _argument(1), command, False) for command in (8, 10, 15))),
        "clone": demand((_HAS_BITS, _argument(0), 0x10000, True)),
        # a connected pair needs no address, and with one it could reach others
        "sendto": demand((_EQUAL, _argument(4), 0, True), (_EQUAL, _argument(4) + 4, 0, True)),
        "socketpair": demand((_EQUAL, _argument(0), 1, True)),
        "tgkill": demand((_EQUAL, _argument(0), pid, True)),
        "prlimit64": demand((_EQUAL, _argument(0), 0, True)),
        "mmap": [
            *((_LOAD, 0, 0, _argument(3)), (_HAS_BITS, 0, 5, 0x20000)),  # MAP_STACK
            *((_LOAD, 0, 0, _argument(1) + 4), (_EQUAL, 0, 3, 0)),
            *((_LOAD, 0, 0, _argument(1)), (_AT_LEAST, 1, 0, LEAST_STACK)),
            *((_RETURN, 0, 0, _FAIL | errno.ENOMEM), allow),
        ],
        # their arguments lie in memory; the C library then takes the older call
        "clone3": [unknown],
        "openat2": [unknown],
    }
    plain = {**ALLOWED, **(CHANGING if may_change else {}), **(MARKING if may_mark else {})}
    steps: list[Step] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # the x32 names of the same calls
    for name, numbers in {**plain, **CHECKED}.items():
        if (number := numbers[column]) is not None:
            body = bodies.get(name, [allow])
            steps += [(_EQUAL, 0, len(body), number), *body]
    return [*steps, refuse]


def _argument(index: int) -> int:
    """Return where the low half of a system call's argument stands in what the filter sees."""
    return 16 + 8 * index


def install_filter(steps: list[Step]) -> None:
    """Put the filter in force for this process and all its threads to come."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    header = struct.pack("@HP", len(steps), ctypes.addressof(program))
    call_libc("prctl", 22, ctypes.c_ulong(2), header)


# All of it ------------------------------------------------------------------------------------------------------------


def isolate(config: dict[str, Any]) -> dict[str, Any]:
    """Give up what can be given up, in the order in which each step still may; returns what is in force."""
    without, work = config["without"], config["work"]
    held: dict[str, Any] = {"namespaces": [], "mounts": False, "landlock": 0, "seccomp": False, "nobody": False}
    if "namespaces" not in without:
        try:
            held["namespaces"] = enter_namespaces()
            close_mounts(work)
            held["mounts"] = True
        except OSError as error:
            held["namespaces_why"] = str(error)
    os.chdir(work)
    set_process(38, 1)  # no new privileges
    if os.geteuid() == 0 and "user" not in held["namespaces"]:
        held["nobody"] = leave_root(os.path.dirname(os.__file__), work)  # noqa: PTH120
    drop_capabilities()
    if "landlock" not in without:
        try:
            held["landlock"] = restrict_files(work)
        except OSError as error:
            held["landlock_why"] = str(error)
    set_limits(config)
    set_process(4, 0)  # not to be read through /proc
    set_process(1, signal.SIGKILL)  # dies with its parent
    if os.getppid() != config["parent"]:
        os._exit(1)
    if "seccomp" not in without:
        try:
            may_change = held["mounts"] or held["landlock"] > 0
            install_filter(build_filter(platform.machine(), os.getpid(), may_change, held["mounts"]))
            held["seccomp"] = True
        except (OSError, KeyError) as error:
            held["seccomp_why"] = f"{error} on {platform.machine()}"
    return held


def set_limits(config: dict[str, Any]) -> None:
    """Limit CPU seconds, address space, file size and open files; no core dumps."""
    limits = {
        resource.RLIMIT_CPU: (config["cpu_s"], config["cpu_s"] + 1),
        resource.RLIMIT_AS: (config["memory"],) * 2,
        resource.RLIMIT_FSIZE: (config["file"],) * 2,
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    for which, (soft, hard) in limits.items():
        most = resource.getrlimit(which)[1]
        capped = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(which, (min(soft, capped), capped))


# Running the code -----------------------------------------------------------------------------------------------------


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run the code as a module, then the tests; returns what came of each."""
    module = ModuleType("__main__" if job["is_main"] else MODULE)
    module.__dict__["__builtins__"] = __builtins__
    sys.modules[module.__name__] = sys.modules["__main__"] = module  # this script is not to be found
    sys.argv = [f"{MODULE}.py"]
    pristine = keep_pristine(job["discover"])
    given = dict(vars(builtins))
    if "random" in job["code"]:
        import random

        random.seed(0)
    trouble = run_source(job["code"], f"{MODULE}.py", module.__dict__)
    for owner, name, value in pristine:
        setattr(owner, name, value)
    tests: list[dict[str, Any]] = []
    if trouble is not None:
        module.__dict__.clear()  # what filled the memory
    else:
        for name in job["discover"]:
            tests += DISCOVERERS[name](module)
        names = set_apart(module, given, job["entry"]) if job["entry"] else module.__dict__
        tests += [report(f"test {i}", run_source(test, "test.py", names)) for i, test in enumerate(job["tests"], 1)]
        tests += [report_session(f"session {i}", text, module) for i, text in enumerate(job["sessions"], 1)]
    return {"trouble": trouble, "tests": tests[:MOST_TESTS], "n_tests": len(tests)}


def set_apart(module: ModuleType, given: dict[str, Any], entry: str) -> dict[str, Any]:
    """Return names for tests that the code can bend no further: its own, and the built-ins as they were given.

    Where the code has put a name of its own before a built-in, only `entry` is taken from it.
    """
    own = {name: value for name, value in vars(module).items() if name == entry or name not in given}
    return {**own, "__name__": module.__name__, "__builtins__": given}


def run_source(source: str, file: str, names: dict[str, Any]) -> dict[str, Any] | None:
    """Run `source` with `names` as its globals; returns what it raised, or None."""
    build, execute, trace, profile = _BUILTINS
    try:
        code: CodeType = build(source, file, "exec", dont_inherit=True)
        execute(code, names)
    except BaseException as error:
        return describe(error)
    finally:
        trace(None)
        profile(None)
    return None


def describe(error: BaseException) -> dict[str, Any]:
    """Return an exception by its name, its nearest built-in kind, its message and the line it came from."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        message = str(error)[:MOST_MESSAGE]
    except BaseException:
        message = ""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in (f"{MODULE}.py", "test.py"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return {"name": str(type(error).__name__), "kind": kinds[0], "message": message, "line": line}


def report(name: str, trouble: dict[str, Any] | None) -> dict[str, Any]:
    """Return one test's line."""
    return {"name": name[:MOST_MESSAGE], "state": "passed" if trouble is None else "failed", "trouble": trouble}


def keep_pristine(discover: list[str]) -> list[tuple[Any, str, Any]]:
    """Return the parts of the test libraries as they are before the code could change them."""
    owners: list[Any] = []
    if "unittest" in discover:
        import unittest

        owners += [unittest.TestCase, unittest.TestSuite, unittest.BaseTestSuite, unittest.TestResult]
    if "doctest" in discover:
        import doctest

        owners += [doctest.DocTestRunner, doctest.OutputChecker, doctest.DocTestFinder]
    return [
        (owner, name, value)
        for owner in owners
        for name, value in vars(owner).items()
        if name not in ("__dict__", "__weakref__", "__doc__")
    ]


def run_functions(module: ModuleType) -> list[dict[str, Any]]:
    """Run the functions named test… that need no argument; others are skipped (they want fixtures)."""
    lines: list[dict[str, Any]] = []
    for name, function in list(vars(module).items()):
        if not name.startswith("test") or not isinstance(function, FunctionType):
            continue
        code = function.__code__
        needed = code.co_argcount - len(function.__defaults__ or ())
        if needed > 0 or function.__module__ != module.__name__:
            lines.append({"name": name, "state": "skipped", "trouble": None})
            continue
        # a coroutine runs only inside a loop
        source = f"import asyncio; asyncio.run({name}())" if code.co_flags & 0x80 else f"{name}()"
        lines.append(report(name, run_source(source, "test.py", module.__dict__)))
    return lines


def run_unittests(module: ModuleType) -> list[dict[str, Any]]:
    """Run the unittest classes that the module defines."""
    import unittest

    class Passes(unittest.TestResult):
        """Also remembers who passed."""

        def __init__(self) -> None:
            super().__init__()
            self.passed: set[str] = set()

        def addSuccess(self, test: unittest.TestCase) -> None:
            self.passed.add(test.id())

    lines: list[dict[str, Any]] = []
    for value in list(vars(module).values()):
        is_case = isinstance(value, type) and issubclass(value, unittest.TestCase)
        if not is_case or value.__module__ != module.__name__:
            continue
        suite, result = unittest.defaultTestLoader.loadTestsFromTestCase(value), Passes()
        names = [test.id() for test in suite if isinstance(test, unittest.TestCase)]
        try:
            suite.run(result)
        except BaseException as error:
            lines.append(report(value.__name__, describe(error)))
            continue
        skipped = {test.id() for test, _ in (*result.skipped, *result.expectedFailures)}
        last = [text.strip().rsplit("\n", 1)[-1] for _, text in (*result.failures, *result.errors)]
        reason = {"name": "AssertionError", "kind": "AssertionError", "message": "; ".join(last), "line": 0}
        if last and (kind := last[0].split(":")[0].strip()).isidentifier():
            reason.update(name=kind, kind=kind, message=last[0].partition(":")[2].strip())
        for name in names:
            state = "passed" if name in result.passed else "skipped" if name in skipped else "failed"
            trouble = {**reason, "message": reason["message"][:MOST_MESSAGE]} if state == "failed" else None
            lines.append({"name": name, "state": state, "trouble": trouble})
    return lines


def run_doctests(module: ModuleType) -> list[dict[str, Any]]:
    """Run the doctests of the module's docstrings."""
    import doctest

    found = doctest.DocTestFinder().find(module, module.__name__)
    return [run_doctest(test.name, test) for test in found if test.examples]


def report_session(name: str, text: str, module: ModuleType) -> dict[str, Any]:
    """Run a session of `>>>` lines in `module`: its outputs must be what it shows."""
    import doctest

    try:
        test = doctest.DocTestParser().get_doctest(text, module.__dict__, name, None, None)
    except ValueError as error:
        return report(name, describe(error))
    return run_doctest(name, test)


def run_doctest(name: str, test: Any) -> dict[str, Any]:
    """Run one doctest, loose about blanks and `...`; returns its line."""
    import doctest

    wrong: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    try:
        failed = runner.run(test, out=wrong.append, clear_globs=False).failed
    except BaseException as error:
        return report(name, describe(error))
    if not failed:
        return report(name, None)
    text = "".join(wrong)
    shown = " ".join(text[text.rfind("Failed example:") :].split())
    last = text.strip().rsplit("\n", 1)[-1].strip()
    kind = last.split(":")[0] if "Exception raised:" in text and last.split(":")[0].isidentifier() else "AssertionError"
    message = shown if kind == "AssertionError" else last
    return report(name, {"name": kind, "kind": kind, "message": message[:MOST_MESSAGE], "line": 0})


DISCOVERERS = {"unittest": run_unittests, "function": run_functions, "doctest": run_doctests}


def hide_machinery() -> None:
    """Keep from the code what reads foreign memory or other threads' frames; a determined reader has other ways."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]
    sys.modules.pop("sys.monitoring", None)
    for name in ("monitoring", "_settraceallthreads", "_setprofileallthreads"):  # from 3.12 they reach other threads
        if hasattr(sys, name):
            delattr(sys, name)

    def refuse(
        event: str,
        arguments: tuple[Any, ...],
        refused: frozenset[str] = REFUSED_EVENTS,
        missing: type[ImportError] = ModuleNotFoundError,
        barred: type[Exception] = PermissionError,
    ) -> None:
        if event in refused:
            raise barred(1, "not in the sandbox")
        if event == "import" and arguments[0] == "_ctypes":
            raise missing("No module named '_ctypes'", name="_ctypes")

    sys.addaudithook(refuse)


def keep_nonce(job_file: int, verdict_file: int, box: list[Any], is_read: Any, is_done: Any) -> None:
    """Hand the job over without its nonce; when it is done, write the nonce and the verdict, and end the process."""
    stop_collecting, write, leave = gc.disable, os.write, os._exit
    with os.fdopen(job_file, "rb") as file:
        job = json.loads(file.read())
    nonce = job.pop("nonce").encode()
    box.append(job)
    del job
    is_read.release()
    is_done.acquire()
    stop_collecting()  # a collection here would run the code's callbacks above this frame
    try:
        write(verdict_file, nonce + box[0])
    finally:
        leave(0)


def main() -> NoReturn:
    """Isolate the process, then run the job it was handed."""
    config = json.loads(sys.argv[1])
    held = isolate(config)
    is_refused = config["needs_seccomp"] and not held["seccomp"]
    os.write(config["verdict_fd"], json.dumps({"isolation": held, "refused": is_refused}).encode() + b"\n")
    if is_refused:
        os._exit(0)
    box: list[Any] = []
    is_read, is_done, never = _thread.allocate_lock(), _thread.allocate_lock(), _thread.allocate_lock()
    for lock in (is_read, is_done, never):
        lock.acquire()
    out, error = sys.stdout, sys.stderr
    _thread.stack_size(LEAST_STACK)
    _thread.start_new_thread(keep_nonce, (config["job_fd"], config["verdict_fd"], box, is_read, is_done))
    is_read.acquire()
    job = box.pop()
    hide_machinery()
    encode = json.JSONEncoder().encode
    outcome = run_job(job)
    for stream in (out, error):
        try:
            stream.flush()
        except (OSError, ValueError):  # the limit on file size, or the code closed it
            outcome["is_cut"] = True
    box.append(encode(outcome).encode())
    is_done.release()
    while True:
        never.acquire()


if __name__ == "__main__":
    main()
