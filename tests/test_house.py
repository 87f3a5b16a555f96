"""What holds for the code base as a whole: its layers, its types, its manners."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import matrix_dspy

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
EMOJI = re.compile("[\u2600-\u27bf\u2b50\u2b55\ufe0f\U0001f000-\U0001faff\U000e0000-\U000e007f]")
ELSEWHERE = re.compile(
    r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/|files\.pythonhosted\.org|pypi\.org/simple"
)
"""Paths of one machine, and hosts of package registries."""


def run_tool(name: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    tool = BIN / name
    if not tool.exists():
        pytest.skip(f"{name} is not installed beside {sys.executable}")
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def list_files() -> list[Path]:
    """Return the files that git tracks or would track, links left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError as error:
        pytest.skip(f"no git: {error}")
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def read_text_files() -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in list_files():
        try:
            texts[str(path.relative_to(ROOT))] = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def list_sources() -> list[Path]:
    library = [path for path in (ROOT / "matrix_dspy").rglob("*.py") if not path.is_symlink()]
    return [ROOT / "cli.py", *sorted((ROOT / "programs").glob("*.py")), *sorted(library)]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_help_is_shown_without_any_heavy_import():
    command = [sys.executable, "-X", "importtime", str(ROOT / "cli.py"), "--help"]

    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert "typer" in imported
    heavy = {"dspy", "polars", "torch", "litellm", "sklearn", "numpy", "aiohttp", "openai", "pydantic", "transformers"}
    assert imported & heavy == set()


def test_importing_the_package_imports_no_library():
    code = "import sys, matrix_dspy; print(*{'dspy', 'polars', 'numpy', 'pydantic', 'litellm'} & set(sys.modules))"

    done = run_python(code)

    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_the_face_of_the_package_imports_no_gpu_library():
    code = (
        "import sys\nfrom matrix_dspy import *\nimport matrix_dspy.bulk.program\n"
        "print(*{'torch', 'transformers', 'trl', 'vllm', 'ray', 'sentence_transformers', 'litellm'} & set(sys.modules))"
    )

    done = run_python(code)

    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_prices_are_not_fetched_over_the_network():
    code = "import os, matrix_dspy; print(os.environ['LITELLM_LOCAL_MODEL_COST_MAP'])"

    assert run_python(code).stdout == "true\n"


def test_public_names_exist_and_are_documented():
    assert sorted(matrix_dspy.__all__) == list(matrix_dspy.__all__)
    for name in matrix_dspy.__all__:
        value = getattr(matrix_dspy, name)
        if callable(value):
            assert value.__doc__ and len(value.__doc__) > 20, f"{name} has no docstring"
    assert {"load_program", "list_programs", "run_program", "save_program"} <= set(matrix_dspy.__all__)


@pytest.mark.parametrize("name", ["programs", "errors", "types"])
def test_modules_of_the_public_face_are_reached_by_name(name: str):
    assert getattr(matrix_dspy, name) is importlib.import_module(f"matrix_dspy.{name}")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'run_programm'"):
        getattr(matrix_dspy, "run_programm")  # noqa: B009


def test_imports_point_down():
    done = run_tool("lint-imports")

    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff_is_content(arguments: tuple[str, ...]):
    done = run_tool("ruff", *arguments, ".")

    assert done.returncode == 0, done.stdout[-2000:]


def run_pyright(cwd: Path) -> list[str]:
    """Return pyright's errors as `file: message`; a run that looked at no file is a failure."""
    done = run_tool("pyright", "--outputjson", "--pythonpath", sys.executable, cwd=cwd)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        pytest.skip(f"pyright does not run here: {(done.stderr or done.stdout)[-200:]}")
    assert report["summary"]["filesAnalyzed"] > 0
    found = [entry for entry in report["generalDiagnostics"] if entry["severity"] == "error"]
    return [f"{Path(entry['file']).relative_to(cwd.resolve())}: {entry['message']}" for entry in found]


def test_a_wrong_type_in_programs_is_seen(tmp_path: Path):
    for name in ("pyproject.toml", "programs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "matrix_dspy").mkdir()
    (tmp_path / "matrix_dspy" / "__init__.py").touch()
    (tmp_path / "matrix_dspy" / "programs").symlink_to(Path("..") / "programs")
    with (tmp_path / "programs" / "judge.py").open("a") as file:
        file.write('\n\nPLANTED: int = "not a number"\n')

    errors = run_pyright(tmp_path)

    assert len(errors) == 1
    assert errors[0].startswith("matrix_dspy/programs/judge.py: ") and "not assignable" in errors[0]


def test_every_module_function_and_class_says_what_it_is():
    silent: list[str] = []
    for path in list_sources():
        tree = ast.parse(path.read_text("utf-8"))
        place = str(path.relative_to(ROOT))
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(place)
        for node in tree.body:
            is_named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_named and not node.name.startswith("_") and ast.get_docstring(node, clean=False) is None:
                silent.append(f"{place}: {node.name}")

    assert silent == []


def test_programs_know_only_dspy_and_each_other():
    foreign: set[str] = set()
    for path in (ROOT / "programs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                foreign |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                foreign.add(node.module or ".")

    allowed = {"dspy", "pydantic", "typing", "matrix_dspy.types"}
    assert {name for name in foreign - allowed if not name.startswith("matrix_dspy.programs")} == set()


def test_there_is_no_emoji_anywhere():
    found = {name: EMOJI.findall(text)[:3] for name, text in read_text_files().items() if EMOJI.search(text)}

    assert found == {}


def test_no_file_names_a_machine_or_a_registry():
    own = str(Path(__file__).relative_to(ROOT))

    found = {
        name: match[0] for name, text in read_text_files().items() if name != own and (match := ELSEWHERE.search(text))
    }

    assert found == {}


def test_no_file_names_this_machines_own_registry():
    command = [sys.executable, "-m", "pip", "config", "list"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    said = configured + " ".join(value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_")))
    hosts = set(re.findall(r"https?://(?:[^/@\s']*@)?([^/:\s'\"]+)", said)) - {"pypi.org", "localhost", "127.0.0.1"}

    found = {name: host for name, text in read_text_files().items() for host in hosts if host in text}

    assert found == {}
