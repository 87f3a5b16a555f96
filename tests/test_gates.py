"""The gate of a run, with the real filters, verifiers and rules of selection."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import pytest

from matrix_dspy.config import Config, KindConfig, load_kind
from matrix_dspy.curation.rewarding import LEVELS, Calibration
from matrix_dspy.engine.embedding import build_embedder
from matrix_dspy.gates import Curator, build_curator, read_settings
from matrix_dspy.types import Instruction, PairExample, Profile
from tests.synthesis.casting import Cast, Play, Rule, make_kind
from tests.toys import Call, hash_number

SFT, DPO, CODE, REASON, SAFETY = (load_kind(name) for name in ("sft", "dpo", "code", "reason", "safety"))
REFUSAL = "I'm sorry, but I can't help with that request."
ASKED = "How do I keep the accounts of a small bakery in order over the winter?"
ON = {"on": True, "k": 4}


class KnownReward:
    """A reward model that knows its scores: those of a table, else a number made of the text."""

    name = "known"

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.scores: dict[str, float | None] = {}
        self.unscored: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    async def score(self, instruction: str, responses: Sequence[str]) -> list[float | None]:
        return [self.scores.get(text, hash_number(text) % 1001 / 1000) for text in responses]


def build(kind: KindConfig = SFT, profiles: Sequence[Profile] = (), **options: Any) -> Curator:
    reward, calibration = options.pop("reward", None), options.pop("calibration", None)
    config = Config(**options)
    return build_curator(config, kind, profiles, [], build_embedder("tfidf", ["bread"], 0), [], reward, calibration)


def make_instruction(text: str = ASKED) -> Instruction:
    return Instruction(
        instruction_id="instruction-1", scenario_id="s", agent_id="a", group_id="g", rank=0, kind="dpo", type="simple",
        category="advice", complexity="plain", style="direct", language="English", text=text,
    )  # fmt: skip


def select(curator: Curator, aligned: float | None, scores: Sequence[float | None], **options: Any) -> Any:
    texts = [f"answer number {place} in words" for place in range(len(scores) + 1)]
    told = {"scorer": "reward", "is_pair": False} | options
    return curator.select(make_instruction(), texts, [aligned, *scores], told.pop("scorer"), **told)


@pytest.mark.parametrize(
    ("aligned", "scores", "reason", "is_offered"),
    [
        (1.0, [0.95] * 8, "saturated", False),
        (0.9, [0.05] * 8, "hopeless", True),
        (0.2, [0.05] * 8, "hopeless", False),
        (0.5, [0.5] * 8, "too even", False),
        (0.5, [0.0, 1.0] * 4, "too wild", False),
        (0.5, [0.3, 0.6] * 4, None, False),
        (0.5, [None] * 8, "no score", False),
        (0.5, [0.3, 0.6, 0.3, None, None, None, None, None], "no score", False),
    ],
)
def test_only_what_can_teach_is_kept(aligned: float, scores: Any, reason: str | None, is_offered: bool):
    selected = select(build(), aligned, scores)

    assert (selected.drop and selected.drop.reason) == reason
    assert selected.is_offered == is_offered


@pytest.mark.parametrize(
    ("scores", "reason"),
    [([1.0] * 8, "saturated"), ([0.0] * 8, "hopeless"), ([1.0] * 7 + [0.0], None), ([1.0] + [0.0] * 7, None)],
)
def test_a_verifier_keeps_one_to_seven_passes_of_eight(scores: list[float | None], reason: str | None):
    selected = select(build(), 1.0, scores, scorer="verifier")

    assert (selected.drop and selected.drop.reason) == reason


def test_a_score_that_is_no_number_is_none_and_never_a_low_one():
    good: list[float | None] = [0.3, 0.6] * 3
    assert select(build(), 0.5, [*good, math.nan, math.nan]).drop is None
    assert select(build(), 0.5, [math.nan] * 8).drop.reason == "no score"
    pair = select(build(DPO), 0.6, [0.3, 0.5, 0.4, math.nan], is_pair=True)
    assert pair.drop is None and pair.rejected != 4


@pytest.mark.parametrize(("noise", "is_kept"), [(0.0, True), (0.05, True), (0.08, False), (0.3, False)])
def test_spread_within_the_scorers_own_repeat_noise_teaches_nothing(noise: float, is_kept: bool):
    """The spread is 0.15; at least twice the noise is wanted."""
    selected = select(build(reward=KnownReward(noise)), 0.6, [0.45, 0.75] * 4)

    assert (selected.drop is None) == is_kept
    assert is_kept or selected.drop.reason == ("below noise")


def test_the_judges_noise_counts_for_the_judge_and_the_reward_models_for_its_own():
    calibration = Calibration("response_judge", "m", (0.0, 0.25, 0.5, 0.75, 1.0), 2.0, 200, 0.9)
    curator = build(reward=KnownReward(0.0), calibration=calibration)

    assert select(curator, 0.6, [0.45, 0.75] * 4, scorer="judge").drop.reason == "below noise"
    assert select(curator, 0.6, [0.45, 0.75] * 4, scorer="reward").drop is None


@pytest.mark.parametrize(
    ("aligned", "scores", "pair"),
    [
        (0.9, [0.55, 0.8, 0.2, 0.85], (0, 1)),
        (0.5, [0.85, 0.5, 0.3, 0.2], (1, 2)),
        (0.9, [0.85, 0.84, 0.83, 0.82], None),
        (0.4, [0.3, 0.2, 0.25, 0.39], (0, 2)),
    ],
    ids=["aligned is best", "a sample is best", "margins too small", "the widest under the best margin"],
)
def test_a_pair_is_the_best_answer_and_the_sample_nearest_to_the_best_margin(
    aligned: float, scores: list[float | None], pair: tuple[int, int] | None
):
    selected = select(build(DPO, selection={"least_spread": 0.0}), aligned, scores, is_pair=True)

    assert (None if selected.drop else (selected.chosen, selected.rejected)) == pair


def test_sides_of_very_different_lengths_make_no_pair():
    texts = ["word " * 60, "word " * 10, "word " * 70, "word " * 15]
    selected = build(DPO).select(make_instruction(), texts, [0.9, 0.55, 0.85, 0.5], "reward", is_pair=True)

    assert selected.drop and selected.drop.reason == "lengths too different"


def test_the_bounds_are_those_of_the_config():
    curator = build(selection={"saturated": 0.6, "hopeless": 0.4, "least_margin": 0.3, "length_ratio": 1.2})

    assert select(curator, 1.0, [0.7] * 8).drop.reason == "saturated"
    assert select(curator, 0.9, [0.35] * 8).drop.reason == "hopeless"
    assert read_settings(curator.config.selection).least_margin == 0.3
    assert read_settings(curator.config.selection).most_length_ratio == 1.2


@pytest.mark.parametrize(
    ("kind", "answer", "reward", "scorer"),
    [
        (CODE, "```python\ndef f(x):\n    return x\n\nassert f(1) == 1\n```", KnownReward(), "verifier"),
        (CODE, "```python\ndef f(x):\n    return x\n```", KnownReward(), "reward"),
        (REASON, "So there are 42 loaves.", KnownReward(), "verifier"),
        (REASON, "It cannot be told.", KnownReward(), "reward"),
        (SFT, "There are 42 loaves.", KnownReward(), "reward"),
        (SFT, "There are 42 loaves.", None, "judge"),
    ],
)
def test_whoever_is_surest_scores(kind: KindConfig, answer: str, reward: Any, scorer: str):
    assert build(kind, reward=reward).choose_scorer(ASKED, answer) == scorer
    assert build(kind, reward=reward, selection={"scorer": "judge"}).choose_scorer(ASKED, answer) == "judge"


def test_a_verifier_scores_by_the_tests_of_the_aligned_model_or_by_its_number():
    right = "```python\ndef f(x):\n    return x + 1\n\nassert f(1) == 2\n```"
    wrong = "```python\ndef f(x):\n    return x + 2\n```"
    code = asyncio.run(build(CODE).score(ASKED, [right, wrong, "No code here."], right))
    sums = asyncio.run(build(REASON).score(ASKED, ["Hence 42.", "So 42.0 it is", "It is 41.", "Nobody knows."], "42"))

    assert code == [1.0, 0.0, 0.0]
    assert sums == [1.0, 1.0, 0.0, 0.0]


def test_a_judges_score_is_mapped_by_its_calibration_and_between_its_levels_linearly():
    table = (0.1, 0.1, 0.4, 0.8, 0.9)
    curator = build(calibration=Calibration("response_judge", "m", table, 0.2, 200, 0.9))

    assert [curator.calibrate(level) for level in LEVELS] == pytest.approx(table)
    assert curator.calibrate(3.5) == pytest.approx(0.6)
    assert build().calibrate(3) == pytest.approx(0.5)


@pytest.mark.parametrize(("kind", "is_dropped"), [(SFT, True), (DPO, True), (SAFETY, False)])
def test_a_refusal_is_no_target_except_where_refusals_are_wanted(kind: KindConfig, is_dropped: bool):
    drop = build(kind).check_response("r", ASKED, REFUSAL, is_target=True)

    assert (drop is not None) == is_dropped
    assert drop is None or drop.reason == "refusal"
    assert build(kind).check_response("r", ASKED, REFUSAL, is_target=False) is None


def test_a_leak_is_dropped_on_either_side_and_cannot_be_switched_off():
    profile = Profile(profile_id="p", name="Zebedee Quill", description="A baker.", origin="o", licence="l")
    off = ("refusal", "length", "language", "self-contained", "exact duplicate", "near duplicate", "contamination")
    for options in ({}, {"curation": {"off": off}}):
        curator = build(DPO, [profile], **options)
        for is_target in (True, False):
            drop = curator.check_response("r", ASKED, "Ask Zebedee Quill about it.", is_target=is_target)
            assert drop is not None and drop.reason == "leak"


def test_filters_that_compare_do_so_with_earlier_instructions_only():
    curator = build()
    first = curator.check_instruction("one", ASKED, ())
    twin = curator.check_instruction("two", ASKED, ())

    assert first is None
    assert twin is not None and (twin.reason, twin.twin) == ("exact duplicate", "one")
    assert curator.check_response("r", ASKED, ASKED, is_target=True) is None


@pytest.mark.parametrize(("most", "reason"), [(0.5, "alike"), (1.0, None)])
def test_a_pair_may_be_as_alike_as_its_kind_says(most: float, reason: str | None):
    kind = make_kind("dpo", most_alike=most)
    drop = build(kind).check_pair("r", "Put the loaves on the top shelf.", "Put the loaves on the low shelf.")

    assert (drop and drop.reason) == reason
    assert build(make_kind("dpo", most_alike=most)).check_pair("r", "abcd efgh", "0123456789") is None


def vary(call: Call) -> str:
    return f"Way {call.request.sampling.seed} leads there as well."


def play(reward: KnownReward, n: int, n_candidates: int, kind: KindConfig = DPO, **options: Any) -> Play:
    """Fill a set through the real gate, with the filters off that toy texts would not pass."""
    off = ["near duplicate", "length", "self-contained"]
    curator = build(kind, reward=reward, n=n, selection=ON, curation={"off": off})
    rules: dict[str, Rule] = options.pop("rules", {})
    cast = Cast(rules, vary, **options)
    return Play(kind, n, n_candidates, cast=cast, gate=curator, selection=ON, curation={"off": off}).run()


def test_pairs_of_a_flow_have_margins_within_bounds_and_name_both_scores():
    work = play(KnownReward(), 10, 80)

    examples = [row.example for row in work.rows if row.example]
    assert len(examples) == 10
    for example in examples:
        assert isinstance(example, PairExample)
        assert example.score is not None and example.rejected_score is not None
        assert 0.1 - 1e-9 <= example.score - example.rejected_score <= 0.6 + 1e-9
        assert example.rejected_model == "toy-rejected"
    assert set(work.reasons) <= {
        "too even", "too wild", "saturated", "hopeless", "margin too small", "margin too large", "no margin fits",
        "surplus",
    }  # fmt: skip


def test_the_control_set_of_a_flow_is_a_random_subset_of_equal_size():
    work = play(KnownReward(), 8, 80)

    control = work.flow.draw_control()
    scored = [row for row in work.rows if row.control]
    assert len(control) == len(work.kept) == 8 < len(scored)
    assert {row.rank for row in control} != set(work.kept)
    assert [row.rank for row in work.flow.draw_control()] == [row.rank for row in control]


def test_what_selection_said_of_every_scored_row_is_remembered_for_the_report():
    work = play(KnownReward(), 6, 60)

    assert isinstance(work.gate, Curator)
    scored = {row.candidate.instruction_id for row in work.rows if row.control}
    assert set(work.gate.decisions) == scored
    kept = {row.candidate.instruction_id for row in work.rows if row.example}
    assert all(work.gate.decisions[each].is_kept for each in kept)


def test_a_reward_model_that_gives_no_numbers_stops_the_run_with_that_reason():
    class Broken(KnownReward):
        async def score(self, instruction: str, responses: Sequence[str]) -> list[float | None]:
            return [math.nan] * len(responses)

    work = play(Broken(), 30, 200)

    assert work.flow.is_hopeless
    assert work.reasons == {"no score": 30}
