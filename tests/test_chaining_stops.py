"""What ends the training of a chain, which is a process of its own, and what is left then."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from matrix_dspy.training.folder import find_checkpoints, read_lines
from matrix_dspy.training.interrupting import interruptible
from matrix_dspy.training.tiny import build_tiny_model
from tests.delivery.runs import write_run
from tests.starter import ROOT

T = TypeVar("T")
SCRIPT = """
import sys
from pathlib import Path
from matrix_dspy.chaining import ChainPlan, tune
from matrix_dspy.errors import RunError

settings = {"epochs": 9000, "batch": 8, "eval_share": 0, "max_length": 256, "save_steps": 1}
plan = ChainPlan.of("plumbing", sys.argv[1], Path(sys.argv[2]), {}, (), "plumbing", settings, ())
while True:
    try:
        tune(plan, 0, print)
    except (RunError, KeyboardInterrupt) as error:
        print(type(error).__name__, error, flush=True)
"""


def find_training(pid: int) -> int:
    """Return the process that a chain trains in; 0 where there is none yet."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            return child
    return 0


def is_running(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # what has ended and was not waited for has none
    except OSError:
        return False


def wait_for(find: Callable[[], T], seconds: float = 60) -> T:
    """Wait until something is found."""
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_training_that_is_killed_is_told_in_a_sentence_and_one_whose_chain_is_killed_ends(tmp_path: Path):
    model = build_tiny_model(tmp_path / "tiny")
    write_run(tmp_path / "out" / "plumbing", [(f"Which colour has item {n}?", f"It is {n}.") for n in range(8)])
    out = tmp_path / "out" / "plumbing-model"
    command = [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "out")]
    chain = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert chain.stdout is not None

    os.kill(wait_for(lambda: find_training(chain.pid)), signal.SIGKILL)
    assert chain.stdout.readline().startswith("RunError the training process was killed (often the machine's memory is")

    wait_for(lambda: len(read_lines(out / "metrics.jsonl")) >= 3)
    training = wait_for(lambda: find_training(chain.pid))
    chain.kill()
    chain.communicate(timeout=60)
    wait_for(lambda: not is_running(training))
    assert find_checkpoints(out)[-1][0] == read_lines(out / "metrics.jsonl")[-1]["step"] < 9000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_is_broken_off_and_what_others_had_set_comes_back(number: signal.Signals):
    before = signal.getsignal(number)

    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
        time.sleep(60)

    assert signal.getsignal(number) == before
