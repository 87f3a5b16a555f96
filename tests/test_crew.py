"""Who plays which part: defaults, refusals, shared engines, limits and prices of their own, and calls that arrive."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy import pipeline
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import Config, load_kind, load_recipe
from matrix_dspy.crew import (
    PARTS,
    WEAK_REHEARSAL,
    assign_parts,
    build_budget,
    choose_price,
    name_models,
    name_schemas,
    open_crew,
    warn_of_one_model,
)
from matrix_dspy.engine.base import Request
from matrix_dspy.engine.rehearsal.engine import RehearsalEngine
from matrix_dspy.engine.rehearsal.server import RehearsalServer, start_server
from matrix_dspy.errors import ConfigError
from tests.synthesis.casting import read_call

SFT, DPO = load_kind("sft"), load_kind("dpo")
REAL = "http://127.0.0.1:1/v1"


def configure(**sections: Any) -> Config:
    return Config(**sections)


def test_by_default_one_model_plays_every_part_and_no_second_one_is_opened():
    parts = assign_parts(configure(), SFT)

    assert parts == dict.fromkeys(("main", "writer", "responder", "judge"), "rehearsal")
    assert assign_parts(configure(), None) == {"main": "rehearsal"}


def test_a_part_that_is_named_is_played_by_its_own_model_and_the_others_by_main():
    lm = {"main": REAL, "judge": "rehearsal?seed=2", "writer": "openai/gpt-4o-mini"}

    assert assign_parts(configure(lm=lm), SFT) == {
        "main": REAL, "responder": REAL, "judge": "rehearsal?seed=2", "writer": "openai/gpt-4o-mini",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "selection"), [(DPO, {}), (SFT, {"on": True}), (DPO, {"on": True})])
def test_with_the_rehearsal_the_model_to_be_trained_is_a_weaker_rehearsal(kind: Any, selection: dict[str, Any]):
    assert assign_parts(configure(selection=selection), kind)["rejected"] == WEAK_REHEARSAL


def test_a_model_to_be_trained_is_not_opened_where_nothing_is_drawn_from_it():
    assert "rejected" not in assign_parts(configure(lm={"rejected": REAL}), SFT)


@pytest.mark.parametrize(
    ("kind", "selection", "wants"), [(DPO, {}, "its pairs"), (SFT, {"on": True}, "selection")], ids=["pairs", "on"]
)
@pytest.mark.parametrize("lm", [{"main": REAL}, {"responder": REAL}], ids=["main", "responder"])
def test_a_real_aligned_model_needs_the_model_to_be_trained_named(kind: Any, selection: Any, wants: str, lm: Any):
    config = configure(lm=lm, selection=selection)
    with pytest.raises(ConfigError, match=rf"^kind '{kind.name}' needs the model to be trained for {wants}; name it"):
        assign_parts(config, kind)

    assert assign_parts(configure(lm=lm | {"rejected": REAL + "#sft"}, selection=selection), kind)["rejected"]


def test_a_rehearsed_writer_does_not_excuse_a_real_aligned_model():
    with pytest.raises(ConfigError, match="--rejected-lm"):
        assign_parts(configure(lm={"main": "rehearsal", "responder": REAL}), DPO)


def test_no_model_is_started_before_the_missing_one_is_named(tmp_path: Path):
    config = load_recipe("tiny", {"synthesis.kind": "dpo", "lm.main": REAL})
    with pytest.raises(ConfigError, match="--rejected-lm"):
        asyncio.run(pipeline.generate(config, tmp_path / "run", progress=Progress(), is_quiet=True))

    assert not (tmp_path / "run").exists()
    assert not pipeline.can_start(config)


@pytest.mark.parametrize(
    ("lm", "is_warned"),
    [
        ({"rejected": "rehearsal"}, True),
        ({"main": REAL, "rejected": REAL}, True),
        ({"responder": REAL, "rejected": REAL}, True),
        ({"rejected": "rehearsal?skill=low"}, False),
        ({"main": REAL, "rejected": REAL + "#sft"}, False),
        ({}, False),
    ],
)
def test_a_rejected_model_equal_to_the_aligned_one_is_warned_of(
    lm: dict[str, str], is_warned: bool, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "matrix_dspy"):
        warn_of_one_model(assign_parts(configure(lm=lm), DPO), DPO)

    assert ("the pairs teach nothing" in " ".join(caplog.text.split())) == is_warned


def open_parts(config: Config, kind: Any) -> dict[str, Any]:
    """Open a crew, and return what it looks like from outside."""

    async def work() -> dict[str, Any]:
        async with open_crew(config, assign_parts(config, kind)) as crew:
            return {
                "engines": {part: id(member.engine) for part, member in crew.items()},
                "widths": {part: member.engine.concurrency for part, member in crew.items()},
                "models": name_models(crew),
                "schemas": name_schemas(crew),
            }

    return asyncio.run(work())


def test_parts_with_the_same_model_share_one_engine_and_one_limit():
    seen = open_parts(configure(), DPO)

    assert len(set(seen["engines"].values())) == 2
    assert {part for part in seen["engines"] if seen["engines"][part] != seen["engines"]["main"]} == {"rejected"}
    assert set(seen["widths"].values()) == {32}
    assert set(seen["engines"]) == set(PARTS)


@pytest.mark.parametrize("way", ["vllm", "transformers"])
def test_a_model_in_this_process_is_loaded_once_whatever_limits_its_parts_have(way: str, monkeypatch):
    class Loaded(RehearsalEngine):
        """Stands in for weights in memory, and counts itself."""

    loaded: list[Loaded] = []

    def open_instead(spec: str, *_: Any, concurrency: int, **__: Any) -> Loaded:
        loaded.append(Loaded(concurrency=concurrency))
        return loaded[-1]

    monkeypatch.setattr("matrix_dspy.crew.open_engine", open_instead)
    lm, limits = {"main": f"{way}:folder", "rejected": f"{way}:folder"}, {"rejected": 3, "judge": 9}

    open_parts(configure(lm=lm, operation={"concurrency": 7, "concurrency_of": limits}), DPO)

    assert [engine.concurrency for engine in loaded] == [9]


def test_a_part_may_have_a_limit_of_its_own():
    operation = {"concurrency": 7, "concurrency_of": {"rejected": 3, "judge": 2}}
    seen = open_parts(configure(operation=operation), DPO)

    assert seen["widths"] == {"main": 7, "writer": 7, "responder": 7, "judge": 2, "rejected": 3}


def test_models_are_named_once_for_main_and_again_where_another_model_plays():
    seen = open_parts(configure(lm={"judge": "rehearsal?seed=4"}), DPO)

    assert seen["models"] == {"main": "rehearsal", "judge": "rehearsal", "rejected": "rehearsal"}
    assert seen["schemas"] == {}
    assert open_parts(configure(), SFT)["models"] == {"main": "rehearsal"}


def test_engines_are_closed_again_when_one_cannot_be_opened():
    """The second of three models is not there: nothing hangs, and the sentence names it."""
    from matrix_dspy.errors import EngineError

    config = configure(lm={"judge": REAL}, operation={"patience_s": 0.2, "timeout_s": 0.5})
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1"):
        open_parts(config, SFT)


def test_each_model_has_its_own_price_unless_the_config_says_one_for_all():
    small, large = choose_price(Config(), "openai/gpt-4o-mini"), choose_price(Config(), "openai/gpt-4o")
    said = Config(operation={"price_in": 1.0})  # type: ignore[arg-type]

    assert small and large and small.cost(1e6, 0) < large.cost(1e6, 0)
    assert choose_price(Config(), "rehearsal") is None
    for spec in (REAL, "openai/gpt-4o"):
        price = choose_price(said, spec)
        assert price and price.cost(1e6, 0) == pytest.approx(1.0)


@pytest.mark.parametrize("part", ["main", "judge", "rejected"])
def test_a_limit_on_money_needs_the_price_of_every_model_that_is_paid_for(part: str):
    lm = {"main": "rehearsal", "rejected": "rehearsal?skill=low"} | {part: REAL}
    lm |= {"responder": "rehearsal"} if part == "main" else {}
    config = configure(lm=lm, operation={"max_cost": 1.0})
    parts = assign_parts(config, DPO)

    with pytest.raises(ConfigError, match=r"no price is known for 'http://127\.0\.0\.1:1/v1'"):
        build_budget(config, parts)
    priced = configure(lm=lm, operation={"max_cost": 1.0, "price_in": 0.1})
    assert build_budget(priced, parts).max_cost == 1.0
    assert build_budget(configure(lm=lm), parts).max_cost is None


def test_a_key_in_an_address_is_not_shown_in_the_sentence():
    config = configure(lm={"main": "http://me:secret@127.0.0.1:1/v1"}, operation={"max_cost": 1.0})
    with pytest.raises(ConfigError) as caught:
        build_budget(config, assign_parts(config, SFT))

    assert "secret" not in str(caught.value)


class NotingServer(RehearsalServer):
    """A rehearsal server that notes what it was asked for."""

    def __init__(self, spec: str, model: str) -> None:
        super().__init__(spec)
        self.model = model
        self.programs: Counter[str] = Counter()

    def write(self, messages: list[dict[str, Any]], sampling: Any, packed: bytes) -> Any:
        self.programs[name_program(messages)] += 1
        return super().write(messages, sampling, packed)


def name_program(messages: list[dict[str, Any]]) -> str:
    """Return a program of synthesis by its messages; `society` for those of the simulation."""
    try:
        return read_call(Request(messages)).program
    except StopIteration:
        return "society"


@asynccontextmanager
async def serve_all(**servers: NotingServer) -> AsyncIterator[dict[str, str]]:
    """Serve each on a port of its own; gives the addresses by name."""
    async with AsyncExitStack() as stack:
        addresses = {}
        for name, server in servers.items():
            runner, port = await start_server(server)
            stack.push_async_callback(runner.cleanup)
            addresses[name] = f"http://127.0.0.1:{port}/v1"
        yield addresses


def test_calls_arrive_at_the_server_that_plays_the_part(tmp_path: Path):
    """Four real servers on loopback: society and answers, instructions, verdicts, and the rejected side."""
    servers = {
        "main": NotingServer("rehearsal", "aligned"),
        "writer": NotingServer("rehearsal?seed=3", "writer"),
        "judge": NotingServer("rehearsal?seed=4", "judge"),
        "rejected": NotingServer("rehearsal?skill=low", "trainee"),
    }

    async def work() -> pipeline.Result:
        async with serve_all(**servers) as addresses:
            changes = {f"lm.{part}": address for part, address in addresses.items()}
            changes |= {"synthesis.kind": "dpo", "n": 6, "population.n_agents": 6, "operation.plots": False}
            config = load_recipe("tiny", changes | {"synthesis.refine": 1, "operation.concurrency_of": {"judge": 2}})
            return await pipeline.generate(config, tmp_path / "run", progress=Progress(), is_quiet=True)

    result = asyncio.run(work())

    assert result.is_complete
    assert set(servers["main"].programs) == {"society", "responder", "reviser"}
    assert set(servers["writer"].programs) == {"instruction_writer"}
    assert set(servers["judge"].programs) <= {"critic", "pair_judge", "instruction_rater"}
    assert servers["judge"].programs["instruction_rater"] >= 6
    assert set(servers["rejected"].programs) == {"responder"}
    assert servers["rejected"].programs["responder"] == servers["main"].programs["responder"]
    assert 0 < servers["judge"].stats.peak_in_flight <= 2


def test_a_dialogue_is_asked_on_by_the_writer_and_answered_by_the_responder(tmp_path: Path):
    servers = {name: NotingServer("rehearsal", name) for name in ("main", "writer", "responder")}

    async def work() -> pipeline.Result:
        async with serve_all(**servers) as addresses:
            changes: dict[str, Any] = {f"lm.{part}": address for part, address in addresses.items()}
            changes |= {"synthesis.kind": "multiturn", "n": 4, "population.n_agents": 6, "operation.plots": False}
            config = load_recipe("tiny", changes | {"synthesis.rate": False})
            return await pipeline.generate(config, tmp_path / "run", progress=Progress(), is_quiet=True)

    assert asyncio.run(work()).is_complete
    assert set(servers["main"].programs) == {"society"}
    assert set(servers["writer"].programs) == {"instruction_writer", "follow_up_writer"}
    assert set(servers["responder"].programs) == {"responder", "converser"}
