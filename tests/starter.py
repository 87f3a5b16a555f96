"""Starts command lines from a process that has done their imports once: `start` is `Popen(["python", "cli.py", ...])`.

Before its first line of work a command line imports for two to three seconds, and the tests start well over a hundred.
Here one process, the starter, imports what they need and does nothing else; each command is then a fork of it that
runs cli.py from its first line, with its own process id, arguments, folder, environment, streams, signals and exit
code. What depends on how Python itself starts (hash seeds, the time of the imports) is not for it.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parent.parent
IMPORTS = (
    "lemminflect",
    "lingua",
    "matrix_dspy.curating",
    "matrix_dspy.engine.rehearsal.server",
    "matrix_dspy.optimization.compiling",
    "matrix_dspy.optimization.labelling",
    "matrix_dspy.planning",
    "matrix_dspy.previewing",
    "matrix_dspy.report.descent",
    "rapidfuzz",
    "rensa",
    "scipy.optimize",
    "sklearn.feature_extraction.text",
)
"""What the commands import; one left out costs time and nothing else."""
LONGEST_ORDER = 2**20
"""Bytes."""
WIDTH = 16
"""Bytes of a number in a report: first the process id, at the end the exit code."""


class Command:
    """A running command line, to be used like a Popen with pipes of text."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        """Start `python cli.py` with these arguments; returns when the process is there."""
        self.args = ["python", "cli.py", *arguments]
        self.returncode: int | None = None
        order = json.dumps({"arguments": list(arguments), "folder": str(folder), "environment": environment}).encode()
        assert len(order) < LONGEST_ORDER, "the arguments and the environment are too long"
        (out, out_end), (err, err_end), (self._report, report_end) = os.pipe(), os.pipe(), os.pipe()
        socket.send_fds(_start_starter(), [order], [out_end, err_end, report_end])
        for end in (out_end, err_end, report_end):
            os.close(end)
        self.stdout: TextIO = os.fdopen(out, encoding="utf-8")
        self.stderr: TextIO = os.fdopen(err, encoding="utf-8")
        self.pid = self._read_number()

    def poll(self) -> int | None:
        """Return the exit code, minus the signal where one ended it, or None while the command runs."""
        return self._read_report(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            TimeoutExpired: the command still runs after `timeout` seconds.
        """
        code = self._read_report(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what was said on standard output and standard error since they were last read.

        Raises:
            TimeoutExpired: the command still runs after `timeout` seconds.
        """
        said = {"stdout": "", "stderr": ""}
        readers = [threading.Thread(target=self._read, args=(name, said), daemon=True) for name in said]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return said["stdout"], said["stderr"]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command is over."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command without a chance to clean up."""
        self.send_signal(signal.SIGKILL)

    def _read(self, name: str, said: dict[str, str]) -> None:
        with getattr(self, name) as stream:
            said[name] = stream.read()

    def _read_number(self) -> int:
        return int(os.read(self._report, WIDTH))

    def _read_report(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            self.returncode = self._read_number()
            os.close(self._report)
        return self.returncode


def start(*arguments: str, folder: Path = ROOT) -> Command:
    """Start `python cli.py` in `folder`, with this process's environment."""
    return Command(arguments, folder, dict(os.environ))


def run(*arguments: str, folder: Path = ROOT, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `python cli.py` to its end; what still runs after `timeout` seconds is killed."""
    command = start(*arguments, folder=folder)
    try:
        out, err = command.communicate(timeout)
    except subprocess.TimeoutExpired:
        command.kill()
        raise
    return subprocess.CompletedProcess(command.args, command.wait(), out, err)


@cache
def _start_starter() -> socket.socket:
    """Start the starter; it ends when this process does, because its socket closes."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_ORDER)
    code = f"from tests import starter; starter.serve({its.fileno()})"
    subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])
    its.close()
    return ours


def serve(descriptor: int) -> None:
    """Be the starter: import, then fork a command for every order until the other side is gone."""
    before = dict(os.environ)
    for name in IMPORTS:
        import_module(name)
    import_module("lemminflect").getAllLemmas("read")  # its word list is half a second
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = socket.socket(fileno=descriptor)
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, LONGEST_ORDER, 3)
        if not order:
            return
        _bury()
        if os.fork() == 0:
            orders.close()
            wanted = json.loads(order)
            _keep(wanted["arguments"], wanted["folder"], {**added, **wanted["environment"]}, descriptors)
            return
        for each in descriptors:
            os.close(each)


def _bury() -> None:
    """Wait for the keepers that are over."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(arguments: list[str], folder: str, environment: dict[str, str], descriptors: Sequence[int]) -> None:
    """Fork the command, and report its process id and how it ended."""
    out, err, report = descriptors
    if (pid := os.fork()) == 0:
        os.close(report)
        os.dup2(out, 1)
        os.dup2(err, 2)
    os.close(out)
    os.close(err)
    if pid == 0:
        _become(arguments, folder, environment)
        return
    os.write(report, b"%*d" % (WIDTH, pid))
    _, status = os.waitpid(pid, 0)
    os.write(report, b"%*d" % (WIDTH, os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be the command line from its first line to its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(ROOT / "cli.py"), *arguments]
    sys.path[0] = str(ROOT)
    runpy.run_path(sys.argv[0], run_name="__main__")
