import json
from pathlib import Path

import pytest

from matrix_dspy.errors import ConfigError
from matrix_dspy.training.tuning import launch
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
