"""2,000 hostile completions of eight signatures: every row is kept or rejected with its reason, none twice."""

import asyncio
import json
import random
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_args

import dspy
import orjson
import polars as pl
import pytest
from pydantic import TypeAdapter

from matrix_dspy import run_program
from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Outcome, Runner
from matrix_dspy.config import SamplingConfig
from matrix_dspy.engine.base import Completion, Engine, Request
from matrix_dspy.text import clean_text
from matrix_dspy.types import Structured
from tests.fuzz.mutations import (
    LEVELS,
    NUMBERS,
    SIGNATURES,
    Maybe,
    Numbers,
    Plan,
    Raw,
    Table,
    make_completions,
    nest,
    write_json,
    write_markers,
)

N_EACH = 250
REASONS = ("unparsed", "cut off", "empty")
SLOW_S = 1.0
"""CPU seconds that reading one answer may take at most; a good one takes a thousandth."""
_CASE = re.compile(r"case-(\d{5})")

GOOD: dict[str, Any] = {
    "answer": "a", "title": "b", "body": "c", "score": 3, "count": 4, "share": 0.5, "reason": "d", "is_good": True,
    "verdict": "not sure", "level": 2, "items": ["e"], "steps": [], "sizes": [], "note": None, "amount": 6, "word": "f",
    "measures": {"g": 0.5}, "lists": {"h": [1]}, "anything": {"i": None},
}  # fmt: skip
"""A right value for every field."""

Answer = tuple[str, str]
"""The same answer in markers and in JSON."""


class Hostile(Engine):
    """Answers each case with its own texts: the first time, when asked again, and so on; then with the last."""

    supports_n = True

    def __init__(self, answers: Mapping[int, Sequence[Answer]]) -> None:
        super().__init__(concurrency=32, patience_s=1.0)
        self.model = "hostile"
        self.answers = answers
        self.given: list[tuple[str, ...]] = []
        self._waits = random.Random(0)

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        found = _CASE.search(str(request.messages[1]["content"]))
        assert found is not None
        case = int(found[1])
        n_again = sum(message["role"] == "assistant" for message in request.messages)
        form = 0 if request.sampling.response_schema is None else 1
        rng = random.Random(f"{case} {n_again} {request.sampling.n} {request.sampling.seed}")
        texts = self.answers[case]
        n = request.sampling.n
        first = min(n_again, len(texts) - 1)
        drawn = [texts[first]] if n == 1 else rng.choices(texts, k=rng.randint(1, n + 2))
        reasons = tuple(rng.choices(("stop", "length"), (30, 1), k=len(drawn)))
        await asyncio.sleep(self._waits.random() ** 4 * 0.01)
        self.given.append(tuple(text[form] for text in drawn))
        return Completion(self.given[-1], reasons, 10, 5)


class Silent(Engine):
    """Must not be asked anything."""

    supports_n = True

    def __init__(self) -> None:
        super().__init__(concurrency=32)
        self.model = "hostile"

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        raise AssertionError("a replayed run asks nothing")


def make_answers(signature: type[dspy.Signature], n: int, seed: int, replies: Sequence[str] = ()) -> list[Answer]:
    return list(make_completions(signature, n, seed, replies))


def arrange(first: Sequence[Answer], again: Sequence[Answer]) -> dict[int, list[Answer]]:
    """Give each case the answer it gets first and the one it gets when asked again."""
    return {case: [first[case], again[case % len(again)]] for case in range(len(first))}


def make_frame(n: int) -> pl.DataFrame:
    return pl.DataFrame({"position": range(n), "case": [f"case-{case:05d}" for case in range(n)]})


def read_journal(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def drop_halves(text: str) -> str:
    """Take out halves of surrogate pairs, which no file can hold, and whatever may be put in their place."""
    return re.sub("[\ud800-\udfff\ufffd\U00010000-\U0010ffff]", "", text)


def list_texts(value: Any) -> Iterator[str]:
    """Give every string in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from list_texts(key)
            yield from list_texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from list_texts(item)


def make_type(field: Any) -> TypeAdapter[Any]:
    annotated: Any = Annotated
    return TypeAdapter(annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def assert_fields_are_right(signature: type[dspy.Signature], fields: Mapping[str, Any]) -> None:
    """Assert that plain values have their types, keep their bounds and are clean."""
    assert list(fields) == list(signature.output_fields)
    for name, field in signature.output_fields.items():
        assert fields[name] is not None or type(None) in get_args(field.annotation), f"{name} is null in a kept row"
        make_type(field).validate_python(fields[name], strict=True)
        for text in list_texts(fields[name]):
            assert clean_text(text) == text, f"{name} holds {text[:80]!r}"


def assert_rows_are_right(
    signature: type[dspy.Signature], result: pl.DataFrame, rejected: pl.DataFrame, name_row: str = "row-{:09d}"
) -> None:
    """Assert that every row is kept as it should be or rejected with a reason, once."""
    failed: dict[str, str] = {}
    for place, row in enumerate(result.iter_rows(named=True)):
        assert row["position"] == place
        fields = {name: row[name] for name in signature.output_fields}
        if row["error"] is None:
            for name, field in signature.output_fields.items():
                if result.schema[name] == pl.String and not _is_text(field.annotation):
                    fields[name] = json.loads(fields[name], parse_constant=refuse_constant)
            assert_fields_are_right(signature, fields)
        else:
            assert set(fields.values()) == {None}
            assert row["error"].startswith(tuple(f"{reason}: " for reason in REASONS)), row["error"]
            failed[name_row.format(place)] = row["error"]
    assert rejected["id"].to_list() == list(failed)
    told = [f"{row['reason']}: {row['detail']}" for row in rejected.iter_rows(named=True)]
    assert told == list(failed.values())


def _is_text(annotation: Any) -> bool:
    kinds = get_args(annotation) or (annotation,)
    return all(kind in (str, type(None)) or isinstance(kind, str) for kind in kinds)


def run_twice_and_check(
    signature: type[dspy.Signature], engine: Hostile, structured: Structured, out: Path, n: int
) -> pl.DataFrame:
    program = dspy.Predict(signature)

    result = run_program(program, make_frame(n), lm=engine, out=out, structured=structured)

    assert len(result) == n
    assert result.equals(pl.read_parquet(out / "output.parquet"))
    assert_rows_are_right(signature, result, pl.read_parquet(out / "rejected.parquet"))
    entries = read_journal(out / "journal")
    assert len({entry["key"] for entry in entries}) == len(entries) == len(engine.given) == engine.usage.attempts
    written = read_files(out)

    again = run_program(program, make_frame(n), lm=Silent(), out=out, structured=structured)

    assert again.equals(result)
    assert read_files(out) == written
    assert len(read_journal(out / "journal")) == len(entries)
    return result


@pytest.mark.parametrize("structured", ["off", "on"])
@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.__name__.lower())
def test_every_hostile_completion_is_kept_or_rejected_with_its_reason(
    signature: type[dspy.Signature], structured: Structured, tmp_path: Path
):
    assert N_EACH * len(SIGNATURES) >= 2000
    hostile = make_answers(signature, N_EACH, seed=1)
    engine = Hostile(arrange(hostile, hostile[::-1]))

    result = run_twice_and_check(signature, engine, structured, tmp_path, N_EACH)

    n_kept = result["error"].null_count()
    assert n_kept > N_EACH // 10, "too few are kept to say anything"
    # any text will do where text is all that is asked for in words
    assert n_kept < N_EACH or (len(signature.output_fields) == 1 and structured == "off")


@pytest.mark.parametrize("structured", ["off", "on"])
@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.__name__.lower())
def test_a_good_second_answer_saves_every_row_whose_first_was_hostile(
    signature: type[dspy.Signature], structured: Structured, tmp_path: Path
):
    hostile = make_answers(signature, 40, seed=2)
    fields = {name: GOOD[name] for name in signature.output_fields}
    engine = Hostile(arrange(hostile, [(write_markers(fields), write_json(fields))]))

    result = run_twice_and_check(signature, engine, structured, tmp_path, len(hostile))

    assert {reason for reason in result["error"].drop_nulls().to_list() if not reason.startswith("cut off")} == set()


@pytest.mark.parametrize("structured", ["off", "on"])
@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.__name__.lower())
def test_of_several_hostile_answers_each_is_an_outcome_of_its_own(
    signature: type[dspy.Signature], structured: Structured, tmp_path: Path
):
    n_rows, n = 15, 4
    hostile = make_answers(signature, 5 * n_rows, seed=3)
    engine = Hostile({case: hostile[5 * case : 5 * case + 5] for case in range(n_rows)})
    prompt = Prompt.of(dspy.Predict(signature))

    def sample_all(lm: Engine) -> list[list[Outcome]]:
        journal = Journal(tmp_path / "journal")
        runner = Runner(lm, journal, structured=structured == "on")

        async def work() -> list[list[Outcome]]:
            async with lm:
                rows = [
                    runner.sample(
                        prompt, {"case": f"case-{case:05d}"}, CallKey("fuzz", f"{case}", "ask"), SamplingConfig(), n
                    )
                    for case in range(n_rows)
                ]
                return list(await asyncio.gather(*rows))

        try:
            return asyncio.run(work())
        finally:
            journal.close()

    made = sample_all(engine)

    assert [len(outcomes) for outcomes in made] == [n] * n_rows
    for outcome in (outcome for outcomes in made for outcome in outcomes):
        if outcome.fields is None:
            assert outcome.reason in REASONS and outcome.detail
        else:
            plain = {
                name: make_type(signature.output_fields[name]).dump_python(value)
                for name, value in outcome.fields.items()
            }
            assert_fields_are_right(signature, plain)
    entries = read_journal(tmp_path / "journal")
    assert len({entry["key"] for entry in entries}) == len(entries) == len(engine.given)
    told = sorted(tuple(map(drop_halves, entry["texts"])) for entry in entries)
    assert told == sorted(tuple(map(drop_halves, texts)) for texts in engine.given)
    assert repr(sample_all(Silent())) == repr(made)


@pytest.mark.parametrize("structured", ["off", "on"])
def test_several_hostile_answers_a_row_stand_in_the_table_once_each(structured: Structured, tmp_path: Path):
    signature, n_rows, n = SIGNATURES[3], 40, 3
    hostile = make_answers(signature, 5 * n_rows, seed=4)
    engine = Hostile({case: hostile[5 * case : 5 * case + 5] for case in range(n_rows)})

    result = run_program(
        dspy.Predict(signature), make_frame(n_rows), lm=engine, out=tmp_path, n=n, structured=structured, expect="level"
    )

    assert [(row["case"], row["sample"]) for row in result.iter_rows(named=True)] == [
        (f"case-{case:05d}", sample) for case in range(n_rows) for sample in range(n)
    ]
    failed = result.filter(pl.col("error").is_not_null())
    rejected = pl.read_parquet(tmp_path / "rejected.parquet")
    assert rejected["id"].to_list() == [f"row-{row['position']:09d}.{row['sample']}" for row in failed.to_dicts()]
    kept = result.filter(pl.col("error").is_null())
    assert 0 < len(kept) < len(result)
    for row in kept.iter_rows(named=True):
        assert_fields_are_right(signature, {name: row[name] for name in signature.output_fields})


@pytest.mark.parametrize("structured", ["off", "on"])
def test_a_value_of_any_depth_is_kept_or_rejected(structured: Structured, tmp_path: Path):
    right = {"measures": {"a": 0.5}, "lists": {"b": [1]}, "anything": {}}
    values = [Raw(value) for levels in LEVELS for value in nest(levels)]
    nested = [{**right, name: value} for name in ("lists", "anything") for value in values]
    answers = [(write_markers(fields), write_json(fields)) for fields in nested]
    answers += [(second, second) for _, second in answers] + [(value.text, value.text) for value in values]
    engine = Hostile({case: [answer] for case, answer in enumerate(answers)})

    run_twice_and_check(Table, engine, structured, tmp_path, len(answers))


@pytest.mark.parametrize("structured", ["off", "on"])
def test_a_number_of_any_size_and_form_is_kept_as_it_is_or_rejected(structured: Structured, tmp_path: Path):
    places: dict[type[dspy.Signature], dict[str, str]] = {
        Numbers: {"score": "%s", "count": "%s", "share": "%s"},
        Maybe: {"amount": "%s"},
        Plan: {"sizes": "[1, %s]", "steps": '[{"title": "a", "minutes": %s, "tags": []}]'},
        Table: {"measures": '{"a": %s}', "lists": '{"a": [%s]}', "anything": '{"a": [%s]}'},
    }

    for signature, forms in places.items():
        right = {name: GOOD[name] for name in signature.output_fields}
        values = [(name, Raw(form % number)) for name, form in forms.items() for number in NUMBERS]
        fields = [{**right, name: value} for name, value in values]
        engine = Hostile(arrange(written := [(write_markers(made), write_json(made)) for made in fields], written))
        out = tmp_path / signature.__name__
        kept = run_twice_and_check(signature, engine, structured, out, len(fields)).filter(pl.col("error").is_null())
        lost = [values[row["position"]] for row in kept.to_dicts() if row[values[row["position"]][0]] is None]
        assert lost == []


@pytest.mark.parametrize("structured", ["off", "on"])
def test_real_replies_in_the_place_of_values_are_kept_or_rejected_too(
    structured: Structured, shared_data: Path, tmp_path: Path
):
    lines = [line for path in sorted((shared_data / "outputs").glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    replies = [json.loads(line)["response"] for line in lines]
    assert len(replies) > 1000

    for signature in SIGNATURES:
        hostile = make_answers(signature, 25, 5, replies)
        bare = [(reply, reply) for reply in random.Random(signature.__name__).sample(replies, 25)]
        engine = Hostile(arrange([*hostile, *bare], hostile))
        run_twice_and_check(signature, engine, structured, tmp_path / signature.__name__, 50)


def test_cleaning_a_hostile_completion_again_changes_nothing():
    for signature in SIGNATURES:
        for pair in make_completions(signature, N_EACH, seed=1):
            for text in pair:
                cleaned = clean_text(text[:50_000])
                assert clean_text(cleaned) == cleaned
                cleaned.encode()


RUNAWAYS = {
    "braces": "{",
    "brackets": "[",
    "keys": '{"a":',
    "closed braces": "{}",
    "opening and comma": "{,",
    "words in braces": "{ word ",
    "keys without values": '"answer": ',
    "quotes": '"',
    "quoted words": "'a' ",
    "backslashes": "\\",
    "parentheses": "(",
    "commas": ",",
    "minus signs": "-",
    "sums": "1+",
    "digits": "9",
    "blanks": " ",
    "tabs": "\t",
    "empty lines": "\n",
    "blank lines": " \n",
    "headers": "[[ ## answer ## ]]\n",
    "half headers": "[[ ## ",
    "stars": "**",
    "hashes": "# ",
    "colons": "a: ",
    "fences": "```",
    "comments": "/*",
    "letters": "a",
    "token marks": "<|",
    "type marks": "<<CUSTOM-TYPE-",
    "half surrogates": "\\ud83d",
    "zero-width": "\u200b",
}
"""What a model that cannot stop may write for ever."""


class TooSlowError(BaseException):
    """No `Exception`, so that nothing takes it for a bad answer."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so much of this process's own time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def list_slow(run: str) -> Iterator[str]:
    """Give the places in which a text is too slow to read."""
    for signature in (SIGNATURES[0], SIGNATURES[2], SIGNATURES[4], SIGNATURES[7]):
        name = list(signature.output_fields)[-1]
        prompt = Prompt.of(dspy.Predict(signature))
        texts = (run, f"x{run}x", f"[[ ## {name} ## ]]\n{run}.", f'{{"{name}": {run}', f'{{"{name}": "{run}')
        for form in (prompt, prompt.structured()):
            for text in texts:
                try:
                    with cpu_limit(SLOW_S):
                        form.parse(text)
                except TooSlowError:
                    yield f"{signature.__name__} in {'markers' if form is prompt else 'JSON'}: {text[:40]}..."


@pytest.mark.parametrize("unit", RUNAWAYS.values(), ids=RUNAWAYS)
def test_an_answer_that_repeats_itself_for_ever_does_not_hold_the_others_up(unit: str):
    assert next(list_slow((unit * (16_000 // len(unit) + 1))[:16_000]), None) is None


NESTED = {
    "token marks": "<|" * 20_000 + "a" + "|>" * 20_000,
    "headers": "[[##" * 20_000 + "a" + "##]]" * 20_000,
    "type marks": "<<CUSTOM-TYPE-" * 5000 + "<<CUSTOM-TYPE-END-IDENTIFIER>>" + "END-IDENTIFIER>>" * 5000,
    "blanks": " \x00" * 50_000,
}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_marks_inside_marks_are_taken_out_in_no_time(text: str):
    with cpu_limit(SLOW_S):
        clean_text(text)
