import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.errors import ConfigError
from matrix_dspy.training.folder import find_checkpoints
from matrix_dspy.training.tuning import launch, train
from tests.starter import ROOT
from tests.training.material import fast, read_metrics


def test_two_processes_train_one_model(tiny: Path, conversations: Path, tmp_path: Path):
    out = tmp_path / "out"
    lines: list[str] = []
    told = (fast(max_steps=6), conversations, str(tiny), out)

    done = launch(*told, stage="sft", how="ddp", n_processes=2, say=lines.append)

    assert (done.result["n_processes"], done.effective_batch) == (2, 8)
    assert "effective batch 8: 4 x 1 accumulated x 2 processes" in lines
    steps = read_metrics(out)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1]["loss"] < steps[0]["loss"]
    # with no more than 36 rows, five steps of eight are an epoch
    assert done.prepared.n_tokens < done.result["tokens"] < 2 * done.prepared.n_tokens
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert "(4 rows x 1 accumulated x 2 processes)" in (out / "README.md").read_text()
    with pytest.raises(ConfigError, match="n_processes = 2, not 3"):
        launch(*told, stage="sft", how="ddp", n_processes=3, say=lines.append)


def test_two_processes_share_precomputed_reference_figures(tiny: Path, pairs: Path, tmp_path: Path):
    settings: dict[str, Any] = {"max_steps": 3, "eval_steps": 3, "n_samples": 0}
    lines: list[str] = []
    split = fast(**settings, batch=2, dpo__precompute_reference=True)

    alone = train(fast(**settings), pairs, str(tiny), tmp_path / "alone", stage="dpo", say=lines.append)
    both = launch(split, pairs, str(tiny), tmp_path / "both", stage="dpo", how="ddp", n_processes=2, say=lines.append)

    for is_eval in (False, True):
        ours, theirs = read_metrics(both.path, is_eval=is_eval), read_metrics(alone.path, is_eval=is_eval)
        for line, other in zip(ours, theirs, strict=True):
            assert line == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert both.result["n_processes"] == 2


def test_an_interrupt_is_not_kept_waiting_for_a_line_of_the_processes(tiny: Path, conversations: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "cli.py", "train", "sft", str(conversations), "--model", str(tiny), "--out", str(out)]
    command += ["--preset", "plumbing", "--max-steps", "3", "--launch", "ddp", "--processes", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "train.log").exists():
        time.sleep(0.01)
    time.sleep(1)  # it waits by now; the processes import for some seconds before their first line
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)

    assert process.returncode == 130
    assert "interrupted; the last checkpoint is kept" in errors
    assert not (out / "metrics.jsonl").exists()
    assert not Path(f"/proc/{child}").exists()
    assert b"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900" in environment


def test_processes_whose_command_was_killed_save_the_step_and_end(tiny: Path, conversations: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "cli.py", "train", "sft", str(conversations), "--model", str(tiny), "--out", str(out)]
    command += ["--preset", "plumbing", "--launch", "ddp", "--processes", "1", "--eval-share", "0"]
    command += ["--set", "epochs=100000", "--set", "save_steps=100000000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not ((out / "metrics.jsonl").exists() and read_metrics(out)):
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    process.kill()
    process.communicate(timeout=30)

    for _ in range(600):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    ((step, _),) = find_checkpoints(out)
    assert step >= read_metrics(out)[-1]["step"]
