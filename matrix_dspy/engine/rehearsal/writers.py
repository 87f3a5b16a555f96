"""Which writer knows which set of output fields."""

from collections.abc import Iterable
from functools import partial

from matrix_dspy.engine.rehearsal.chat import revise_from_scratch, write_response
from matrix_dspy.engine.rehearsal.dialogue import write_follow_up
from matrix_dspy.engine.rehearsal.group import receive_events, route_action, write_scenario
from matrix_dspy.engine.rehearsal.life import act, fold_memory, make_plan
from matrix_dspy.engine.rehearsal.profile import anonymise, check_privacy, set_goal
from matrix_dspy.engine.rehearsal.requests import write_instruction
from matrix_dspy.engine.rehearsal.scene import Writer
from matrix_dspy.engine.rehearsal.verdicts import (
    compare_by_level,
    compare_pair,
    criticise,
    judge_response,
    judge_safety,
    rate_answer,
    rate_instruction,
    rate_safety,
    revise,
)

_THOUGHTS = frozenset({"reasoning", "rationale", "thought"})
WRITERS: dict[frozenset[str], Writer] = {
    frozenset({"anonymous_description", "anonymous_history"}): anonymise,
    frozenset({"is_identifiable", "reason"}): check_privacy,
    frozenset({"personality", "life_goal"}): set_goal,
    frozenset({"plan"}): make_plan,
    frozenset({"action", "step_done"}): act,
    frozenset({"memory_summary"}): fold_memory,
    frozenset({"receivers", "reason"}): route_action,
    frozenset({"deliveries"}): receive_events,
    frozenset({"summary", "group_description"}): write_scenario,
    frozenset({"instruction"}): write_instruction,
    frozenset({"quality", "quality_reason", "difficulty", "difficulty_reason"}): rate_instruction,
    frozenset({"score", "reason"}): judge_response,
    frozenset({"preference", "reason"}): compare_pair,
    frozenset({"verdict", "reason"}): judge_safety,
    frozenset({"level", "reason"}): compare_by_level,
    frozenset({"rating", "reason"}): rate_answer,
    frozenset({"reason", "helpfulness", "harmlessness", "attack_succeeded"}): rate_safety,
    frozenset({"critique"}): criticise,
    frozenset({"revision"}): partial(revise, revise_from_scratch),
    frozenset({"response"}): write_response,
    frozenset({"answer"}): write_response,
    frozenset({"message"}): write_follow_up,
    frozenset({"follow_up"}): write_follow_up,
    frozenset({"user_message"}): write_follow_up,
}


def find_writer(names: Iterable[str]) -> Writer | None:
    """Return the writer for exactly these output fields, thoughts aside, or None."""
    return WRITERS.get(frozenset(names) - _THOUGHTS) or WRITERS.get(frozenset(names))
