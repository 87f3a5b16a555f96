"""Which writer knows which set of output fields."""

from collections.abc import Iterable

from matrix_dspy.engine.rehearsal_group import receive_events, route_action, write_scenario
from matrix_dspy.engine.rehearsal_life import act, fold_memory, make_plan
from matrix_dspy.engine.rehearsal_profile import anonymise, check_privacy, set_goal
from matrix_dspy.engine.rehearsal_requests import write_follow_up, write_instruction
from matrix_dspy.engine.rehearsal_scene import Writer

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
    frozenset({"message"}): write_follow_up,
    frozenset({"follow_up"}): write_follow_up,
    frozenset({"user_message"}): write_follow_up,
}


def find_writer(names: Iterable[str]) -> Writer | None:
    """Return the writer for exactly these output fields, thoughts aside, or None."""
    return WRITERS.get(frozenset(names) - _THOUGHTS) or WRITERS.get(frozenset(names))
