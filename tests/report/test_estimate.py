from dataclasses import replace
from pathlib import Path

import pytest

from matrix_dspy.bulk.progress import Tally
from matrix_dspy.config import Config, load_recipe
from matrix_dspy.errors import RunError
from matrix_dspy.report.estimate import (
    Estimate,
    Forecast,
    Load,
    Range,
    StageEstimate,
    compare_estimate,
    describe_estimate,
    from_json,
    read_estimate,
    say_seconds,
    tell_estimate,
    to_json,
    write_estimate,
)
from matrix_dspy.report.prices import Price

PRICE = Price(prompt=1.0, completion=2.0)


def make_forecast(**changes: object) -> Forecast:
    """Return a forecast of 100 actions over 10 rounds and 50 instructions."""
    forecast = Forecast(basis="a rehearsal of 10 agents", is_real=False, n_expected=50, n_rounds=10.0)
    forecast.loads = {
        ("simulation", "actor"): Load(100, 200_000, 10_000, 0.0),
        ("synthesis", "instruction_writer"): Load(50, 50_000, 2_500, 0.0),
    }
    forecast.noise = {"actor": 0.1, "instruction_writer": 0.0}
    forecast.doubt = 0.05
    return replace(forecast, **changes)  # pyright: ignore[reportArgumentType]


def make_config(lm: str = "openai/gpt-4o-mini", **changes: object) -> Config:
    return load_recipe("tiny", {"n": 50, "lm.main": lm, "operation.concurrency": 10, **changes})


def tell(forecast: Forecast | None = None, lm: str = "openai/gpt-4o-mini", **options: object) -> Estimate:
    return tell_estimate(
        forecast or make_forecast(),
        make_config(lm),
        "generate",
        **{"price": None, **options},  # pyright: ignore[reportArgumentType]
    )


def find_stage(estimate: Estimate, program: str) -> StageEstimate:
    return next(stage for stage in estimate.stages if stage.program == program)


def test_a_range_lies_around_what_is_expected():
    values = Range.around(100, 0.1, 0.5)

    assert (values.low, values.expected, values.high) == pytest.approx((90, 100, 150))
    assert values.holds(90) and values.holds(150) and not values.holds(151)


def test_a_range_is_never_below_nothing():
    assert Range.around(100, 1.5).low == 0


def test_the_total_adds_up_all_programs():
    total = tell(lm="rehearsal").total

    assert total.calls.expected == 150
    assert total.prompt_tokens.expected == 250_000
    assert total.completion_tokens.expected == 12_500


def test_a_program_of_two_stages_has_one_line():
    forecast = make_forecast()
    forecast.loads["population", "actor"] = Load(20, 0, 0, 0)

    estimate = tell(forecast, "rehearsal")

    assert [stage.program for stage in estimate.stages] == ["actor", "instruction_writer"]
    assert find_stage(estimate, "actor").calls.expected == 120


def test_a_rehearsals_range_is_its_own_noise():
    calls = find_stage(tell(lm="rehearsal"), "actor").calls

    assert (calls.low, calls.high) == pytest.approx((85, 115))


def test_a_real_model_may_write_half_as_much_or_more_up_to_its_limit():
    forecast = make_forecast()
    forecast.loads["simulation", "actor"] = Load(100, 200_000, 30_000, 0.0)  # 300 tokens a call of at most 384

    stage = find_stage(tell(forecast), "actor")

    assert stage.completion_tokens.low == 15_000
    assert stage.completion_tokens.high == pytest.approx(384 * stage.calls.high)


def test_a_real_model_may_write_two_and_a_half_times_as_much():
    stage = find_stage(tell(), "actor")

    assert stage.completion_tokens.high == pytest.approx(2.5 * 10_000 * stage.calls.high / 100)


def test_a_real_models_prompts_are_counted_by_another_tokenizer():
    rehearsed, real = find_stage(tell(lm="rehearsal"), "actor"), find_stage(tell(), "actor")

    assert real.prompt_tokens.low == pytest.approx(rehearsed.prompt_tokens.low - 0.15 * 200_000)
    assert real.prompt_tokens.high > 1.15 * rehearsed.prompt_tokens.high


def test_a_real_models_filters_may_keep_fewer_candidates():
    estimate = tell()

    assert find_stage(estimate, "actor").calls.high == pytest.approx(100 * (1 + 0.15 + 0.15))
    assert find_stage(estimate, "instruction_writer").calls.high == pytest.approx(50 * (1 + 0.05 + 0.15) / 0.7)


def test_a_measured_real_model_has_no_range_for_another_model():
    calls = find_stage(tell(make_forecast(is_real=True)), "actor")

    assert calls.completion_tokens.high == pytest.approx(11_500)


def test_money_follows_from_tokens_and_price():
    money = tell(price=PRICE).money

    assert money is not None
    assert money.expected == pytest.approx((250_000 * 1.0 + 12_500 * 2.0) / 1e6)
    assert money.low < money.expected < money.high


def test_an_unknown_price_is_said_and_not_guessed():
    estimate = tell()

    assert estimate.money is None
    assert "give --price-in and --price-out" in "\n".join(describe_estimate(estimate))
    assert any("No price is known for 'openai/gpt-4o-mini'" in sentence for sentence in estimate.assumptions)


def test_a_rehearsal_costs_nothing():
    assert tell(lm="rehearsal").money == Range(0, 0, 0)


def test_work_is_spread_over_the_calls_in_flight():
    forecast = make_forecast(n_rounds=1.0)

    seconds = tell(forecast, tokens_per_second=100.0).seconds

    # 10,000 tokens and 2,500 tokens, ten requests at a time
    assert seconds.expected == pytest.approx(10 + 2.5)


def test_time_is_not_below_the_longest_chain_of_calls():
    seconds = tell(make_forecast(n_rounds=40.0), tokens_per_second=100.0).seconds

    # 40 rounds of three calls of 100 tokens, then the instructions
    assert seconds.expected == pytest.approx(40 * 3 * 1.0 + 2.5)


def test_a_speed_that_nobody_gave_is_called_an_assumption():
    assumed, given = tell(), tell(tokens_per_second=40.0)

    assert assumed.seconds == given.seconds
    assert any("40 tokens a second and request (an assumption)" in sentence for sentence in assumed.assumptions)
    assert any("(as given)" in sentence for sentence in given.assumptions)


def test_a_rehearsals_latency_counts_where_it_is_longer_than_the_work():
    forecast = make_forecast(seconds_per_call=0.001, n_rounds=1.0)

    fast, slow = tell(forecast, "rehearsal"), tell(forecast, "rehearsal?latency=1")

    assert fast.seconds.expected == pytest.approx(0.15)
    assert slow.seconds.expected == pytest.approx(10 + 5)


def test_the_terminal_shows_programs_total_and_ranges():
    lines = describe_estimate(tell(price=PRICE))

    assert [line.split()[0] for line in lines[2:6]] == ["program", "actor", "instruction_writer", "total"]
    assert any(line.startswith("calls") and " to " in line for line in lines)
    assert any(line.startswith("money") and "USD" in line for line in lines)
    assert any("made from a rehearsal of 10 agents" in line for line in lines)


def test_json_gives_back_the_same_estimate():
    estimate = tell(price=PRICE)

    assert from_json(to_json(estimate)) == estimate


def test_an_estimate_without_a_price_survives_json():
    assert from_json(to_json(tell())).money is None


def test_what_is_no_estimate_is_refused():
    with pytest.raises(RunError, match="not an estimate"):
        from_json('{"command": "generate"}')


def test_an_estimate_is_kept_in_the_run_folder(tmp_path: Path):
    estimate = tell()

    path = write_estimate(estimate, tmp_path / "run")

    assert path == tmp_path / "run" / "estimate.json"
    assert read_estimate(tmp_path / "run") == estimate


def test_a_folder_without_an_estimate_has_none(tmp_path: Path):
    assert read_estimate(tmp_path) is None


def test_a_comparison_has_the_difference_in_percent():
    estimate = tell(lm="rehearsal")
    actual = {"actor": Tally(80, 160_000, 10_000), "instruction_writer": Tally(50, 50_000, 2_500)}

    rows = {row.what: row for row in compare_estimate(estimate, actual, seconds=3.0)}

    assert rows["calls"].actual == 130
    assert rows["calls"].difference == pytest.approx(100 * 20 / 130)
    assert rows["calls of actor"].difference == pytest.approx(25)
    assert rows["completion tokens"].difference == pytest.approx(0)
    assert rows["seconds"].actual == 3.0


def test_a_comparison_names_programs_that_only_one_side_has():
    rows = {row.what: row for row in compare_estimate(tell(lm="rehearsal"), {"planner": Tally(7, 1, 1)}, 1.0)}

    assert (rows["calls of planner"].estimated.expected, rows["calls of planner"].actual) == (0, 7)
    assert rows["calls of actor"].difference is None


def test_money_is_compared_where_both_are_known():
    rows = {row.what: row for row in compare_estimate(tell(price=PRICE), {}, 1.0, money=0.55)}

    assert rows["USD"].difference == pytest.approx(-50)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (0.2, "1 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_are_said_roughly(seconds: float, said: str):
    assert say_seconds(seconds) == said
