"""Which writer knows which set of output fields."""

from collections.abc import Iterable

from matrix_dspy.engine.rehearsal_scene import Writer

_THOUGHTS = frozenset({"reasoning", "rationale", "thought"})
WRITERS: dict[frozenset[str], Writer] = {}


def find_writer(names: Iterable[str]) -> Writer | None:
    """Return the writer for exactly these output fields, thoughts aside, or None."""
    return WRITERS.get(frozenset(names) - _THOUGHTS) or WRITERS.get(frozenset(names))
