import shutil
from pathlib import Path

from tests.conftest import ROOT, install_outside, run_outside

RUN_A_ROW = """
import matrix_dspy, polars as pl
assert "site-packages" in matrix_dspy.__file__, matrix_dspy.__file__
assert len(matrix_dspy.list_programs()) == 24
program = matrix_dspy.load_program("instruction_writer")
frame = pl.DataFrame({"profile": ["a baker"], "actions": [["baked forty loaves"]], "scenario": ["The oven failed."],
                      "requirement": ["Type: simple"]})
result = matrix_dspy.run_program(program, frame)
assert result["instruction"][0] and result["error"][0] is None and result["model"][0] == "rehearsal"
"""


def test_the_wheel_alone_lists_programs_runs_one_and_generates(wheel_binaries: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    run_outside(wheel_binaries / "python", "-c", RUN_A_ROW, cwd=empty)
    said = run_outside(
        wheel_binaries / "matrix-dspy", "generate", "-q", "--n", "10", "--set", "population.n_agents=5", cwd=empty
    )

    assert "10 of 10 rows: runs/tiny-sft" in said
    assert (empty / "runs" / "tiny-sft" / "dataset" / "sft.parquet").is_file()


def test_the_example_project_works_from_the_wheel_alone(wheel_binaries: Path, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "examples" / "reuse", tmp_path / "reuse", ignore=shutil.ignore_patterns("out", "__pycache__")
    )
    install_outside(wheel_binaries, "pytest")

    where = run_outside(wheel_binaries / "python", "-c", "import sys; print(sys.path)", cwd=tmp_path / "reuse")
    run_outside(wheel_binaries / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "reuse")
    said = run_outside(wheel_binaries / "python", "reuse.py", cwd=tmp_path / "reuse")

    assert str(ROOT) not in where
    assert "response_judge: 3 demos chosen; nothing was measured" in said
    assert "held-out labels:" in said


def test_an_installed_wheel_compiles_into_the_present_folder(wheel_binaries: Path, tmp_path: Path) -> None:
    said = run_outside(wheel_binaries / "matrix-dspy", "compile", "critic", cwd=tmp_path)

    assert "optimized/critic/default.json" in said
    assert (tmp_path / "optimized" / "critic" / "default.json").is_file()
