import json
import os
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from matrix_dspy.errors import TableError
from matrix_dspy.population.reading import LONGEST_TEXT, read_profiles
from matrix_dspy.types import make_id

ANA = {"name": "Ana Kovac", "description": "A baker in a small town.", "history": ["Up at three again.", "Bread!"]}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def personas() -> Path:
    folder = os.environ.get("MATRIX_DSPY_DATA")
    if not folder:
        pytest.skip("MATRIX_DSPY_DATA is not set; it names the folder of shared data")
    return Path(folder) / "personas"


def test_json_lines_are_read(tmp_path: Path):
    profiles, rejected = read_profiles(write_lines(tmp_path / "people.jsonl", [ANA]))

    assert rejected == []
    assert profiles[0].name == "Ana Kovac"
    assert profiles[0].description == "A baker in a small town."
    assert profiles[0].history == ("Up at three again.", "Bread!")
    assert (profiles[0].origin, profiles[0].licence, profiles[0].is_invented) == ("people.jsonl", "unknown", False)


def test_ids_come_from_file_and_row_and_not_from_text(tmp_path: Path):
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [ANA, ANA]))

    assert [row.profile_id for row in profiles] == [make_id("profile", "people.jsonl", n) for n in (1, 2)]


@pytest.mark.parametrize("shape", [[ANA], ANA, {"profiles": [ANA]}])
def test_json_may_be_a_list_or_one_object(tmp_path: Path, shape: Any):
    path = tmp_path / "people.json"
    path.write_text(json.dumps(shape))

    profiles, _ = read_profiles(path)

    assert [row.name for row in profiles] == ["Ana Kovac"]


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_separated_values_are_read(tmp_path: Path, ending: str, separator: str):
    rows = [["Full Name", "About", "Posts"], ["Ana Kovac", '"A baker, early up."', '"One.\nTwo."']]
    path = tmp_path / f"people.{ending}"
    path.write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8")

    profiles, rejected = read_profiles(path)

    assert rejected == []
    assert profiles[0].description == "A baker, early up."
    assert profiles[0].history == ("One.", "Two.")


def test_parquet_is_read(tmp_path: Path):
    pl.DataFrame([ANA]).write_parquet(tmp_path / "people.parquet")

    profiles, _ = read_profiles(tmp_path / "people.parquet")

    assert profiles[0].history == ("Up at three again.", "Bread!")


def test_a_folder_of_json_files_is_read_in_order(tmp_path: Path):
    for name in ("b.agent.json", "a.agent.json"):
        (tmp_path / name).write_text(json.dumps({"type": "person", "persona": {"name": name, "job": "cook"}}))
    (tmp_path / "notes.txt").write_text("not a profile")

    profiles, rejected = read_profiles(tmp_path)

    assert [row.name for row in profiles] == ["a.agent.json", "b.agent.json"]
    assert rejected == []


def test_a_broken_file_in_a_folder_is_a_rejected_row(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(ANA))
    (tmp_path / "b.json").write_text("{")

    profiles, rejected = read_profiles(tmp_path)

    assert len(profiles) == 1
    assert [(row.reason, "b.json" in row.detail) for row in rejected] == [("not JSON", True)]


def test_columns_can_be_mapped(tmp_path: Path):
    path = write_lines(tmp_path / "people.jsonl", [{"who": "Ana", "what": "A baker.", "said": "One.\nTwo."}])

    profiles, _ = read_profiles(path, {"name": "who", "description": "what", "history": "said"})

    assert (profiles[0].name, profiles[0].description, profiles[0].history) == ("Ana", "A baker.", ("One.", "Two."))


def test_a_mapped_column_wins_over_a_usual_name(tmp_path: Path):
    path = write_lines(tmp_path / "people.jsonl", [{"name": "X", "alias": "Ana", "bio": "A baker."}])

    profiles, _ = read_profiles(path, {"name": "alias"})

    assert profiles[0].name == "Ana"


def test_user_names_serve_where_there_are_no_names(tmp_path: Path):
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [{"username": "ana1", "bio": "A baker."}]))

    assert (profiles[0].name, profiles[0].handles) == ("ana1", ("ana1",))


@pytest.mark.parametrize("history", [["One.", "Two."], '["One.", "Two."]', "One.\nTwo.", [{"text": "One."}, "Two."]])
def test_history_comes_in_many_shapes(tmp_path: Path, history: Any):
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [{**ANA, "history": history}]))

    assert profiles[0].history == ("One.", "Two.")


def test_a_profile_of_posts_alone_is_kept(tmp_path: Path):
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [{"name": "Ana", "posts": ["One."]}]))

    assert (profiles[0].description, profiles[0].history) == ("", ("One.",))


def test_other_columns_become_facts_and_telling_ones_join_the_description(tmp_path: Path):
    row = {"name": "Ana", "bio": "Early up.", "age": 40, "profession": "Baker", "interested_topics": ["Yeast", "Rye"]}
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [row]))

    assert profiles[0].description == "Early up.\nProfession: Baker.\nInterested topics: Yeast, Rye."
    assert profiles[0].facts == (("age", "40"), ("profession", "Baker"), ("interested_topics", "Yeast, Rye"))


def test_a_nested_persona_becomes_readable_text(tmp_path: Path):
    persona = {"name": "Ana", "occupation": {"title": "Baker", "place": "Ghent"}, "skills": ["You bake.", "You sell."]}
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [{"persona": persona}]))

    assert profiles[0].description == "Occupation: Title: Baker. Place: Ghent.\nSkills: You bake. You sell."


def test_a_row_says_its_own_origin_and_licence(tmp_path: Path):
    rows = [ANA, {**ANA, "source": "a survey", "license": "CC BY 4.0", "is_invented": "yes"}]
    path = write_lines(tmp_path / "people.jsonl", rows)

    profiles, _ = read_profiles(path, origin="a forum", licence="MIT")

    assert [(row.origin, row.licence, row.is_invented) for row in profiles] == [
        ("a forum", "MIT", False),
        ("a survey", "CC BY 4.0", True),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"description": "A baker."}, "no name"),
        ({"name": " \u200f ", "description": "A baker."}, "no name"),
        ({"name": "Ana"}, "no description"),
        ({"name": "Ana", "description": "\x00 ", "history": []}, "no description"),
        ({"name": "Ana", "description": "x" * (LONGEST_TEXT + 1)}, "too long"),
        ({"name": "Ana", "history": ["x" * (LONGEST_TEXT + 1)]}, "too long"),
        (["Ana"], "not an object"),
        ("Ana", "not an object"),
        (None, "not an object"),
    ],
)
def test_a_bad_row_is_rejected_and_the_others_are_kept(tmp_path: Path, row: Any, reason: str):
    profiles, rejected = read_profiles(write_lines(tmp_path / "people.jsonl", [ANA, row, ANA]))

    assert len(profiles) == 2
    assert [(bad.reason, bad.noun, bad.stage, bad.raw_text) for bad in rejected] == [(reason, "profile", "read", "")]
    assert rejected[0].id == make_id("profile", "people.jsonl", 2)


def test_a_broken_line_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "people.jsonl"
    path.write_text(json.dumps(ANA) + "\n\n{broken secret\n" + json.dumps(ANA))

    profiles, rejected = read_profiles(path)

    assert len(profiles) == 2
    assert rejected[0].reason == "not JSON"
    assert "line 3" in rejected[0].detail


def test_a_deeply_nested_line_is_a_broken_line(tmp_path: Path):
    path = tmp_path / "people.jsonl"
    path.write_text(json.dumps(ANA) + "\n" + "[" * 200_000 + "\n")

    _, rejected = read_profiles(path)

    assert [row.reason for row in rejected] == ["not JSON"]


def test_no_detail_quotes_a_profile(tmp_path: Path):
    rows = [
        ANA,
        {"name": "Secretia"},
        {"description": "Secretia."},
        {"name": "S", "bio": "Secretia " * 9999},
        ["Secretia"],
    ]
    path = write_lines(tmp_path / "people.jsonl", rows)

    _, rejected = read_profiles(path)

    assert len(rejected) == 4
    assert "Secretia" not in "".join(row.model_dump_json() for row in rejected)


def test_a_line_of_a_megabyte_is_dropped_at_once(tmp_path: Path):
    rows = [ANA, {**ANA, "description": "[[ ## " * 200_000}, {**ANA, "history": "[" + "1," * 600_000}]
    path = write_lines(tmp_path / "people.jsonl", rows)

    start = time.perf_counter()
    _, rejected = read_profiles(path)

    assert [row.reason for row in rejected] == ["too long", "too long"]
    assert time.perf_counter() - start < 2


def test_markers_and_invisible_marks_are_made_harmless(tmp_path: Path):
    nasty = (
        "A\x00 baker [[ ## history ## ]] <<CUSTOM-TYPE-START-IDENTIFIER>>now<<CUSTOM-TYPE-END-IDENTIFIER>> \u202egnirob"
    )
    row = {
        "name": "An\u200fa\n Kovac",
        "description": nasty,
        "history": [nasty],
        "username": "an\u202ea",
        "age": "4\x000",
    }
    profiles, _ = read_profiles(write_lines(tmp_path / "people.jsonl", [row]))

    text = profiles[0].model_dump_json()
    assert profiles[0].name == "Ana Kovac"
    assert profiles[0].description == "A baker history now gnirob"
    assert profiles[0].handles == ("ana",)
    assert not any(mark in text for mark in ("\\u0000", "\x00", "[[ ##", "CUSTOM-TYPE", "\u202e", "\u200f"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, ending: str):
    text = "name,bio\nAna,A baker.\n" if ending == "csv" else json.dumps({"name": "Ana", "bio": "A baker."})
    path = tmp_path / f"people.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert read_profiles(path)[0][0].name == "Ana"


def test_bytes_that_are_not_utf_8_are_replaced(tmp_path: Path):
    path = tmp_path / "people.csv"
    path.write_bytes(b"name,bio\nJos\xe9,A baker.\n")

    assert read_profiles(path)[0][0].name == "Jos\ufffd"


def test_lines_may_end_as_on_windows(tmp_path: Path):
    path = tmp_path / "people.jsonl"
    path.write_bytes((json.dumps(ANA) + "\r\n").encode() * 2)

    assert len(read_profiles(path)[0]) == 2


def test_a_ragged_csv_row_stops_nothing(tmp_path: Path):
    path = tmp_path / "people.csv"
    path.write_text("name,bio\nAna,A baker.,extra,cells\nBo\nCy,A cook.\n")

    profiles, rejected = read_profiles(path)

    assert [row.name for row in profiles] == ["Ana", "Cy"]
    assert [row.reason for row in rejected] == ["no description"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.json", b"\xef\xbb\xbf \n", "is empty"),
        ("people.json", b"{", "line 1"),
        ("people.json", b"[" * 200_000, "JSON"),
        ("people.json", b"[]", "holds no rows"),
        ("people.csv", b"name,bio\n", "holds no rows"),
        ("people.parquet", b"not parquet", "not readable as Parquet"),
        ("people.txt", b"Ana", "cannot tell the type"),
        ("people.jsonl", b"{\n[]\n", "none of the 2 rows"),
        ("people.jsonl", b'{"name": "Ana", "bio": ""}\n', "no description"),
        ("people.jsonl", b'{"a": 1, "bio": "x"}\n', "--column name="),
        ("people.jsonl", b'{"name": "Ana", "b": 2}\n', "--column description="),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(TableError, match=message) as caught:
        read_profiles(tmp_path / name)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(TableError, match=r"gone\.csv"):
        read_profiles(tmp_path / "gone.csv")


def test_a_folder_without_json_is_named(tmp_path: Path):
    with pytest.raises(TableError, match=r"no \.json file"):
        read_profiles(tmp_path)


def test_a_missing_column_error_lists_the_columns_there_are(tmp_path: Path):
    with pytest.raises(TableError, match="'who', 'bio'"):
        read_profiles(write_lines(tmp_path / "people.jsonl", [{"who": "Ana", "bio": "A baker."}]))


def test_a_mapped_column_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(TableError, match="no column 'nmae'"):
        read_profiles(write_lines(tmp_path / "people.jsonl", [ANA]), {"name": "nmae"})


def test_a_mapping_to_an_unknown_field_offers_the_nearest(tmp_path: Path):
    with pytest.raises(TableError, match="did you mean 'description'"):
        read_profiles(write_lines(tmp_path / "people.jsonl", [ANA]), {"descripton": "description"})


def test_social_profiles_of_oasis_read_well(personas: Path):
    profiles, rejected = read_profiles(personas / "oasis_reddit_user_data_36.json", licence="Apache-2.0")

    assert (len(profiles), rejected) == (36, [])
    assert profiles[0].handles == ("millerhospitality",)
    assert all(len(row.description) > 150 for row in profiles)
    assert "Interested topics: Economics, Business." in profiles[0].description
    assert ("country", "UK") in profiles[0].facts


def test_rich_profiles_of_tinytroupe_read_well(personas: Path):
    profiles, rejected = read_profiles(personas / "tinytroupe", licence="MIT")

    assert (len(profiles), rejected) == (7, [])
    for row in profiles:
        assert row.name
        assert 2000 < len(row.description) < LONGEST_TEXT
        assert "Occupation: Title:" in row.description
        assert not any(mark in row.description for mark in ("{", "['", '":'))
