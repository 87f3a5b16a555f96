import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.engine.vllm import VllmEngine, check_options, parse_prefix_cache
from matrix_dspy.errors import ConfigError, EngineError, MissingExtraError

METRICS = """\
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="org/model {x}"} 1.2e+03
vllm:prefix_cache_queries_total{engine="1",model_name="org/model {x}"} 300.0
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
vllm:prefix_cache_hits_total{engine="0",model_name="org/model {x}"} 512.0
vllm:prefix_cache_hits_total{engine="1",model_name="org/model {x}"} 64.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="org/model {x}"} 7.0
vllm:prefix_cache_hits_created{engine="0",model_name="org/model {x}"} 1.7e+09
"""


def open_engine(engine: VllmEngine) -> None:
    asyncio.run(engine.open())


@pytest.mark.parametrize(
    ("spec", "name", "model", "options"),
    [
        ("vllm:org/model-8b", "org/model-8b", "org/model-8b", {}),
        (" vllm:gpt2 ", "gpt2", "gpt2", {}),
        ("vllm:/models/llama/tiny", "/models/llama/tiny", "tiny", {}),
        ("vllm:/models/tiny/", "/models/tiny/", "tiny", {}),
        ("vllm:./tiny", "./tiny", "tiny", {}),
        ("vllm:~/models/tiny", "~/models/tiny", "tiny", {}),
        (
            "vllm:org/m?max_model_len=8192&dtype=bfloat16&enforce_eager=true&gpu_memory_utilization=0.8",
            "org/m",
            "org/m",
            {"max_model_len": 8192, "dtype": "bfloat16", "enforce_eager": True, "gpu_memory_utilization": 0.8},
        ),
        (
            'vllm:org/m?hf_overrides={"a":[1,"b=c"]}&tokenizer=a%26b',
            "org/m",
            "org/m",
            {"hf_overrides": {"a": [1, "b=c"]}, "tokenizer": "a&b"},
        ),
    ],
)
def test_a_spec_is_a_model_and_options(spec: str, name: str, model: str, options: dict[str, Any]):
    engine = VllmEngine.from_spec(spec)

    assert (engine.name, engine.model, engine.options) == (name, model, options)


def test_a_folder_that_looks_like_a_hub_name_has_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert VllmEngine("models/tiny").model == "tiny"


def test_limits_reach_the_engine():
    engine = VllmEngine.from_spec("vllm:org/model", concurrency=7, timeout_s=3.0, send_seeds=False, data_parallel=4)

    assert (engine.concurrency, engine.timeout_s, engine.send_seeds) == (7, 3.0, False)
    assert engine.options == {"data_parallel_size": 4}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vllm:", "no model in 'vllm:'"),
        ("vllm:?dtype=auto", "no model in"),
        ("org/model", "no model in"),
        ("vllm:org/m?dtype", "vLLM option 'dtype' will not do; write key=value"),
        ("vllm:org/m?=3", "write key=value"),
        ("vllm:org/m?dtype=a&dtype=b", "'dtype' is given twice"),
        ("vllm:org/m?model=other", "'model' is given twice"),
    ],
)
def test_a_spec_that_will_not_do_says_what_to_write(spec: str, words: str):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        VllmEngine.from_spec(spec)


def test_two_numbers_of_copies_are_one_too_many():
    with pytest.raises(ConfigError, match="data_parallel_size=2 in the spec and 4 beside it"):
        VllmEngine.from_spec("vllm:org/m?data_parallel_size=2", data_parallel=4)

    assert VllmEngine.from_spec("vllm:org/m?data_parallel_size=2").options == {"data_parallel_size": 2}


def test_an_unknown_option_is_refused_with_the_nearest_one():
    known = ["max_model_len", "max_num_seqs", "dtype"]

    check_options(["dtype", "max_num_seqs"], known)
    with pytest.raises(ConfigError, match="no engine option 'max_model_length'; did you mean 'max_model_len'"):
        check_options(["dtype", "max_model_length"], known)
    with pytest.raises(ConfigError, match="no engine option 'colour'; see the engine arguments"):
        check_options(["colour"], known)


@pytest.mark.parametrize("name", ["/no/such/model", "./no-such-model", "a/b/c", "~/no such model"])
def test_a_folder_that_does_not_exist_is_named(name: str):
    with pytest.raises(EngineError, match=f"no model folder '{name}'"):
        open_engine(VllmEngine(name))


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(EngineError, match=r"the folder has no config\.json"):
        open_engine(VllmEngine(str(tmp_path)))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_said_with_the_command_that_installs_it():
    with pytest.raises(MissingExtraError, match=r"vLLM is not installed; pip install 'matrix-dspy\[vllm\]'"):
        open_engine(VllmEngine("org/model"))


def test_naming_an_engine_imports_no_vllm():
    code = (
        "import sys; from matrix_dspy.engine.vllm import VllmEngine; VllmEngine.from_spec('vllm:org/m?dtype=auto'); "
        "sys.exit(any(name.partition('.')[0] in ('vllm', 'torch', 'transformers') for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_figures_before_it_is_open():
    assert asyncio.run(VllmEngine("org/model").read_prefix_cache()) is None


def test_the_prefix_caches_counters_are_summed_over_engines():
    assert parse_prefix_cache(METRICS) == (576, 1500)


@pytest.mark.parametrize("page", ["", "<html>not found</html>", "vllm:prefix_cache_hits_total 3.0\n"])
def test_a_page_without_the_counters_gives_none(page: str):
    assert parse_prefix_cache(page) is None


def test_counters_without_labels_are_read():
    assert parse_prefix_cache("vllm:prefix_cache_hits_total 3.0\nvllm:prefix_cache_queries_total 9.0\n") == (3, 9)
