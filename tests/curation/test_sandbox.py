import asyncio
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.curation import jail
from matrix_dspy.curation.sandbox import (
    Isolation,
    Limits,
    Program,
    SandboxError,
    isolation,
    run_many,
    run_program,
    run_program_async,
    run_sandboxed,
)

pytestmark = pytest.mark.skipif(not isolation().seccomp, reason="system calls cannot be filtered here")
ROOT = Path(__file__).parents[2]
ROOM = Limits(timeout_s=20.0, cpu_s=10)
"""For code that must come to its end on a busy machine."""


def list_jails(parent: int) -> list[int]:
    """Return the processes that descend from a sandbox of `parent`, zombies among its children included."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, stat = (path / "cmdline").read_bytes(), (path / "stat").read_text()
        except OSError:
            continue
        state, owner = stat.rpartition(")")[2].split()[:2]
        is_jail = b"jail.py" in command and f'"parent": {parent},'.encode() in command
        if is_jail or (state == "Z" and int(owner) == parent):
            found.append(int(path.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no process, no file, no open descriptor more than before."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert list_jails(os.getpid()) == []
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_code_that_runs_to_its_end_passes():
    result = run_sandboxed("print(sum(range(5)))", timeout_s=20)

    assert (result.outcome, result.detail, result.stdout, result.stderr) == ("passed", "", "10\n", "")
    assert 0 < result.seconds < 20


def test_every_test_has_its_own_verdict():
    program = Program("def f(x): return x + 1", ("assert f(1) == 2", "assert f(1) == 3", "f('a')"))

    result = run_program(program, ROOM)

    assert result.outcome == "failed"
    assert [(test.state, test.exception) for test in result.tests] == [
        ("passed", ""),
        ("failed", "AssertionError"),
        ("failed", "TypeError"),
    ]
    assert result.share_passed == pytest.approx(1 / 3)


def test_what_the_code_raises_is_told_by_name_and_line():
    result = run_sandboxed("class Odd(ValueError): pass\n\nraise Odd('no <b>way</b>')", timeout_s=20)

    assert result.outcome == "failed"
    assert result.exception == "ValueError"
    assert result.detail == "it raised Odd in line 3: no <b>way</b>"


def test_the_code_reads_its_input_and_then_nothing():
    assert run_sandboxed("print(input() + input())\ninput()", stdin="a\nb\n", timeout_s=20).stdout == "ab\n"
    assert run_sandboxed("input()", timeout_s=20).exception == "EOFError"


def test_no_variable_of_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-telltale")

    result = run_sandboxed("import os; print(dict(os.environ))", timeout_s=20)

    assert result.outcome == "passed"
    assert "telltale" not in result.stdout


def test_runs_repeat_themselves_to_the_letter():
    code = "import random\nprint({str(i) for i in range(50)}, random.random(), random.sample(range(99), 9))"

    first, second = (run_sandboxed(code, timeout_s=20) for _ in range(2))

    assert first.outcome == "passed"
    assert first.stdout == second.stdout


HAS_FOLDER = isolation().mounts or isolation().landlock > 0
needs_landlock = pytest.mark.skipif(not isolation().landlock, reason="the kernel has no Landlock")

ORDINARY = [
    "import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  return 5\nassert asyncio.run(f()) == 5",
    "import threading\nt = [threading.Thread(target=print) for _ in range(60)]\n"
    "[x.start() for x in t]\n[x.join() for x in t]",
    "from concurrent.futures import ThreadPoolExecutor as T\nassert list(T(4).map(abs, [-1, 2])) == [1, 2]",
    "import signal\nsignal.signal(signal.SIGUSR1, lambda *a: print('hit'))\nsignal.raise_signal(signal.SIGUSR1)",
    "import tempfile, pathlib\nf = pathlib.Path(tempfile.mkdtemp()) / 'x'\nf.write_text('a')\n"
    "assert f.read_text() == 'a'\nf.rename('y')\nopen('y', 'a').write('b')",
    "import sqlite3\nc = sqlite3.connect('d.db')\nc.execute('create table t (a)')\nc.commit()",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n  x: int\n"
    "import pickle\nassert pickle.loads(pickle.dumps(A(1))) == A(1)",
    "import decimal, hashlib, ssl, zoneinfo, datetime, uuid, statistics, typing\nzoneinfo.ZoneInfo('Europe/Paris')",
    "import time\ntime.sleep(0.01)\nimport select\nselect.select([], [], [], 0.01)",
]


@pytest.mark.skipif(not HAS_FOLDER, reason="nothing can be written here")
def test_ordinary_code_runs():
    results = asyncio.run(run_many([Program(code) for code in ORDINARY], ROOM))

    assert [(code, each.detail) for code, each in zip(ORDINARY, results, strict=True) if each.outcome != "passed"] == []


ENDLESS = [
    "while True: pass",
    "import time\nwhile True: time.sleep(9)",
    "import signal, time\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: time.sleep(9)",
    "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "import threading\nt = [threading.Thread(target=lambda: exec('while 1: 0')) for _ in range(3)]\n"
    "for each in t: each.start()\nfor each in t: each.join()",
    "9 ** 9 ** 9 ** 9",
    "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
    "import re\nre.match('(a+)+b', 'a' * 99)",
    "import threading\nthreading.Lock().acquire() and threading.Event().wait()",
    "import os\nr, w = os.pipe()\nos.read(r, 1)",
]
GREEDY = {
    "x = [0] * 10**10": {"memory"},
    "x = []\nwhile True: x.append('a' * 10**6)": {"memory"},
    "x = bytearray(10**7)\nwhile True: x = x + x": {"memory"},
    "import mmap\nx = [mmap.mmap(-1, 50_000_000) for _ in range(99)]": {"failed", "memory"},
    "def f(): f()\nf()": {"failed"},
    "print('x' * 10**9)": {"failed", "memory"},
    "while True: print('y' * 10**6)": {"failed"},
    "import threading\nfor _ in range(9):\n  threading.Thread(target=lambda: exec('while 1: 0')).start()": {"passed"},
    "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()": {"failed", "memory"},
    "import _thread\n_thread.stack_size(32768)\n_thread.start_new_thread(print, ())": {"failed"},
    "import os\nwhile True: os.dup(0)": {"failed"},
}


def test_code_that_would_never_end_is_stopped_in_time():
    limits = Limits(timeout_s=1.5, cpu_s=1, memory_mb=128)

    results = asyncio.run(run_many([Program(code) for code in ENDLESS], limits, n_at_once=5))

    allowed = {"timeout", "memory", "killed"}  # endless recursion may also fill the memory, or the stack
    assert [(code, each) for code, each in zip(ENDLESS, results, strict=True) if each.outcome not in allowed] == []
    assert sum(each.outcome == "timeout" for each in results) >= len(ENDLESS) - 2
    assert max(each.seconds for each in results) < 8


def test_cpu_time_is_limited_by_itself():
    result = run_program(Program("while True: pass"), Limits(timeout_s=60, cpu_s=1))

    assert (result.outcome, result.detail) == ("timeout", "it used more than 1 s of CPU time")


MEASURE = """
import asyncio, json, resource, sys
from matrix_dspy.curation.sandbox import Limits, Program, run_many
programs = [Program(code) for code in json.load(sys.stdin)]
results = asyncio.run(run_many(programs, Limits(timeout_s=30, cpu_s=15, memory_mb=128), n_at_once=3))
ends = [[each.outcome, each.detail, len(each.stdout)] for each in results]
print(json.dumps({"ends": ends, "most_kb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}))
"""
"""Runs programs from a process of its own: a child counts as large as its parent until it becomes another program."""


def test_code_that_would_take_everything_is_stopped():
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, input=json.dumps(list(GREEDY)), capture_output=True, text=True, cwd=ROOT, check=True)

    measured = json.loads(done.stdout)
    ends = [(code, outcome, detail) for code, (outcome, detail, _) in zip(GREEDY, measured["ends"], strict=True)]
    assert [each for each in ends if each[1] not in GREEDY[each[0]]] == []
    assert max(length for *_, length in measured["ends"]) == Limits().max_output
    assert measured["most_kb"] <= 128 * 1024


REACHING_OUT = [
    "import os\nos.fork()",
    "import os\nwhile True: os.fork()",
    "import os\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    while True: pass",
    "import os\nos.setsid()",
    "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo out'])",
    "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
    "import subprocess\nsubprocess.run(['ls'])",
    "import os\nassert os.system('true') == 0",
    "import multiprocessing as m\nm.Process(target=print).start()",
    "import os\nos.kill(os.getppid(), 9)",
    "import os\nos.kill(-1, 9)",
    "import os\nos.killpg(0, 9)",
    "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "import os, fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "import socket\nsocket.socket(socket.AF_INET6)",
    "import socket\nsocket.socket(socket.AF_UNIX)",
    "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "import socket\nsocket.getaddrinfo('example.org', 80)",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '\\0any')",
    "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.connect('\\0any')",
    "import socket\na, b = socket.socketpair(socket.AF_UNIX)\na.sendmsg([b'x'])",
    "import ctypes",
    "import _ctypes",
    "import os\nos.mkfifo('pipe')",
    "import os\nos.chroot('.')",
    "import os\nos.setuid(1)",
    "import os\nos.chown('.', 0, 0)",
    "import os\nos.nice(-5)",
    "import os\nos.mknod('disk', 0o60600, os.makedev(8, 0))",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
]


def test_what_reaches_out_of_the_process_is_refused():
    result = run_program(Program("", tuple(REACHING_OUT)), ROOM)

    kinds = {"PermissionError", "OSError", "ModuleNotFoundError", "ValueError", "AssertionError"}
    assert len(result.tests) == len(REACHING_OUT)
    assert [
        (code, each) for code, each in zip(REACHING_OUT, result.tests, strict=True) if each.exception not in kinds
    ] == []


@pytest.mark.parametrize("without", [(), ("namespaces",), ("landlock",), ("namespaces", "landlock")])
def test_nothing_outside_is_changed_whatever_layer_is_missing(tmp_path: Path, without: tuple):
    victim = tmp_path / "victim.txt"
    victim.write_text("whole")
    os.utime(victim, (1, 1))
    tries = [
        f"open({str(tmp_path / 'new.txt')!r}, 'w').write('x')",
        f"open({str(victim)!r}, 'a').write('x')",
        f"open({str(victim)!r}, 'r+').write('x')",
        f"os.truncate({str(victim)!r}, 0)",
        f"os.chmod({str(victim)!r}, 0)",
        f"os.utime({str(victim)!r})",
        f"os.remove({str(victim)!r})",
        f"os.rename({str(victim)!r}, {str(victim) + '2'!r})",
        f"os.mkdir({str(tmp_path / 'folder')!r})",
        f"os.link({str(victim)!r}, {str(victim) + '3'!r})",
        f"os.symlink('/', {str(tmp_path / 'link')!r})",
        "os.rmdir(os.getcwd())",
        "open('/dev/shm/sandbox-test', 'w').write('x')",
        "open('/proc/self/oom_score_adj', 'w').write('1')",
    ]
    tests = tuple(f"import os\ntry: {each}\nexcept OSError: pass\nelse: raise SystemExit" for each in tries)

    result = run_program(Program("", tests), ROOM, without=without)

    assert [(tried, test.message) for tried, test in zip(tries, result.tests, strict=True) if test.exception] == []
    assert result.outcome == "passed", result
    assert victim.read_text() == "whole"
    assert victim.stat().st_mtime == 1 and victim.stat().st_mode & 0o777
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary", "victim.txt"]
    assert not Path("/dev/shm/sandbox-test").exists()


@needs_landlock
@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_nothing_but_libraries_can_be_read(tmp_path: Path, without: tuple):
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    paths = [
        "/etc/passwd",
        str(secret),
        "/proc/self/environ",
        "/proc/self/mem",
        f"/proc/{os.getpid()}/environ",
        __file__,
    ]

    result = run_program(Program("", tuple(f"open({path!r}, 'rb').read(1)" for path in paths)), ROOM, without=without)

    assert {test.exception for test in result.tests} == {"PermissionError"}
    assert run_sandboxed("import os; os.listdir('/')", timeout_s=20).exception == "PermissionError"


@needs_landlock
@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_the_working_folder_is_empty_and_lost_afterwards(without: tuple):
    code = (
        "import os\nassert os.listdir('.') == []\nos.makedirs('a/b')\n"
        "open('a/b/c', 'w').write('x')\nos.symlink('/', 'a/root')"
    )

    assert run_program(Program(code), ROOM, without=without).outcome == "passed"


@needs_landlock
def test_a_folder_deeper_than_any_path_is_removed_and_links_are_not_followed(tmp_path: Path):
    kept = tmp_path / "kept.txt"
    kept.write_text("here")
    code = (
        f"import os\nos.symlink({str(tmp_path)!r}, 'link')\nos.mkdir('shut', 0)\nopen('\\udcff\\n', 'w')\n"
        "for i in range(220):\n  os.mkdir('x' * 20)\n  os.chdir('x' * 20)\n  open('f', 'w')"
    )

    result = run_program(Program(code), ROOM, without=("namespaces",))

    assert (result.outcome, kept.read_text()) == ("passed", "here"), result


@pytest.mark.skipif(not isolation().mounts, reason="no namespace of mounts")
def test_the_working_folder_cannot_be_filled_without_end():
    code = "i = 0\nwhile True:\n  i += 1\n  open(f'f{i}', 'wb').write(bytes(4_000_000))"

    result = run_sandboxed(code, timeout_s=20)

    assert (result.outcome, result.exception) == ("failed", "OSError")


CHEATS = [
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise SystemExit",
    "exit()",
    "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "import threading, os\nthreading.Timer(0, os._exit, [0]).start()\nimport time\ntime.sleep(1)",
    "print('passed', flush=True)\nimport os\nos.write(1, b'passed')\nos._exit(0)",
    "import os\nfor i in range(3, 64):\n  try: os.write(i, b'0' * 32 + b'{}')\n  except OSError: pass\nos._exit(0)",
    "import os\nos.closerange(0, 1000)",
    "import os\nos.closerange(0, 1000)\nos._exit(0)",
    "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
    "import builtins\nbuiltins.AssertionError = Warning\nbuiltins.Exception = int",
    "import __main__\n__main__.run_source = lambda *a: None",
    "import sys\nsys.modules['__main__'].__dict__['run_source'] = lambda *a: None",
    "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)",
    "import signal, os\nos.kill(os.getpid(), 15)",
    "import signal\nsignal.raise_signal(9)",
    "import gc\ngc.get_objects()",
    "import sys\nsys._current_frames()",
    "import json\njson.JSONEncoder.encode = lambda *a: '{}'",
    "import sys\nsys.stdout.close()\nsys.stderr.close()",
    "import warnings\nwarnings.simplefilter('ignore')\n__debug__",
    "from unittest import mock\nmock.patch('builtins.AssertionError').start()",
]


def test_a_pass_cannot_be_had_by_leaving_early_or_by_breaking_the_tools():
    programs = [Program(f"{cheat}\ndef f(): return 1", ("assert f() == 2",)) for cheat in CHEATS]

    results = asyncio.run(run_many(programs, ROOM, n_at_once=3))

    assert [cheat for cheat, result in zip(CHEATS, results, strict=True) if result.outcome != "failed"] == [
        "import signal\nsignal.raise_signal(9)"
    ]


def test_changed_test_libraries_are_set_right_before_the_tests():
    code = (
        "import unittest, doctest\n"
        "unittest.TestCase.assertEqual = lambda *a: None\n"
        "unittest.TestCase.run = lambda self, result: result.addSuccess(self)\n"
        "unittest.TestResult.addFailure = unittest.TestResult.addSuccess\n"
        "doctest.OutputChecker.check_output = lambda *a: True\n"
        "def f():\n    '''\n    >>> f()\n    2\n    '''\n    return 1\n"
        "class TestF(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(), 2)\n"
    )

    result = run_program(Program(code, discover=("unittest", "doctest")), ROOM)

    assert result.outcome == "failed"
    assert [test.state for test in result.tests] == ["failed", "failed"]


def test_the_nonce_is_in_no_frame_or_module_the_code_can_walk_to():
    code = (
        "import sys, re\ndef decoy(x=[('ab' * 16,)]): pass\nfound, seen, todo = [], set(), [sys.modules, vars(sys)]\n"
        "frame = sys._getframe()\n"
        "while frame: todo += [frame.f_locals, frame.f_globals]; frame = frame.f_back\n"
        "while todo:\n"
        "  each = todo.pop()\n"
        "  if id(each) in seen or len(seen) > 60000: continue\n"
        "  seen.add(id(each))\n"
        "  if isinstance(each, (str, bytes)):\n"
        "    text = each if isinstance(each, str) else each.decode('latin1')\n"
        "    found += re.findall('(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])', text)\n"
        "  elif isinstance(each, dict): todo += [*each.values(), *each.keys()]\n"
        "  elif isinstance(each, (list, tuple, set)): todo += each\n"
        "  elif type(each).__name__ == 'function':\n"
        "    todo += [each.__globals__, each.__defaults__, each.__kwdefaults__]\n"
        "    todo += [cell.cell_contents for cell in each.__closure__ or ()]\n"
        "  elif hasattr(each, '__self__') and hasattr(each, '__name__'): todo.append(each.__self__)\n"
        "  elif hasattr(each, '__dict__'): todo.append(vars(each))\n"
        "print(len(seen) > 1000, found)\n"
    )

    result = run_sandboxed(code, timeout_s=20, cpu_s=10)

    assert (result.outcome, result.stdout) == ("passed", f"True {['ab' * 16]}\n"), result


def test_tests_in_the_code_are_found_and_run():
    code = (
        "import unittest\n"
        "def add(a, b):\n    '''\n    >>> add(1, 2)\n    3\n    '''\n    return a + b\n"
        "class TestAdd(unittest.TestCase):\n"
        "    @classmethod\n    def setUpClass(cls): cls.one = 1\n"
        "    def test_good(self): self.assertEqual(add(self.one, 1), 2)\n"
        "    def test_bad(self): self.assertEqual(add(1, 1), 3)\n"
        "    @unittest.skip('later')\n    def test_later(self): pass\n"
        "def test_plain(): assert add(2, 2) == 4\n"
        "async def test_async(): assert add(2, 2) == 4\n"
        "def test_fixture(tmp_path): assert False\n"
    )

    result = run_program(Program(code, discover=("unittest", "function", "doctest")), ROOM)

    assert result.outcome == "failed"
    assert {test.name: test.state for test in result.tests} == {
        "solution.TestAdd.test_good": "passed",
        "solution.TestAdd.test_bad": "failed",
        "solution.TestAdd.test_later": "skipped",
        "test_plain": "passed",
        "test_async": "passed",
        "test_fixture": "skipped",
        "solution.add": "passed",
    }
    assert result.share_passed == pytest.approx(4 / 5)


def test_sessions_must_give_the_outputs_they_show():
    result = run_program(Program("x = 3", sessions=(">>> x\n3\n>>> x + 1\n4\n", ">>> x\n5\n")), ROOM)

    assert [test.state for test in result.tests] == ["passed", "failed"]


def test_without_a_filter_of_system_calls_nothing_is_run(tmp_path: Path):
    with pytest.raises(SandboxError, match="cannot be run in isolation"):
        run_program(Program("print(1)"), ROOM, without=("seccomp",))

    assert run_program(Program("print(1)"), ROOM, without=("seccomp",), must_isolate=False).stdout == "1\n"


def test_the_isolation_in_force_is_told_in_words():
    assert isolation().seccomp
    assert "no sockets" in isolation().describe()
    bare = Isolation(False).describe()
    assert bare.index("Not in force") < bare.index("no sockets") < bare.index("no reading")


def test_many_run_at_once_and_come_back_in_order():
    programs = [Program(f"import time; time.sleep(0.2 if {i} == 0 else 0); print({i})") for i in range(6)]

    results = asyncio.run(run_many(programs, ROOM, n_at_once=3))

    assert [result.stdout for result in results] == [f"{i}\n" for i in range(6)]


def test_the_loop_goes_on_while_code_runs_and_cancelling_kills_it():
    async def run() -> int:
        task = asyncio.create_task(run_program_async(Program("while True: pass"), ROOM))
        turns = 0
        while not list_jails(os.getpid()):
            await asyncio.sleep(0.01)
            turns += 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list_jails(os.getpid()) == []
        return turns

    assert asyncio.run(run()) > 0


def test_code_dies_with_the_process_that_started_it(tmp_path: Path):
    code = "from matrix_dspy.curation.sandbox import *\nrun_sandboxed('import time; time.sleep(60)', timeout_s=60)"
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=place)
    jails: list[int] = []
    for _ in range(400):
        jails = jails or list_jails(parent.pid)
        time.sleep(0 if jails else 0.02)
    time.sleep(0.3)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert jails
    for _ in range(100):
        if not list_jails(parent.pid):
            return
        time.sleep(0.02)
    raise AssertionError("the code outlived its parent")


def obey(steps: list[jail.Step], architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Run a filter as the kernel would; returns its verdict."""
    data = {0: number, 4: architecture}
    for i, argument in enumerate(arguments):
        data |= {16 + 8 * i: argument & 0xFFFFFFFF, 20 + 8 * i: argument >> 32}
    value, place = 0, 0
    while True:
        code, yes, no, operand = steps[place]
        if code == 0x06:
            return operand
        place += 1
        if code == 0x20:
            value = data[operand]
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            place += yes if holds else no


words = st.integers(0, 2**64 - 1)


@given(st.sampled_from(sorted(jail.ARCHITECTURES)), st.integers(0, 600), st.tuples(*[words] * 6), st.booleans())
def test_the_filter_allows_the_listed_calls_and_no_other(machine: str, number: int, arguments: tuple, may_change: bool):
    column, architecture = jail.ARCHITECTURES[machine]
    steps = jail.build_filter(machine, 77, may_change, False)
    tables = [jail.ALLOWED, *([jail.CHANGING] if may_change else [])]
    plain = {numbers[column] for table in tables for numbers in table.values()} - {None}
    checked = {numbers[column] for numbers in jail.CHECKED.values()}

    verdict = obey(steps, architecture, number, arguments)

    assert all(max(yes, no) < 256 for _, yes, no, _ in steps) and len(steps) < 4096
    if number in plain:
        assert verdict == 0x7FFF0000
    elif number not in checked:
        assert verdict == 0x50000 | errno.EPERM
    assert obey(steps, architecture ^ 1, number, arguments) == 0x80000000


@pytest.mark.parametrize("machine", sorted(jail.ARCHITECTURES))
@pytest.mark.parametrize(
    ("name", "arguments", "is_allowed"),
    [
        ("clone", (0x3D0F00, 0, 0, 0, 0, 0), True),
        ("clone", (17, 0, 0, 0, 0, 0), False),
        ("clone", (0x10000 << 32, 0, 0, 0, 0, 0), False),
        ("socketpair", (1, 1, 0, 0, 0, 0), True),
        ("socketpair", (2, 1, 0, 0, 0, 0), False),
        ("sendto", (3, 1, 1, 0, 0, 0), True),
        ("sendto", (3, 1, 1, 0, 1, 0), False),
        ("sendto", (3, 1, 1, 0, 1 << 32, 0), False),
        ("tgkill", (77, 80, 9, 0, 0, 0), True),
        ("tgkill", (78, 80, 9, 0, 0, 0), False),
        ("prlimit64", (0, 1, 0, 0, 0, 0), True),
        ("prlimit64", (5, 1, 0, 0, 0, 0), False),
        ("ioctl", (1, 0x5401, 0, 0, 0, 0), True),
        ("ioctl", (0, 0x5412, 0, 0, 0, 0), False),
        ("fcntl", (3, 4, 0, 0, 0, 0), True),
        ("fcntl", (3, 8, 1, 0, 0, 0), False),
        ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC, 0, 0, 0), True),
        ("openat", (0, 0, os.O_WRONLY, 0, 0, 0), False),
        ("openat", (0, 0, os.O_RDONLY | os.O_TRUNC, 0, 0, 0), False),
        ("mmap", (0, 4096, 3, 0x22, 0, 0), True),
        ("mmap", (0, 1 << 20, 0, 0x20022, 0, 0), True),
        ("mmap", (0, 1 << 32, 0, 0x20022, 0, 0), True),
        ("mmap", (0, 65536, 0, 0x20022, 0, 0), False),
        ("clone3", (0, 0, 0, 0, 0, 0), False),
        ("openat2", (0, 0, 0, 0, 0, 0), False),
    ],
)
def test_some_calls_are_judged_by_their_arguments(machine: str, name: str, arguments: tuple, is_allowed: bool):
    column, architecture = jail.ARCHITECTURES[machine]
    number = jail.CHECKED[name][column]
    assert number is not None

    verdict = obey(jail.build_filter(machine, 77, False, False), architecture, number, arguments)

    assert (verdict == 0x7FFF0000) is is_allowed


def test_numbers_of_system_calls_are_those_of_the_headers():
    headers = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")]
    if not all(path.exists() for path in headers):
        pytest.skip("the kernel's headers are not installed")
    known: list[dict[str, int]] = []
    for path in headers:
        fields = (line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR"))
        known.append(
            {
                part[1].removeprefix("__NR3264_").removeprefix("__NR_"): int(part[2])
                for part in fields
                if part[2:] and part[2].isdigit()
            }
        )
    known[1].setdefault("newfstatat", 79)

    for name, numbers in itertools.chain(
        *(table.items() for table in (jail.ALLOWED, jail.CHANGING, jail.MARKING, jail.CHECKED))
    ):
        assert numbers == (known[0].get(name), known[1].get(name)), name


def test_text_of_any_kind_reaches_the_code_and_comes_back():
    text = json.dumps("é\u202e\ud83d\ude00 {0} %s \x00")

    result = run_sandboxed(f"print({text!r}.encode())", stdin="\udc80", timeout_s=20)

    assert result.outcome == "passed"
    assert run_sandboxed("x = 1\x00", timeout_s=20).outcome == "failed"
