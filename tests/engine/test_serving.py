import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.engine import serving
from matrix_dspy.engine.serving import find_fault, find_spec
from matrix_dspy.errors import ConfigError

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2}


def write_model(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that is there, and must not be imported to find that out."""
    package = tmp_path / "site" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it was imported')\n")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_module", lambda name: None)


@pytest.mark.parametrize(
    "spec",
    [
        "rehearsal",
        "rehearsal?latency=0.2",
        "http://host:1/v1#model",
        "vllm:org/model?dtype=auto",
        "vllm:./folder",
        "transformers:./folder",
        "openai/gpt-4o-mini",
        "org/model",
    ],
)
def test_a_spec_stays_what_it_is(spec: str):
    assert find_spec(spec) == spec


@pytest.mark.usefixtures("vllm")
def test_a_folder_goes_to_vllm_where_that_is_installed(tmp_path: Path):
    folder = write_model(tmp_path / "tuned")

    assert find_spec(folder) == find_spec(str(folder)) == f"vllm:{folder}"
    assert find_spec(folder, "transformers") == f"transformers:{folder}"


@pytest.mark.usefixtures("no_vllm")
def test_a_folder_goes_to_transformers_elsewhere_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = write_model(tmp_path / "tuned")

    with caplog.at_level(logging.WARNING, "matrix_dspy"):
        specs = {find_spec(folder) for _ in range(3)}

    assert specs == {f"transformers:{folder}"}
    assert caplog.messages == [f"{folder} is run by transformers: vLLM is not installed"]
    assert find_spec(folder, "vllm") == f"vllm:{folder}"


@pytest.mark.usefixtures("vllm")
def test_an_adapter_goes_to_transformers(tmp_path: Path):
    folder = write_adapter(tmp_path / "lora")

    assert find_spec(folder) == f"transformers:{folder}"
    with pytest.raises(ConfigError, match=r"vLLM does not run '.*lora': it is an adapter .*; merge the adapter first"):
        find_spec(folder, "vllm")


def test_what_vllm_does_not_take_is_told_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, narrow = write_model(tmp_path / "whole"), write_model(tmp_path / "narrow", num_attention_heads=4)
    assert find_fault(whole) is None
    monkeypatch.setattr(serving, "_is_cpu_build", lambda: True)
    assert find_fault(whole) is None
    assert find_fault(write_model(tmp_path / "given", num_attention_heads=4, head_dim=64)) is None
    assert "attention heads of 16" in (find_fault(narrow) or "")
    monkeypatch.setattr(serving, "_is_cpu_build", lambda: False)
    assert find_fault(narrow) is None
    (whole / "model.safetensors").unlink()
    assert find_fault(whole) == "it has no weights"
    (narrow / "config.json").write_text("[")
    assert find_fault(narrow) == "it has no config.json that can be read"
    both = write_adapter(write_model(tmp_path / "both"))
    assert find_fault(both) == "it holds a model and an adapter"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    for missing in (tmp_path / "none", str(tmp_path / "none"), "./no-such-model", "~/no-such-model"):
        with pytest.raises(ConfigError, match=r"no model folder '.*'; give the folder of a model, or an LM's spec"):
            find_spec(missing)


def test_a_folder_whose_name_no_spec_can_hold_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has a '[?]' in its name, which a spec cannot hold; rename it"):
        find_spec(write_model(tmp_path / "what?"))


def test_choosing_imports_nothing_heavy(tmp_path: Path):
    code = (
        "import sys; from matrix_dspy.engine.serving import find_spec; find_spec(sys.argv[1]); "
        "sys.exit(any(name.partition('.')[0] in ('vllm', 'torch', 'transformers') for name in sys.modules))"
    )
    folder = write_model(tmp_path / "tuned")

    assert subprocess.run([sys.executable, "-c", code, folder], check=False, capture_output=True).returncode == 0
