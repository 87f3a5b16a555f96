import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import polars as pl
import pytest
from pydantic import BaseModel

from matrix_dspy import load_program, run_program
from matrix_dspy.engine.base import Completion, DownError, Engine, RefusedError, Request
from matrix_dspy.errors import ConfigError, EngineError, RunError, TableError

_FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n\n\[\[ ##|\n\nRespond with)", re.DOTALL)


class Toy(Engine):
    """Answers with what `rule` makes of the input fields (or of the bare user turn); counts what it was asked."""

    def __init__(self, rule: Callable[[dict[str, str]], dict[str, Any] | str | Exception], **limits: Any) -> None:
        super().__init__(**{"concurrency": 8, "patience_s": 0.01} | limits)
        self.model = "toy"
        self.rule = rule
        self.asked: list[Request] = []
        self.n_opened = 0

    async def open(self) -> None:
        self.n_opened += 1

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.asked.append(request)
        last = request.messages[-1]["content"]
        found = dict(_FIELD.findall(last))
        answer = self.rule(found or {"bare": last})
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, dict):
            answer = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in answer.items())
        return Completion((answer,), ("stop",), 10, 5)


def shout(fields: dict[str, str]) -> dict[str, Any]:
    return {"loud": fields["word"].upper(), "length": len(fields["word"])}


def make_shouter() -> dspy.Predict:
    return dspy.Predict("word -> loud, length: int")


WORDS = pl.DataFrame({"id": [1, 2, 3], "word": ["one", "three", "five"]})


class Two(dspy.Module):
    """Two calls a row: shout, then shorten what was shouted."""

    signature = "word -> short"

    def __init__(self) -> None:
        super().__init__()
        self.shout = dspy.Predict("word -> loud")
        self.shorten = dspy.Predict("loud -> short")

    def forward(self, word: str) -> dspy.Prediction:
        return self.shorten(loud=self.shout(word=word).loud)

    async def aforward(self, word: str) -> dspy.Prediction:
        first = await self.shout.acall(word=word)
        return await self.shorten.acall(loud=first.loud)


def answer_two(fields: dict[str, str]) -> dict[str, Any]:
    return {"loud": fields["word"].upper()} if "word" in fields else {"short": fields["loud"][:2]}


def test_every_row_gets_its_outputs_in_order():
    result = run_program(make_shouter(), WORDS, lm=Toy(shout))

    assert result.columns == ["id", "word", "loud", "length", "model", "error"]
    assert result["loud"].to_list() == ["ONE", "THREE", "FIVE"]
    assert result["length"].to_list() == [3, 5, 4]
    assert result["id"].to_list() == [1, 2, 3]
    assert result["model"].unique().to_list() == ["toy"]
    assert result["error"].null_count() == 3


def test_a_shipped_program_runs_over_a_frame():
    frame = pl.DataFrame({"instruction": ["Say hi.", "Say no."]})

    result = run_program(load_program("responder"), frame, lm=Toy(lambda fields: f"You said: {fields['bare']}"))

    assert result["response"].to_list() == ["You said: Say hi.", "You said: Say no."]


def test_sampling_reaches_the_engine():
    engine = Toy(shout)

    run_program(make_shouter(), WORDS, lm=engine, temperature=0.1, top_p=0.5, max_tokens=9)

    drawn = {(r.sampling.temperature, r.sampling.top_p, r.sampling.max_tokens) for r in engine.asked}
    assert drawn == {(0.1, 0.5, 9)}
    assert len({r.sampling.seed for r in engine.asked}) == 3


def test_a_frame_without_rows_keeps_its_new_columns():
    result = run_program(make_shouter(), WORDS.clear(), lm=Toy(shout))

    assert result.schema["length"] == pl.Int64
    assert (len(result), result.columns[-2:]) == (0, ["model", "error"])


def test_a_missing_column_is_named_before_anything_is_sent():
    engine = Toy(shout)

    with pytest.raises(TableError, match="the frame has no column 'word'; did you mean 'words'"):
        run_program(make_shouter(), WORDS.rename({"word": "words"}), lm=engine)

    assert engine.n_opened == 0


@pytest.mark.parametrize("column", ["loud", "length", "model", "error"])
def test_a_column_in_the_way_is_named_before_anything_is_sent(column: str):
    engine = Toy(shout)

    with pytest.raises(TableError, match=f"the frame has a column '{column}' already"):
        run_program(make_shouter(), WORDS.with_columns(pl.lit("x").alias(column)), lm=engine)

    assert engine.n_opened == 0


def test_a_bad_row_has_nulls_and_says_why_and_disturbs_no_other(tmp_path: Path):
    def rule(fields: dict[str, str]) -> Any:
        return {"loud": "x", "length": "plenty"} if fields.get("word") == "three" else shout({"word": "one"})

    engine = Toy(lambda fields: rule(fields) if "word" in fields else "still not in form")

    result = run_program(make_shouter(), WORDS, lm=engine, out=tmp_path)

    assert result["loud"].to_list() == ["ONE", None, "ONE"]
    assert result["length"].to_list() == [3, None, 3]
    assert [error is None for error in result["error"]] == [True, False, True]
    assert result["error"][1].startswith("unparsed: ")
    rejected = pl.read_parquet(tmp_path / "rejected.parquet")
    assert rejected["id"].to_list() == ["row-000000001"]
    assert rejected["raw_text"].to_list() == ["still not in form"]


def test_a_refused_row_is_a_bad_row():
    engine = Toy(lambda fields: RefusedError("too long") if fields["word"] == "five" else shout(fields))

    result = run_program(make_shouter(), WORDS, lm=engine)

    assert result["error"].to_list() == [None, None, "refused by server: too long"]


def test_a_second_call_pays_only_for_what_is_missing(tmp_path: Path):
    first, second = Toy(shout), Toy(shout)
    run_program(make_shouter(), WORDS.head(2), lm=first, out=tmp_path)

    result = run_program(make_shouter(), WORDS, lm=second, out=tmp_path)

    assert (len(first.asked), len(second.asked)) == (2, 1)
    assert result["loud"].to_list() == ["ONE", "THREE", "FIVE"]


def test_a_rerun_writes_the_same_bytes(tmp_path: Path):
    run_program(make_shouter(), WORDS, lm=Toy(shout), out=tmp_path)
    before = (tmp_path / "output.parquet").read_bytes()

    result = run_program(make_shouter(), WORDS, lm=Toy(shout, concurrency=1), out=tmp_path)

    assert (tmp_path / "output.parquet").read_bytes() == before
    assert pl.read_parquet(tmp_path / "output.parquet").equals(result)


def test_what_was_paid_before_the_engine_went_down_is_kept(tmp_path: Path):
    dying = Toy(lambda fields: DownError("the server is gone") if fields["word"] == "five" else shout(fields))
    with pytest.raises(EngineError, match="the server is gone"):
        run_program(make_shouter(), WORDS, lm=dying, out=tmp_path)

    engine = Toy(shout)
    result = run_program(make_shouter(), WORDS, lm=engine, out=tmp_path)

    assert len(engine.asked) < 3
    assert result["loud"].to_list() == ["ONE", "THREE", "FIVE"]


def test_it_works_inside_a_running_event_loop():
    async def in_a_notebook() -> pl.DataFrame:
        return run_program(make_shouter(), WORDS, lm=Toy(shout))

    assert asyncio.run(in_a_notebook())["loud"].to_list() == ["ONE", "THREE", "FIVE"]


def test_errors_come_through_a_running_event_loop_too():
    async def in_a_notebook() -> pl.DataFrame:
        return run_program(make_shouter(), WORDS, lm=Toy(lambda fields: DownError("no key")))

    with pytest.raises(EngineError, match="no key"):
        asyncio.run(in_a_notebook())


def test_a_module_of_several_calls_runs_through_its_acall():
    engine = Toy(answer_two)

    result = run_program(Two(), WORDS, lm=engine, temperature=0.25, max_tokens=33)

    assert result["short"].to_list() == ["ON", "TH", "FI"]
    assert len(engine.asked) == 6
    assert {(r.sampling.temperature, r.sampling.max_tokens) for r in engine.asked} == {(0.25, 33)}


def test_a_modules_calls_are_journaled_and_replayed(tmp_path: Path):
    first, second = Toy(answer_two), Toy(answer_two)
    one = run_program(Two(), WORDS.head(2), lm=first, out=tmp_path)

    two = run_program(Two(), WORDS, lm=second, out=tmp_path)

    assert (len(first.asked), len(second.asked)) == (4, 2)
    assert two["short"].to_list()[:2] == one["short"].to_list()


def test_a_question_asked_twice_in_a_row_keeps_both_its_answers(tmp_path: Path):
    class Twice(dspy.Module):
        signature = "word -> first, second"

        def __init__(self) -> None:
            super().__init__()
            self.ask, self.unused = dspy.Predict("word -> loud"), dspy.Predict("word -> loud")

        async def aforward(self, word: str) -> dspy.Prediction:
            answers = [(await self.ask.acall(word=word)).loud for _ in range(2)]
            return dspy.Prediction(first=answers[0], second=answers[1])

    count = iter("abcdef")
    first = run_program(Twice(), WORDS.head(1), lm=Toy(lambda fields: {"loud": next(count)}), out=tmp_path)

    again = run_program(Twice(), WORDS.head(1), lm=Toy(lambda fields: {"loud": "never asked"}), out=tmp_path)

    assert (first["first"][0], first["second"][0]) == ("a", "b")
    assert again.equals(first)


def test_a_modules_bad_row_is_a_bad_row(tmp_path: Path):
    def rule(fields: dict[str, str]) -> Any:
        return RefusedError("too long") if fields.get("word") == "three" else answer_two(fields)

    result = run_program(Two(), WORDS, lm=Toy(rule), out=tmp_path)

    assert result["short"].to_list() == ["ON", None, "FI"]
    assert "too long" in result["error"][1]
    assert pl.read_parquet(tmp_path / "rejected.parquet")["id"].to_list() == ["row-000000001"]


def test_an_engine_down_stops_a_module_too():
    engine = Toy(lambda fields: DownError("the server is gone"))

    with pytest.raises(EngineError, match="the server is gone"):
        run_program(Two(), WORDS, lm=engine)


def test_sampling_reaches_a_modules_calls_whole():
    engine = Toy(answer_two)

    run_program(Two(), WORDS, lm=engine, top_p=0.5)

    assert {request.sampling.top_p for request in engine.asked} == {0.5}


def test_a_module_that_does_not_say_its_fields_is_asked_to():
    class Silent(Two):
        signature = None  # pyright: ignore[reportAssignmentType]

    with pytest.raises(ConfigError, match="Silent has 2 predictors; give the class an attribute `signature`"):
        run_program(Silent(), WORDS, lm=Toy(answer_two))


class Ingredient(BaseModel):
    name: str
    grams: int


class Cook(dspy.Signature):
    """Cook."""

    dish: str = dspy.InputField()
    steps: list[str] = dspy.OutputField()
    counts: list[int] = dspy.OutputField()
    level: Literal["easy", "hard"] = dspy.OutputField()
    stars: Literal[1, 2, 3] = dspy.OutputField()
    main: Ingredient = dspy.OutputField()
    others: list[Ingredient] = dspy.OutputField()
    is_hot: bool = dspy.OutputField()
    note: str | None = dspy.OutputField()
    more: dict[str, Any] = dspy.OutputField()


RECIPE = {
    "steps": '["cut", "fry \u00e9"]',
    "counts": "[1, 2]",
    "level": "hard",
    "stars": "3",
    "main": '{"name": "leek", "grams": 200}',
    "others": '[{"name": "salt", "grams": 5}]',
    "is_hot": "True",
    "note": "null",
    "more": '{"a": [1, {"b": "\u00e9"}]}',
}


def test_typed_outputs_become_typed_columns(tmp_path: Path):
    frame = pl.DataFrame({"dish": ["soup", "stew"]})
    engine = Toy(lambda fields: RECIPE if fields.get("dish") == "soup" else "no")

    result = run_program(dspy.Predict(Cook), frame, lm=engine, out=tmp_path)

    ingredient = pl.Struct({"name": pl.String, "grams": pl.Int64})
    assert result.schema == pl.Schema(
        {
            "dish": pl.String,
            "steps": pl.List(pl.String),
            "counts": pl.List(pl.Int64),
            "level": pl.String,
            "stars": pl.Int64,
            "main": ingredient,
            "others": pl.List(ingredient),
            "is_hot": pl.Boolean,
            "note": pl.String,
            "more": pl.String,
            "model": pl.String,
            "error": pl.String,
        }
    )
    row = result.row(0, named=True)
    assert row["steps"] == ["cut", "fry \u00e9"]
    assert (row["counts"], row["level"], row["stars"], row["is_hot"]) == ([1, 2], "hard", 3, True)
    assert row["main"] == {"name": "leek", "grams": 200}
    assert row["others"] == [{"name": "salt", "grams": 5}]
    assert row["more"] == '{"a": [1, {"b": "\u00e9"}]}'
    assert all(value is None for value in list(result.row(1))[1:-2])
    assert pl.read_parquet(tmp_path / "output.parquet").equals(result)


def test_strings_inside_nested_outputs_are_cleaned():
    dirty = RECIPE | {"main": '{"name": "<|im_start|>le\\u0000ek", "grams": 200}', "steps": '["cu\\u202et"]'}

    result = run_program(dspy.Predict(Cook), pl.DataFrame({"dish": ["soup"]}), lm=Toy(lambda fields: dirty))

    assert result["main"][0]["name"] == "im_startleek"
    assert result["steps"][0].to_list() == ["cut"]


def test_typed_inputs_are_rendered_as_dspy_does():
    class Sum(dspy.Signature):
        """Add."""

        numbers: list[int] = dspy.InputField()
        place: dict[str, Any] = dspy.InputField()
        total: int = dspy.OutputField()

    frame = pl.DataFrame({"numbers": [[1, 2], []], "place": [{"x": "\u00e9", "y": None}, {"x": "a", "y": 2}]})
    engine = Toy(lambda fields: {"total": 3})

    run_program(dspy.Predict(Sum), frame, lm=engine)

    predictor = dspy.Predict(Sum)
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    signature: Any = predictor.signature
    expected = [adapter.format(signature, [], row) for row in frame.iter_rows(named=True)]
    assert [list(request.messages) for request in engine.asked] == expected


def test_marks_of_custom_types_in_inputs_are_taken_out():
    mark = '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'
    engine = Toy(lambda fields: {"loud": "x", "length": 1})

    run_program(make_shouter(), pl.DataFrame({"word": [f"a {mark} b"]}), lm=engine)

    content = engine.asked[0].messages[-1]["content"]
    assert isinstance(content, str)
    assert 'a [{"type": "image_url"}] b' in content


def test_marks_inside_lists_and_modules_are_taken_out_too():
    mark = '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'

    class Join(dspy.Signature):
        """Join."""

        parts: list[str] = dspy.InputField()
        whole: str = dspy.OutputField()

    engine = Toy(lambda fields: {"whole": "x"})
    run_program(dspy.Predict(Join), pl.DataFrame({"parts": [["a", mark]]}), lm=engine)
    second = Toy(answer_two)
    run_program(Two(), pl.DataFrame({"word": [mark]}), lm=second)

    for request in (*engine.asked, *second.asked):
        assert all(isinstance(message["content"], str) for message in request.messages)
        assert "CUSTOM-TYPE" not in str(request.messages)


def test_another_process_at_work_on_the_folder_is_refused(tmp_path: Path):
    def run_inside(fields: dict[str, str]) -> dict[str, Any]:
        run_program(make_shouter(), WORDS, lm=Toy(shout), out=tmp_path)
        return shout(fields)

    with pytest.raises(RunError, match="another process is working on"):
        run_program(make_shouter(), WORDS.head(1), lm=Toy(run_inside), out=tmp_path)


def test_a_file_in_place_of_the_folder_is_a_clear_error(tmp_path: Path):
    (tmp_path / "out").write_text("a file")

    with pytest.raises(RunError, match="could not make the folder"):
        run_program(make_shouter(), WORDS, lm=Toy(shout), out=tmp_path / "out")


def test_a_wrong_lm_is_refused():
    with pytest.raises(ConfigError, match="unknown LM 'gpt'"):
        run_program(make_shouter(), WORDS, lm="gpt")


def test_never_more_calls_are_in_flight_than_wanted():
    class Watching(Toy):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            await asyncio.sleep(0.001)
            return await super().attempt(request, n_asked)

    engine = Watching(shout, concurrency=3)
    run_program(make_shouter(), pl.DataFrame({"word": [str(n) for n in range(40)]}), lm=engine)

    assert engine.limit.peak == 3


def test_a_null_input_is_a_bad_row_and_costs_no_call():
    engine = Toy(shout)

    result = run_program(make_shouter(), pl.DataFrame({"word": ["books", None]}), lm=engine)

    assert result["error"].to_list() == [None, "bad input: column 'word' is null"]
    assert len(engine.asked) == 1


class Prefixed(dspy.Module):
    """One predictor behind a method that changes its input; only `forward`, as most modules are written."""

    def __init__(self) -> None:
        super().__init__()
        self.shout = dspy.Predict("word -> loud, length: int")

    def forward(self, text: str) -> dspy.Prediction:
        return self.shout(word=f"post {text}")


def test_a_module_with_a_method_of_its_own_runs_through_it():
    result = run_program(Prefixed(), WORDS.select(text="word"), lm=Toy(shout))

    assert result["loud"].to_list() == ["POST ONE", "POST THREE", "POST FIVE"]


def test_arguments_of_the_wrong_kind_get_one_clear_sentence():
    shouter = make_shouter()
    wrong: list[Any] = [
        ("dspy.Predict", ("word -> loud", WORDS), {}),
        ("collect", (shouter, WORDS.lazy()), {}),
        ("--lm", (shouter, WORDS), {"lm": 3}),
        ("temperature", (shouter, WORDS), {"temperature": 9}),
        ("concurrency", (shouter, WORDS), {"concurrency": 0}),
    ]

    for words, arguments, options in wrong:
        with pytest.raises((ConfigError, TableError), match=words):
            run_program(*arguments, **options)


class Schemed(Toy):
    """Answers as JSON where it is sent a schema."""

    supports_response_schema = True
    supports_n = True

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.asked.append(request)
        text = '{"loud": "X", "length": 1}'
        if request.sampling.response_schema is None:
            text = "[[ ## loud ## ]]\nX\n[[ ## length ## ]]\n1"
        return Completion((text,) * request.sampling.n, ("stop",) * request.sampling.n, 10, 5)


@pytest.mark.parametrize(("structured", "is_sent"), [("auto", True), ("on", True), ("off", False)])
def test_schemas_are_sent_where_the_server_holds_them_or_when_told(structured: Any, is_sent: bool):
    engine = Schemed(shout)

    result = run_program(make_shouter(), WORDS, lm=engine, structured=structured)

    assert result["loud"].to_list() == ["X"] * 3
    assert {request.sampling.response_schema is not None for request in engine.asked} == {is_sent}


def test_schemas_are_not_sent_by_default_where_nothing_is_known_of_the_server():
    engine = Toy(shout)

    run_program(make_shouter(), WORDS, lm=engine)

    assert [request.sampling.response_schema for request in engine.asked] == [None] * 3


def test_several_answers_to_a_row_come_from_one_request_and_are_replayed(tmp_path: Path):
    first, second = Schemed(shout), Schemed(shout)

    results = [run_program(make_shouter(), WORDS, lm=engine, out=tmp_path, n=3) for engine in (first, second)]

    assert results[0].equals(results[1])
    assert results[0]["sample"].to_list() == [0, 1, 2] * 3
    assert results[0]["word"].to_list() == ["one"] * 3 + ["three"] * 3 + ["five"] * 3
    assert ([request.sampling.n for request in first.asked], second.asked) == ([3, 3, 3], [])


def test_a_null_input_makes_as_many_bad_rows_as_were_wanted(tmp_path: Path):
    frame = pl.DataFrame({"word": [None, "one"]}, schema={"word": pl.String})

    result = run_program(make_shouter(), frame, lm=Schemed(shout), out=tmp_path, n=2)

    assert [error is None for error in result["error"]] == [False, False, True, True]
    rejected = pl.read_parquet(tmp_path / "rejected.parquet")
    assert rejected["id"].to_list() == ["row-000000000.0", "row-000000000.1"]


def test_options_of_vllm_reach_templates_and_modules():
    options: dict[str, Any] = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "priority": 2}
    options["chat_template_kwargs"] = {"enable_thinking": False}
    one, two = Toy(shout), Toy(answer_two)

    run_program(make_shouter(), WORDS, lm=one, **options)
    run_program(Two(), WORDS, lm=two, **options)

    for request in (*one.asked, *two.asked):
        assert {name: getattr(request.sampling, name) for name in options} == options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"n": "3"}, "n must be a whole number, not '3'"),
        ({"structured": "maybe"}, "structured = 'maybe' does not do; write auto, on or off"),
        ({"topk": 3}, "topk = 3 does not do: sampling has temperature, top_p, max_tokens, top_k"),
        ({"min_p": 2}, "min_p = 2 does not do"),
        ({"expect": "loud"}, "cannot expect 'loud': the field 'loud' has no levels"),
        ({"expect": "weight"}, "cannot expect 'weight': no output field 'weight'; there are loud, length"),
    ],
)
def test_an_option_that_will_not_do_is_said_before_anything_is_sent(arguments: dict[str, Any], words: str):
    engine = Toy(shout)

    with pytest.raises(ConfigError, match=words):
        run_program(make_shouter(), WORDS, lm=engine, **arguments)

    assert engine.n_opened == 0


@pytest.mark.parametrize("arguments", [{"n": 2}, {"expect": "short"}])
def test_a_module_of_several_calls_has_neither_samples_nor_expectations(arguments: dict[str, Any]):
    with pytest.raises(ConfigError, match="n and expect need a program of one call; Two has a method of its own"):
        run_program(Two(), WORDS, lm=Toy(answer_two), **arguments)


@pytest.mark.parametrize(("column", "arguments"), [("sample", {"n": 2}), ("length_expected", {"expect": "length"})])
def test_a_column_in_the_way_of_an_extra_one_is_named(column: str, arguments: dict[str, Any]):
    class Measure(dspy.Signature):
        """Measure."""

        word: str = dspy.InputField()
        length: Literal[1, 2] = dspy.OutputField()

    with pytest.raises(TableError, match=f"the frame has a column '{column}' already"):
        run_program(dspy.Predict(Measure), WORDS.with_columns(pl.lit(1).alias(column)), lm=Toy(shout), **arguments)
