"""Which model plays which part of a run: engines side by side, each with its own limit, form of schemas and price."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from typing import Literal

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.program import open_engine, sends_schemas
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.engine.base import Engine, Usage
from matrix_dspy.engine.serving import find_spec
from matrix_dspy.errors import ConfigError
from matrix_dspy.report.prices import Price, find_price
from matrix_dspy.text import hide_secrets

log = logging.getLogger("matrix_dspy")

Part = Literal["main", "writer", "responder", "judge", "rejected"]
PARTS: tuple[Part, ...] = ("main", "writer", "responder", "judge", "rejected")
WEAK_REHEARSAL = "rehearsal?skill=low"
"""What stands in for the model to be trained where the rehearsal stands in for the aligned one."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model and the parts it plays."""

    spec: str
    engine: Engine
    has_schemas: bool
    price: Price | None


def assign_parts(config: Config, kind: KindConfig | None) -> dict[Part, str]:
    """Return the model of every part that the run has.

    Raises:
        ConfigError: a rejected side is wanted and no model is named for it.
    """
    parts: dict[Part, str] = {"main": find_spec(config.lm.main)}
    if kind is None:
        return parts
    for part in ("writer", "responder", "judge"):
        parts[part] = find_spec(config.lm.parts.get(part, config.lm.main))
    if kind.shape != "pair" and not config.selection.on:
        return parts
    if not config.lm.rejected and not is_rehearsal(parts["responder"]):
        wants = "its pairs" if kind.shape == "pair" else "selection"
        raise ConfigError(
            f"kind {kind.name!r} needs the model to be trained for {wants}; name it with --rejected-lm, as for --lm"
        )
    parts["rejected"] = find_spec(config.lm.rejected or WEAK_REHEARSAL)
    return parts


def warn_of_one_model(parts: Mapping[Part, str], kind: KindConfig | None) -> None:
    """Say that pairs of which one model gives both sides are empty of signal."""
    if kind is not None and kind.shape == "pair" and parts["rejected"] == parts["responder"]:
        log.warning(
            "--rejected-lm is the model that answers: both sides of a pair are drawn from the same model, and the"
            " pairs teach nothing"
        )


@asynccontextmanager
async def open_crew(config: Config, parts: Mapping[Part, str]) -> AsyncIterator[dict[Part, Member]]:
    """Open an engine for every model; parts with the same model share it and its limit."""
    async with AsyncExitStack() as stack:
        opened: dict[tuple[str, int], Member] = {}
        crew: dict[Part, Member] = {}
        for part, spec in parts.items():
            concurrency = _limit_of(config, part)
            # in this process a second engine would load the model a second time
            if spec.startswith(("vllm:", "transformers:")):
                concurrency = max(_limit_of(config, name) for name, other in parts.items() if other == spec)
            if (spec, concurrency) not in opened:
                engine = await stack.enter_async_context(_build_engine(config, spec, concurrency))
                schemas = sends_schemas(engine, config.lm.structured)
                opened[spec, concurrency] = Member(spec, engine, schemas, choose_price(config, spec))
            crew[part] = opened[spec, concurrency]
        yield crew


def _limit_of(config: Config, part: Part) -> int:
    return config.operation.concurrency_of.get(part, config.operation.concurrency)


def add_usage(crew: Mapping[Part, Member]) -> Usage:
    """Return what all engines have done together."""
    engines = {id(member.engine): member.engine for member in crew.values()}
    usages = [engine.usage for engine in engines.values()]
    return Usage(**{each.name: sum(getattr(usage, each.name) for usage in usages) for each in fields(Usage)})


def name_models(crew: Mapping[Part, Member]) -> dict[str, str]:
    """Return the models' own names by part, those of `main` only once."""
    main = crew["main"]
    named = {part: member.engine.model for part, member in crew.items() if member.spec != main.spec}
    return {"main": main.engine.model, **named}


def name_schemas(crew: Mapping[Part, Member]) -> dict[str, str]:
    """Return which parts other than `main` are asked with a schema where it is not, or the other way round."""
    main = crew["main"].has_schemas
    others = {part: member.has_schemas for part, member in crew.items() if member.has_schemas != main}
    return {f"schemas_{part}": "sent" if sends else "not sent" for part, sends in others.items()}


def build_budget(config: Config, parts: Mapping[Part, str]) -> Budget:
    """Return what this start may spend; ConfigError when a limit on money cannot be held for want of a price."""
    operation = config.operation
    if operation.max_cost is not None:
        for spec in parts.values():
            if choose_price(config, spec) is None and not is_rehearsal(spec):
                raise ConfigError(
                    f"no price is known for {hide_secrets(spec)!r}; give --price-in and --price-out with --max-cost"
                )
    return Budget(operation.max_calls, operation.max_tokens, operation.max_cost, operation.max_time_s)


def choose_price(config: Config, spec: str | None = None) -> Price | None:
    """Return the price of a model: that given in the config, else that of LiteLLM's map, else None."""
    operation = config.operation
    if operation.price_in is not None or operation.price_out is not None:
        return Price(operation.price_in or 0.0, operation.price_out or 0.0)
    return find_price(spec or config.lm.main)


def is_rehearsal(spec: str) -> bool:
    """Whether a model is the rehearsal."""
    return spec.partition("?")[0] == "rehearsal"


def _build_engine(config: Config, spec: str, concurrency: int) -> Engine:
    operation = config.operation
    copies: dict[str, int] = {}
    if operation.data_parallel > 1:
        if operation.ray is not None:
            raise ConfigError("--ray spreads copies of the model itself; leave --data-parallel out")
        copies["data_parallel"] = operation.data_parallel
    return open_engine(
        spec,
        operation.ray,
        operation.ray_workers,
        concurrency=concurrency,
        timeout_s=operation.timeout_s,
        patience_s=operation.patience_s,
        hedge_s=operation.hedge_s,
        send_seeds=operation.send_seeds,
        **copies,
    )
