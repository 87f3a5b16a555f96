"""What judges say of a row: whether its answer is safe and good enough, how hard and how well asked it is."""

from typing import Any, Literal

from matrix_dspy.config import KindConfig
from matrix_dspy.synthesis.desk import Desk
from matrix_dspy.synthesis.gate import Gate
from matrix_dspy.synthesis.row import DropRowError, Row
from matrix_dspy.types import Drop, Judgement, Response, make_id

QUALITIES = ("very poor", "poor", "average", "good", "excellent")
DIFFICULTIES = ("very easy", "easy", "medium", "hard", "very hard")
_SAFETY = {"safe refusal": 1.0, "safe help": 1.0, "unsafe": 0.0, "empty": 0.0}
UNRATED = "unrated"
Criterion = Literal["quality", "difficulty", "score", "safety", "preference", "reward"]


async def check_earlier_turns(row: Row, desk: Desk, kind: KindConfig) -> None:
    """Drop a dialogue that holds an unsafe answer before its last: every turn is learnt from."""
    if "safety" not in kind.checks:
        return
    for response in row.responses:
        if response.part == "answer" and response is not row.response:
            drop = await _check_safety(row, desk, response)
            if drop is not None:
                raise drop_checked(response, drop, desk.config.seed)


def drop_checked(response: Response, drop: Drop, seed: int) -> DropRowError:
    """Return the end of a row by a check of its kind; where there was no verdict, it is the judgement that failed."""
    if drop.reason == "unjudged":
        return DropRowError("judgement", make_judgement_id(response.response_id, "safety", seed), drop, response.text)
    return DropRowError("response", response.response_id, drop, response.text)


async def check_answer(row: Row, desk: Desk, kind: KindConfig, gate: Gate, response: Response) -> Drop | None:
    """Ask the checks of a row's kind about one of its answers."""
    assert row.instruction is not None
    if "safety" in kind.checks and (drop := await _check_safety(row, desk, response)) is not None:
        return drop
    return await gate.check_answer(response.response_id, row.instruction.text, response.text)


async def judge_row(row: Row, desk: Desk, threshold: float) -> None:
    """Drop a row whose answer the judge gives less than `threshold`, or nothing."""
    assert row.instruction is not None and row.response is not None
    score = await ask_score(row, desk, row.response)
    judgement_id = make_judgement_id(row.response.response_id, "score", desk.config.seed)
    if score is None:
        raise DropRowError("judgement", judgement_id, Drop("unjudged", "the judge gave no verdict"), row.response.text)
    if score < threshold:
        drop = Drop("below threshold", f"the judge gives {score:.2f}; {threshold:g} is asked for")
        raise DropRowError("judgement", judgement_id, drop, row.response.text)


async def ask_score(row: Row, desk: Desk, response: Response) -> float | None:
    """Return the judge's score, 1 to 5, finer where it gives log-probabilities; None without a verdict.

    A response is scored once, however often that is asked for.
    """
    for one in row.judgements:
        if (one.subject_id, one.criterion) == (response.response_id, "score"):
            return one.value
    inputs = {"instruction": _tell_ask(row, response), "response": response.text}
    round_, sample = _find_place(response)
    outcome = await desk.ask(
        "response_judge", inputs, response.instruction_id, round=round_, sample=sample, expect="score"
    )
    if outcome.fields is None:
        _note(row, desk, response.response_id, "score", UNRATED, None, outcome.detail)
        return None
    level = outcome.fields["score"]
    value = float(level) if outcome.expected is None else outcome.expected
    _note(row, desk, response.response_id, "score", str(level), value, outcome.fields["reason"])
    return value


async def rate_row(row: Row, desk: Desk) -> None:
    """Rate a row's instruction; one that cannot be rated is `unrated`, never the lowest (METHOD 3.5)."""
    assert row.instruction is not None
    instruction = row.instruction
    outcome = await desk.ask("instruction_rater", {"instruction": instruction.text}, instruction.instruction_id)
    levels_of: dict[Criterion, tuple[str, ...]] = {"quality": QUALITIES, "difficulty": DIFFICULTIES}
    for criterion, levels in levels_of.items():
        if outcome.fields is None:
            _note(row, desk, instruction.instruction_id, criterion, UNRATED, None, outcome.detail)
        else:
            level = outcome.fields[criterion]
            reason = outcome.fields[f"{criterion}_reason"]
            _note(row, desk, instruction.instruction_id, criterion, level, float(levels.index(level) + 1), reason)


def find_level(row: Row, criterion: Criterion) -> Any:
    """Return the level a row was given, None where it was not rated."""
    found = next((one.level for one in row.judgements if one.criterion == criterion), UNRATED)
    return None if found == UNRATED else found


def find_score(row: Row, response_id: str) -> float | None:
    """Return a reward of one of a row's responses, or else the judge's score: both sides of a pair by the same."""
    found = {one.criterion: one.value for one in row.judgements if one.subject_id == response_id}
    return found["reward"] if "reward" in found else found.get("score")


async def _check_safety(row: Row, desk: Desk, response: Response) -> Drop | None:
    """No compliant answer to a harmful ask is ever a training target, nor a refusal of a harmless one (METHOD 3.3)."""
    assert row.instruction is not None
    inputs = {"instruction": _tell_ask(row, response), "response": response.text}
    round_, sample = _find_place(response)
    outcome = await desk.ask("safety_judge", inputs, response.instruction_id, round=round_, sample=sample)
    if outcome.fields is None:
        _note(row, desk, response.response_id, "safety", UNRATED, None, outcome.detail)
        return Drop("unjudged", "the judge gave no verdict on its safety")
    verdict, reason = outcome.fields["verdict"], outcome.fields["reason"]
    _note(row, desk, response.response_id, "safety", verdict, _SAFETY[verdict], reason)
    if not _SAFETY[verdict]:
        return Drop("unsafe" if verdict == "unsafe" else "empty answer", reason)
    if row.is_lookalike and verdict == "safe refusal":
        return Drop("refusal of a harmless ask", reason)
    return None


def _find_place(response: Response) -> tuple[int, int]:
    """Return round and sample of the calls about a response, so that no two of a row share a key."""
    if response.part == "student":
        return 0, 1 + response.sample
    return (1 + response.sample if response.part == "revision" else response.turn), 0


def _tell_ask(row: Row, response: Response) -> str:
    """Return what a response answers: the instruction, or for a later turn the conversation up to it."""
    assert row.instruction is not None
    if not response.turn:
        return row.instruction.text
    before = row.messages[: 2 * response.turn + 1]
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in before)


def _note(
    row: Row, desk: Desk, subject_id: str, criterion: Criterion, level: str, value: float | None, reason: str
) -> None:
    row.judgements.append(
        Judgement(
            judgement_id=make_judgement_id(subject_id, criterion, desk.config.seed),
            subject_id=subject_id,
            criterion=criterion,
            level=level,
            value=value,
            reason=reason,
            model=desk.model_of("judge"),
        )
    )


def note_reward(row: Row, desk: Desk, response: Response, value: float | None, scorer: str, model: str) -> None:
    """Note a verifier's or reward model's score of a response."""
    row.judgements.append(
        Judgement(
            judgement_id=make_judgement_id(response.response_id, "reward", desk.config.seed),
            subject_id=response.response_id,
            criterion="reward",
            level=UNRATED if value is None else f"{value:.3f}",
            value=value,
            reason=f"by {scorer}",
            model=model,
        )
    )


def make_judgement_id(subject_id: str, criterion: str, seed: int) -> str:
    """Return the id of a verdict on a row."""
    return make_id("judgement", subject_id, criterion, seed)
