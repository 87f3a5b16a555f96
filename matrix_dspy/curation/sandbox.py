"""Run code that nobody has read: in a process of its own that can reach nothing and leaves nothing behind.

What holds is put in force by `jail.py` inside the new process: a seccomp filter (no sockets, no new processes or
programs, no signals to others), no capabilities, limits on CPU, memory, file size and open files, Landlock and
read-only mounts where the kernel gives them, an empty environment, no third-party library. Without seccomp nothing is
run, unless asked for. Linux on x86-64 or 64-bit ARM.

A pass is believed only with a nonce that the running code is not given, so ending early, printing or a clean exit code
is no pass. What remains possible: code and tests share one interpreter, so code written against this harness can still
walk from its own frames into the runner's, or return objects that claim to equal everything; the verdict is evidence,
no proof. The kernel's own faults are not guarded against either.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from matrix_dspy.errors import MatrixError
from matrix_dspy.text import clean_text

Outcome = Literal["passed", "failed", "timeout", "memory", "killed", "error"]
"""`failed`: it raised, a test failed or it ended before its end; `killed`: it crashed; `error`: it never started."""
Discovered = Literal["unittest", "function", "doctest"]
Layer = Literal["namespaces", "landlock", "seccomp"]
FILE_MB = 16
"""Largest file the code may write, its output included."""
MOST_VERDICT = 4_000_000
"""Bytes of a verdict."""


class SandboxError(MatrixError, RuntimeError):
    """Code cannot be run in isolation here."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use."""

    timeout_s: float = 10.0
    cpu_s: int = 5
    memory_mb: int = 512
    """Address space, the interpreter's own included (about 30 MB)."""
    max_output: int = 64_000
    """Characters of standard output and of standard error that are kept, from the start."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Program:
    """Code to run and what to try on it."""

    code: str
    """Run first, as a module named `solution`; what it raises is a failure."""
    tests: tuple[str, ...] = ()
    """Statements run one after the other where the code left its names; each passes unless it raises."""
    discover: tuple[Discovered, ...] = ()
    """Tests in the code itself: unittest classes, functions named `test…` without arguments, docstrings."""
    sessions: tuple[str, ...] = ()
    """Texts of `>>>` lines with the outputs they must give."""
    stdin: str = ""
    is_main: bool = False
    """Whether the module's `__name__` is `__main__`."""
    entry: str = ""
    """What the tests are of; where given they run apart, and the code can put no other built-in in their way."""


@dataclass(frozen=True, slots=True)
class CodeTest:
    """What came of one test."""

    name: str
    state: Literal["passed", "failed", "skipped"]
    exception: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """What came of one run."""

    outcome: Outcome
    detail: str = ""
    """One sentence; empty for a pass."""
    exception: str = ""
    """The nearest built-in exception that was raised, as `ModuleNotFoundError`."""
    tests: tuple[CodeTest, ...] = ()
    n_tests: int = 0
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0

    @property
    def share_passed(self) -> float:
        """Share of the tests that passed, those skipped left out; without any, whether the code ran."""
        states = [test.state for test in self.tests if test.state != "skipped"]
        ran = float(self.outcome == "passed")
        return states.count("passed") / len(states) if states and self.outcome in ("passed", "failed") else ran


@dataclass(frozen=True, slots=True)
class Isolation:
    """What keeps the code in, on this machine."""

    seccomp: bool
    """System calls are filtered: no sockets, processes, programs, signals."""
    landlock: int = 0
    """Version of Landlock, which bounds the files that can be read and written; 0 where the kernel has none."""
    namespaces: tuple[str, ...] = ()
    mounts: bool = False
    """Every mount is read-only but a folder in memory that is the working folder."""
    nobody: bool = False
    """Started as root, the code runs as the user 65534."""
    notes: tuple[str, ...] = field(default=())
    """Why something is missing."""

    def describe(self) -> str:
        """Return one sentence on what holds and one on what does not."""
        holds = ["limits on CPU, memory, file size"]
        lacks: list[str] = []
        (holds if self.seccomp else lacks).append("no sockets or new processes (seccomp)")
        (holds if self.landlock else lacks).append("no reading outside the libraries (Landlock)")
        (holds if self.mounts else lacks).append("read-only mounts with a working folder in memory (namespaces)")
        where = "its own folder" if self.landlock or self.mounts else "nothing" if self.seccomp else "what its user may"
        missing = f" Not in force: {'; '.join(lacks)}." if lacks else ""
        return f"In force: {'; '.join(holds)}; it can write to {where}.{missing}"


def run_sandboxed(
    code: str,
    *,
    stdin: str = "",
    timeout_s: float = 10.0,
    cpu_s: int = 5,
    memory_mb: int = 512,
    max_output: int = 64_000,
    tests: Sequence[str] = (),
    must_isolate: bool = True,
) -> SandboxResult:
    """Run `code`, then `tests`, in isolation, and wait.

    Raises:
        SandboxError: system calls cannot be filtered here, and `must_isolate`.
    """
    limits = Limits(timeout_s, cpu_s, memory_mb, max_output)
    return run_program(Program(code, tuple(tests), stdin=stdin), limits, must_isolate=must_isolate)


def run_program(
    program: Program, limits: Limits = DEFAULT_LIMITS, *, must_isolate: bool = True, without: Iterable[Layer] = ()
) -> SandboxResult:
    """Run one program in isolation, and wait; `without` leaves layers out, to see that the others hold alone."""
    with _open_run(program, limits, must_isolate, without) as run:
        with _starting():
            process = subprocess.Popen(run.command, **run.options)
        try:
            process.wait(limits.timeout_s)
        except subprocess.TimeoutExpired:
            run.is_late = True
        finally:
            _kill_group(process.pid)
            run.status = process.wait()
        return run.read_result()


async def run_program_async(
    program: Program, limits: Limits = DEFAULT_LIMITS, *, must_isolate: bool = True
) -> SandboxResult:
    """Run one program in isolation without holding up the loop; cancelling kills it."""
    with _open_run(program, limits, must_isolate, ()) as run:
        with _starting():
            process = await asyncio.create_subprocess_exec(*run.command, **run.options)
        waiting = asyncio.ensure_future(process.wait())
        try:
            done, _ = await asyncio.wait({waiting}, timeout=limits.timeout_s)
            run.is_late = not done
        finally:
            if not waiting.done():
                _kill_group(process.pid)
                while not waiting.done():  # a second cancelling must not leave a zombie
                    await asyncio.wait({waiting})
        run.status = waiting.result()
        return run.read_result()


async def run_many(
    programs: Iterable[Program],
    limits: Limits = DEFAULT_LIMITS,
    *,
    n_at_once: int | None = None,
    must_isolate: bool = True,
) -> list[SandboxResult]:
    """Run programs in isolation, `n_at_once` at a time (one per core unless said); results in the order given."""
    slots = asyncio.Semaphore(n_at_once or count_cores())

    async def run(program: Program) -> SandboxResult:
        async with slots:
            return await run_program_async(program, limits, must_isolate=must_isolate)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(program)) for program in programs]
    return [task.result() for task in tasks]


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def isolation() -> Isolation:
    """Start one process, and return what holds inside it."""
    if sys.platform != "linux":
        return Isolation(False, notes=(f"the sandbox needs Linux, this is {sys.platform}",))
    with _open_run(Program(""), Limits(), False, ()) as run:
        with _starting():
            process = subprocess.run(run.command, timeout=60, check=False, **run.options)
        run.status = process.returncode
        return run.read_isolation()


@dataclass(slots=True)
class _Run:
    """A prepared run: its command, its files in memory, and what is known when it has ended."""

    command: list[str]
    options: dict[str, Any]
    nonce: str
    verdict: int
    output: tuple[int, int]
    limits: Limits
    started: float
    status: int | None = None
    is_late: bool = False

    def read_result(self) -> SandboxResult:
        """Return what came of the run, once its process has ended."""
        seconds = time.monotonic() - self.started
        head, _, tail = os.pread(self.verdict, MOST_VERDICT, 0).partition(b"\n")
        if _load(head).get("refused"):
            raise SandboxError(f"code cannot be run in isolation: {'; '.join(self.read_isolation().notes)}; {_ADVICE}")
        out, error = (self._read_output(file) for file in self.output)
        result = self._judge(bool(head), tail, seconds, error)
        return replace(result, stdout=out, stderr=error, seconds=seconds)

    def read_isolation(self) -> Isolation:
        """Return what the process wrote of itself before it ran the code."""
        held = _load(os.pread(self.verdict, MOST_VERDICT, 0).partition(b"\n")[0]).get("isolation")
        if not isinstance(held, dict):
            return Isolation(False, notes=(f"the process could not be set up: {self._read_output(self.output[1])}",))
        notes = tuple(f"{name.removesuffix('_why')}: {why}" for name, why in held.items() if name.endswith("_why"))
        return Isolation(
            bool(held["seccomp"]), held["landlock"], tuple(held["namespaces"]), held["mounts"], held["nobody"], notes
        )

    def _judge(self, has_started: bool, tail: bytes, seconds: float, error: str) -> SandboxResult:
        limits, status = self.limits, self.status or 0
        if not has_started:
            return SandboxResult("error", f"the process could not be set up: {error[-300:].strip()}")
        verdict = _load(tail.removeprefix(self.nonce.encode())) if tail.startswith(self.nonce.encode()) else None
        if verdict is not None:
            return _read_verdict(verdict)
        if self.is_late:
            return SandboxResult("timeout", f"it did not end within {limits.timeout_s:g} s")
        if status == -signal.SIGXCPU or (status == -signal.SIGKILL and seconds >= limits.cpu_s):
            return SandboxResult("timeout", f"it used more than {limits.cpu_s} s of CPU time")
        if status < 0:
            return SandboxResult("killed", f"it was ended by {_name_signal(-status)}")
        if "MemoryError" in error:
            return SandboxResult("memory", f"it needed more than {limits.memory_mb} MB", "MemoryError")
        return SandboxResult("failed", f"it ended itself with status {status} before its end", "SystemExit")

    def _read_output(self, file: int) -> str:
        data = os.pread(file, 4 * self.limits.max_output, 0)
        return data.decode("utf-8", "replace")[: self.limits.max_output]


_ADVICE = "run on Linux 5.13 or later on x86-64 or 64-bit ARM, or leave code unrun"


@contextmanager
def _open_run(program: Program, limits: Limits, must_isolate: bool, without: Iterable[Layer]) -> Iterator[_Run]:
    """Lay out a run's folder and its files in memory; all of it is gone afterwards."""
    if sys.platform != "linux":
        raise SandboxError(f"code cannot be run in isolation: this is {sys.platform}; {_ADVICE}")
    nonce = secrets.token_hex(16)
    job = {
        "nonce": nonce,
        "code": program.code,
        "tests": program.tests,
        "sessions": program.sessions,
        "discover": program.discover,
        "is_main": program.is_main,
        "entry": program.entry,
    }
    with ExitStack() as stack:
        work = tempfile.mkdtemp(prefix="sandbox-")
        stack.callback(remove_tree, Path(work))
        files = [_open_memory(text, stack) for text in (json.dumps(job), program.stdin, "", "", "")]
        job_fd, stdin, out, error, verdict = files
        config = {
            "work": work,
            "job_fd": job_fd,
            "verdict_fd": verdict,
            "parent": os.getpid(),
            "cpu_s": limits.cpu_s,
            "memory": limits.memory_mb << 20,
            "file": FILE_MB << 20,
            "needs_seccomp": must_isolate,
            "without": list(without),
        }
        jail = str(Path(__file__).with_name("jail.py"))
        # with -E or -I the hash seed could not be fixed, and sets would have another order in every run
        command = [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", jail, json.dumps(config)]
        environment = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        options = {
            "stdin": stdin,
            "stdout": out,
            "stderr": error,
            "pass_fds": (job_fd, verdict),
            "cwd": work,
            "env": {**environment, "HOME": work, "TMPDIR": work},
            "start_new_session": True,
        }
        yield _Run(command, options, nonce, verdict, (out, error), limits, time.monotonic())


def remove_tree(folder: Path) -> None:
    """Remove a folder that hostile code has filled: however deep, whatever its names and modes, following no link."""
    with suppress(OSError):
        folder.rmdir()
        return
    pool = Path(tempfile.mkdtemp(prefix="sandbox-", dir=folder.parent))
    folder.rename(pool / "0")
    left, n_moved = ["0"], 1
    while left:  # every folder's content moves up, so no path grows long
        place = pool / left.pop()
        if place.is_symlink() or not place.is_dir():
            place.unlink()
            continue
        place.chmod(0o700)
        for name in os.listdir(place):  # noqa: PTH208
            os.rename(os.path.join(place, name), pool / str(n_moved))  # noqa: PTH104, PTH118
            left.append(str(n_moved))
            n_moved += 1
        place.rmdir()
    pool.rmdir()


def _open_memory(text: str, stack: ExitStack) -> int:
    """Return a descriptor of a file in memory that holds `text`."""
    file = os.memfd_create("sandbox")
    stack.callback(os.close, file)
    data = text.encode("utf-8", "replace")
    while data:
        data = data[os.write(file, data) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SandboxError(f"could not start a process for code: {error.strerror or error}") from error


def _kill_group(pid: int) -> None:
    """Kill a process and its group; it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _load(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_verdict(verdict: dict[str, Any]) -> SandboxResult:
    tests = tuple(
        CodeTest(_clean(line["name"]), line["state"], _clean(trouble.get("kind")), _clean(trouble.get("message")))
        for line in verdict["tests"]
        for trouble in [line["trouble"] or {}]
    )
    failed = [test for test in tests if test.state == "failed"]
    trouble = verdict["trouble"]
    if trouble is not None:
        kind, place = _clean(trouble["kind"]), f" in line {trouble['line']}" if trouble["line"] else ""
        detail = f"it raised {_clean(trouble['name'])}{place}: {_clean(trouble['message'])}".rstrip(": ")
        if kind == "SystemExit":
            detail = "it left before its end"
        outcome = "memory" if kind == "MemoryError" else "failed"
        return SandboxResult(outcome, detail, kind, tests, verdict["n_tests"])
    if failed:
        first = failed[0]
        outcome = "memory" if first.exception == "MemoryError" else "failed"
        detail = f"{len(failed)} of {len(tests)} tests failed, first {first.name}: {first.exception} {first.message}"
        return SandboxResult(outcome, detail.strip(), first.exception, tests, verdict["n_tests"])
    return SandboxResult("passed", "", "", tests, verdict["n_tests"])


def _clean(text: object) -> str:
    return " ".join(clean_text(str(text or "")).split())


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
