"""Rows walked back to where they came from."""

from pathlib import Path

import pytest

from matrix_dspy.report.descent import describe_row
from tests.report.folders import example, open_folder, pair, write_set, write_society


def test_a_pair_is_shown_with_both_sides_and_its_people(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)
    rows = [pair(0, "which of the two", "this one here", "that one there")]
    write_set(path, rows, "dpo")
    write_society(path, rows)

    lines = list(describe_row(path, rows[0].example_id))

    sides = [lines[lines.index(f"  {side}:") + 1].strip() for side in ("user", "chosen", "rejected")]
    assert sides == ["which of the two", "this one here", "that one there"]
    assert any(line.startswith("profile ") for line in lines)


@pytest.mark.parametrize("nouns", [(), ("responses",)])
def test_a_row_whose_origin_lies_elsewhere_is_shown_as_far_as_it_is_known(tmp_path: Path, nouns: tuple[str, ...]):
    path = open_folder(tmp_path / "run", 1)
    rows = [example(0, "what is it", "this")]
    write_set(path, rows)
    write_society(path, rows)
    for file in (path / "tables").glob("*.parquet"):
        if file.stem not in (*nouns, "rejected"):
            file.unlink()

    lines = list(describe_row(path, rows[0].example_id))

    missing = "instruction" if nouns else "response"
    assert lines[-1].startswith(f"  its {missing} ") and lines[-1].endswith("stands in the run it was merged from")
