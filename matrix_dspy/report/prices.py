"""What a token costs, from the price map that comes with LiteLLM; read as a file, LiteLLM itself is not imported.

A model that is not in the map, or stands there without a price, has none: a price is looked up or given, never guessed.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

PRICE_MAP = "model_prices_and_context_window_backup.json"
_MODES = frozenset({"chat", "completion", "responses"})
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    prompt: float
    completion: float
    cached: float | None = None
    """Of prompt tokens found in the provider's prefix cache; None where that is not known."""
    source: str = "given"
    """Where the price comes from: `given`, or the map's entry."""

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what so many tokens cost, none of them cached."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / _MILLION


def find_price(model: str) -> Price | None:
    """Return the price of a model as it is named after `--lm`; None where it has none or none is known.

    `openai/gpt-4o-mini` finds the entry of that name, else `gpt-4o-mini` if that entry is the same provider's. Servers
    of one's own (`http://...`) have no price; entries that cost nothing are prices nobody has filled in.
    """
    name = model.strip()
    if not name or "://" in name or name.partition("?")[0] == "rehearsal":
        return None
    provider, _, bare = name.partition("/")
    price = _read_price(name)
    if price is None and bare and _is_of(bare, provider):
        price = _read_price(bare)
    return price


def _is_of(name: str, provider: str) -> bool:
    """Whether an entry is a provider's: the map has finer names for some, such as `bedrock_converse`."""
    named = str(_load_map().get(name, {}).get("litellm_provider", ""))
    return named == provider or named.startswith((f"{provider}_", f"{provider}-"))


def _read_price(name: str) -> Price | None:
    entry = _load_map().get(name, {})
    prompt, completion = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if entry.get("mode") not in _MODES or prompt is None or completion is None or not (prompt or completion):
        return None
    cached = entry.get("cache_read_input_token_cost")
    return Price(
        prompt=_per_million(prompt),
        completion=_per_million(completion),
        cached=None if cached is None else _per_million(cached),
        source=f"LiteLLM's price map, entry {name!r}",
    )


def _per_million(cost: float) -> float:
    return round(float(cost) * _MILLION, 9)  # 1.5e-07 times a million is 0.15 only after rounding


@cache
def _load_map() -> Mapping[str, dict[str, Any]]:
    """Load the map from the installed package's folder; empty where LiteLLM is not installed."""
    found = importlib.util.find_spec("litellm")  # finds a top-level package without running it
    if found is None or found.origin is None:
        return {}
    try:
        values = orjson.loads((Path(found.origin).parent / PRICE_MAP).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return {name: entry for name, entry in values.items() if isinstance(entry, dict)}
