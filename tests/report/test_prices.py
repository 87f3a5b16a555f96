import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.report.prices import PRICE_MAP, Price, find_price


@pytest.fixture(scope="module")
def price_map() -> dict[str, Any]:
    found = importlib.util.find_spec("litellm")
    assert found is not None and found.origin is not None
    return json.loads((Path(found.origin).parent / PRICE_MAP).read_text("utf-8"))


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        ("openai/gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("azure/gpt-4o-mini", "azure/gpt-4o-mini"),
    ],
)
def test_a_known_model_has_the_price_of_its_entry(given: str, entry: str, price_map: dict[str, Any]):
    price = find_price(given)

    assert price is not None
    assert price.prompt == pytest.approx(price_map[entry]["input_cost_per_token"] * 1e6)
    assert price.completion == pytest.approx(price_map[entry]["output_cost_per_token"] * 1e6)
    assert price.cached == pytest.approx(price_map[entry]["cache_read_input_token_cost"] * 1e6)
    assert entry in price.source


def test_a_price_is_a_round_number_where_it_is_one():
    price = find_price("openai/gpt-4o-mini")

    assert price is not None
    assert (price.prompt, price.completion) == (0.15, 0.6)


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-99-imaginary",
        "http://127.0.0.1:8000/v1#gpt-4o-mini",
        "rehearsal",
        "rehearsal?latency=0.2",
        "sample_spec",
        "",
    ],
)
def test_a_model_without_a_known_price_has_none(model: str):
    assert find_price(model) is None


def test_another_providers_model_of_the_same_name_lends_no_price():
    assert find_price("anthropic/gpt-4o-mini") is None
    assert find_price("somebody/gpt-4o-mini") is None


def test_an_entry_that_costs_nothing_is_no_price(price_map: dict[str, Any]):
    assert price_map["ollama/llama3"]["input_cost_per_token"] == 0

    assert find_price("ollama/llama3") is None


def test_a_model_that_makes_no_text_has_no_price(price_map: dict[str, Any]):
    name = next(name for name, entry in price_map.items() if entry.get("mode") == "embedding")

    assert find_price(name) is None


def test_cost_counts_tokens_by_the_million():
    assert Price(prompt=0.15, completion=0.6).cost(2_000_000, 500_000) == pytest.approx(0.6)


def test_looking_up_a_price_does_not_import_litellm():
    code = (
        "import sys\nfrom matrix_dspy.report.prices import find_price\n"
        "print(find_price('openai/gpt-4o-mini') is not None, 'litellm' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["True", "False"], done.stderr
