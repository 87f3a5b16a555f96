"""How tokens are drawn, held against a plain reading of the dials; rows that are packed, and memory that runs out."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the extra train is not installed")
torch: Any = pytest.importorskip("torch", reason="the extra train is not installed")

from matrix_dspy.engine.decoding import Decoder, Dials, Row, draw_tokens, read_spot, split_rows  # noqa: E402
from matrix_dspy.engine.transformers import load_model, load_tokenizer  # noqa: E402
from matrix_dspy.training.tiny import build_tiny_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

N_SPOTS = 400
LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12, unique=True)
DIALS = st.builds(
    Dials,
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.9),
)


def read_chances(logits: list[float], dials: Dials) -> np.ndarray:
    """Return the chance of each token, one dial after the other."""
    chances = np.exp(np.array(logits, dtype=np.float64) / dials.temperature)
    chances[chances < dials.min_p * chances.max()] = 0
    order = np.argsort(-chances)
    if dials.top_k:
        chances[order[dials.top_k :]] = 0
    chances /= chances.sum()
    reached = 0.0
    for token in order:
        if reached >= dials.top_p:
            chances[token] = 0
        reached += chances[token]
    return chances / chances.sum()


def draw(logits: list[list[float]], dials: list[Dials], spots: list[float]) -> list[int]:
    return draw_tokens(torch.tensor(logits, dtype=torch.float32), dials, spots).tolist()


@settings(max_examples=60)
@given(logits=LOGITS, dials=DIALS)
def test_every_token_is_drawn_as_often_as_its_chance_says(logits: list[float], dials: Dials):
    wanted = read_chances(logits, dials)

    spots = [(number + 0.5) / N_SPOTS for number in range(N_SPOTS)]
    counts = Counter(draw([logits] * N_SPOTS, [dials] * N_SPOTS, spots))

    if dials.is_greedy:
        assert counts == {int(np.argmax(logits)): N_SPOTS}
        return
    found = np.array([counts[token] / N_SPOTS for token in range(len(logits))])
    # a cut that falls on the edge between two tokens may fall on either side of it
    edges = [read_chances(logits, Dials(dials.temperature, dials.top_k, p, m)) for p, m in nudge(dials)]
    assert min(np.abs(found - each).max() for each in [wanted, *edges]) <= 2 / N_SPOTS


def nudge(dials: Dials) -> list[tuple[float, float]]:
    return [(dials.top_p + p, max(dials.min_p * m, 0.0)) for p in (-1e-6, 1e-6) for m in (1 - 1e-6, 1 + 1e-6)]


@given(
    rows=st.lists(st.tuples(DIALS, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=6),
    data=st.data(),
)
def test_a_row_is_drawn_alike_in_any_company(rows: list[tuple[Dials, float]], data: st.DataObject):
    logits = [data.draw(st.lists(st.floats(-6, 6, width=32), min_size=7, max_size=7)) for _ in rows]
    dials, spots = [row[0] for row in rows], [row[1] for row in rows]

    together = draw(logits, dials, spots)

    assert together == [draw([each], [dial], [spot])[0] for each, dial, spot in zip(logits, dials, spots, strict=True)]


def test_a_token_without_a_chance_is_never_drawn():
    logits = [[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]

    for spot in (0.0, 0.25, 0.5, 1 - 2**-53):
        for dials in (Dials(), Dials(top_k=4), Dials(top_p=0.99)):
            assert draw(logits, [dials], [spot])[0] in (1, 3)


def test_spots_are_spread_evenly_and_repeat():
    spots = [read_spot(f"{number}/0/{number % 5}") for number in range(4000)]

    counts, _ = np.histogram(spots, bins=20, range=(0, 1))
    assert counts.min() > 140 and counts.max() < 260
    assert len(set(spots)) == 4000
    assert read_spot("7/0/0") == 0.530717920584663


@settings(max_examples=60)
@given(prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=20), n_most=st.integers(1, 30))
def test_groups_hold_every_row_once_and_no_more_tokens_than_allowed(prompts: list[list[int]], n_most: int):
    rows = [build_row(prompt) for prompt in prompts]

    groups = split_rows(rows, n_most)

    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    homes: dict[tuple[int, ...], set[int]] = {}
    for number, group in enumerate(groups):
        distinct = {row.known for row in group}
        assert len(distinct) == 1 or len(distinct) * max(map(len, distinct)) <= n_most
        for row in group:
            homes.setdefault(row.known, set()).add(number)
    assert all(len(places) == 1 for places in homes.values())


def build_row(prompt: list[int], **given: Any) -> Row:
    return Row(**{"prompt": prompt, "dials": Dials(), "n_most": 10, "seed": "0"} | given)


class Narrow(torch.nn.Module):
    """A model on a device that holds so many rows at a time, and so many tokens of each."""

    def __init__(self, model: Any, n_rows: int, n_tokens: int = 10**6) -> None:
        super().__init__()
        self.model, self.n_rows, self.n_tokens = model, n_rows, n_tokens
        self.config, self.device = model.config, model.device
        self.n_short = 0

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, **given: Any) -> Any:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **given)
        if len(input_ids) > self.n_rows or attention_mask.shape[1] > self.n_tokens:
            self.n_short += 1
            raise torch.OutOfMemoryError("out of memory")  # with a cache that has grown already
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context=512, spread=0.2)


def decode(decoder: Decoder, rows: list[Row]) -> list[Row]:
    decoder.waiting.extend(rows)
    done: list[Row] = []
    while decoder.has_work:
        done += decoder.step()
    return done


def build_rows() -> list[Row]:
    return [build_row(list(range(10, 14 + n % 6)), seed=f"{n}/0", n_most=3 + n % 7) for n in range(16)]


def test_a_batch_too_large_for_the_memory_is_halved_and_says_the_same(folder: Path, caplog: pytest.LogCaptureFixture):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    whole, halved = build_rows(), build_rows()
    decode(Decoder(model, tokenizer, ends=[2], n_rows=16), whole)
    narrow = Narrow(model, 3)

    with caplog.at_level(logging.WARNING, "matrix_dspy"):
        decoder = Decoder(narrow, tokenizer, ends=[2], n_rows=16)
        done = decode(decoder, halved)

    assert len(done) == len(set(map(id, done))) == 16
    assert [row.tokens for row in halved] == [row.tokens for row in whole]
    assert decoder.n_rows <= 3 and narrow.n_short >= 1
    assert caplog.messages == [
        "the memory of cpu does not hold 16 rows at once; going on with fewer, batch=8 would do so from the start"
    ]


def test_a_row_too_long_for_the_memory_is_given_up_and_the_others_go_on(folder: Path):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    long, short = build_row(list(range(100, 160))), build_row(list(range(20)))

    done = decode(Decoder(Narrow(model, 8, n_tokens=40), tokenizer, ends=[2], n_rows=8), [long, short])

    assert len(done) == 2
    assert long.fault == "a prompt of 60 tokens and its answer do not fit into the memory of cpu"
    assert (len(short.tokens), short.reason, short.fault) == (10, "length", "")


def test_a_batch_made_smaller_grows_again(folder: Path, caplog: pytest.LogCaptureFixture):
    narrow = Narrow(load_model(folder), 4)
    decoder = Decoder(narrow, load_tokenizer(folder), ends=[2], n_rows=8)
    rows = [build_row(list(range(10, 15 + n)), seed=f"{n}/0", n_most=140) for n in range(12)]

    with caplog.at_level(logging.WARNING, "matrix_dspy"):
        decode(decoder, rows)

    assert [len(row.tokens) for row in rows] == [140] * 12
    assert decoder.n_rows in (3, 4, 5)
    assert narrow.n_short >= 1 and len(caplog.messages) == 1


def test_rows_join_while_others_are_at_work(folder: Path):
    decoder = Decoder(load_model(folder), load_tokenizer(folder), ends=[2], n_rows=4)
    long = build_row([5, 6, 7], n_most=40)
    decoder.waiting.append(long)
    for _ in range(6):
        decoder.step()
    late = build_row([8, 9], n_most=2)
    decoder.waiting.append(late)

    done = [row for _ in range(6) for row in decoder.step()]

    assert done == [late] and not long.is_done


def test_equal_prompts_are_read_once(folder: Path):
    widths: list[int] = []

    class Counting(Narrow):
        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, **given: Any) -> Any:
            widths.append(input_ids.numel())
            return super().forward(input_ids, attention_mask, position_ids, **given)

    rows = [build_row([5, 6, 7, 8, 9], seed=f"0/{number}", n_most=3) for number in range(6)]
    decode(Decoder(Counting(load_model(folder), 99), load_tokenizer(folder), ends=[2], n_rows=6), rows)

    assert widths == [5, 6, 6]
    assert len({tuple(row.tokens) for row in rows}) == 6
