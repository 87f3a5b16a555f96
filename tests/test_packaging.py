import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUN_A_ROW = """
import matrix_dspy, polars as pl
assert "site-packages" in matrix_dspy.__file__, matrix_dspy.__file__
assert len(matrix_dspy.list_programs()) == 18
program = matrix_dspy.load_program("instruction_writer")
frame = pl.DataFrame({"profile": ["a baker"], "actions": [["baked forty loaves"]], "scenario": ["The oven failed."],
                      "requirement": ["Type: simple"]})
result = matrix_dspy.run_program(program, frame)
assert result["instruction"][0] and result["error"][0] is None and result["model"][0] == "rehearsal"
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, ROOT, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "source", filter="data")
    (source,) = (out / "source").iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_alone_lists_programs_runs_one_and_generates(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    run(binaries / "pip", "install", "-q", wheel, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()

    run(binaries / "python", "-c", RUN_A_ROW, cwd=empty)
    said = run(binaries / "matrix-dspy", "generate", "-q", "--n", "10", "--set", "population.n_agents=5", cwd=empty)

    assert "10 of 10 rows: runs/tiny-sft" in said
    assert (empty / "runs" / "tiny-sft" / "dataset" / "sft.parquet").is_file()
