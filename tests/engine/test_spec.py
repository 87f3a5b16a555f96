import sys

import pytest

from matrix_dspy.engine.base import Engine
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.engine.provider import ProviderEngine
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.engine.vllm import VllmEngine
from matrix_dspy.errors import ConfigError


@pytest.mark.parametrize(
    ("spec", "url", "model"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1", ""),
        ("https://host/v1/", "https://host/v1", ""),
        ("http://host:1/v1#org/model-8b", "http://host:1/v1", "org/model-8b"),
        ("  http://host:1/v1#m  ", "http://host:1/v1", "m"),
    ],
)
def test_an_address_is_an_endpoint(spec: str, url: str, model: str):
    engine = build_engine(spec)

    assert isinstance(engine, EndpointEngine)
    assert (engine.url, engine.model) == (url, model)


@pytest.mark.parametrize("spec", ["openai/gpt-4o-mini", "ollama/llama3.2:1b", "hosted_vllm/org/model"])
def test_a_litellm_name_is_a_provider(spec: str):
    engine = build_engine(spec)

    assert isinstance(engine, ProviderEngine)
    assert engine.model == spec


def test_the_rehearsal_is_a_name():
    engine = build_engine("rehearsal")

    assert isinstance(engine, Engine)
    assert not isinstance(engine, EndpointEngine | ProviderEngine)


@pytest.mark.parametrize("spec", ["rehearsal", "http://host/v1", "openai/x"])
def test_limits_reach_every_engine(spec: str):
    engine = build_engine(spec, concurrency=7, timeout_s=3.0, patience_s=4.0)

    assert (engine.concurrency, engine.timeout_s, engine.patience_s) == (7, 3.0, 4.0)
    assert engine.limit.maximum == 7


@pytest.mark.parametrize("spec", ["", "gpt-4o", "openai/", "/model", "ftp://host/v1", "openai/a model", "Rehearsal"])
def test_anything_else_is_refused_with_the_known_forms(spec: str):
    with pytest.raises(ConfigError) as caught:
        build_engine(spec)

    for form in ("'rehearsal'", "http://host:port/v1", "openai/gpt-4o-mini"):
        assert form in str(caught.value)


def test_vllm_in_this_process_is_built_without_importing_it():
    engine = build_engine("vllm:org/model?max_model_len=4096", data_parallel=2, concurrency=5)

    assert isinstance(engine, VllmEngine)
    assert (engine.model, engine.concurrency) == ("org/model", 5)
    assert engine.options == {"max_model_len": 4096, "data_parallel_size": 2}
    assert "vllm" not in sys.modules


def test_a_model_s_folder_is_run_by_what_can_run_it(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    assert type(build_engine(str(folder))).__name__ == "TransformersEngine"  # it has no weights for vLLM


def test_a_folder_called_rehearsal_hides_no_rehearsal(tmp_path, monkeypatch):
    (tmp_path / "rehearsal").mkdir()
    monkeypatch.chdir(tmp_path)

    assert build_engine("rehearsal").model == "rehearsal"
