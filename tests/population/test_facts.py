import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from matrix_dspy.errors import TableError
from matrix_dspy.population.facts import (
    FACTS,
    build_occupations,
    load_ages,
    load_job_names,
    load_occupations,
    load_places,
)


@pytest.fixture
def personas() -> Path:
    folder = os.environ.get("MATRIX_DSPY_DATA")
    if not folder:
        pytest.skip("MATRIX_DSPY_DATA is not set; it names the folder of shared data")
    return Path(folder) / "personas"


def test_occupations_have_the_promised_columns():
    occupations = load_occupations()

    assert occupations.columns == ["soc", "title", "employment", "median_wage", "female_share"]
    assert occupations["soc"].n_unique() == occupations.height == 831


def test_shares_of_women_are_shares():
    shares = load_occupations()["female_share"]

    assert shares.null_count() == 0
    assert all(0 <= share <= 1 for share in shares)


def test_known_figures_are_in_the_table():
    rows = {row["soc"]: row for row in load_occupations().iter_rows(named=True)}

    assert rows["29-1141"]["employment"] == 3_047_530
    assert rows["29-1141"]["median_wage"] == 77_600
    assert rows["29-1141"]["female_share"] == 0.879


def test_every_job_name_belongs_to_an_occupation():
    assert set(load_job_names()) <= set(load_occupations()["soc"])


def test_job_names_are_singular_and_without_an_article():
    for names in load_job_names().values():
        for name in names:
            assert not name.startswith(("a ", "an ", "the ")), name
            head = re.split(" (?:of|in|for|at|to) ", name)[0]
            assert not head.endswith(("ers", "ors", "ists", "ans")), name
            assert name[0].islower() or name.split()[0].isupper(), name


def test_named_occupations_cover_nearly_all_employed_people():
    occupations = load_occupations()
    named = occupations.filter(occupations["soc"].is_in(list(load_job_names())))

    assert sum(named["employment"]) / sum(occupations["employment"]) > 0.9


def test_age_bands_join_and_sum_to_about_one():
    bands = load_ages()

    assert abs(sum(band.share for band in bands) - 1) < 0.02
    assert all(before.high + 1 == after.low for before, after in pairwise(bands))


def test_place_shares_sum_to_one():
    assert abs(sum(place.share for place in load_places()) - 1) < 1e-9


def test_the_shipped_table_is_what_the_sources_give(personas: Path):
    built = build_occupations(personas / "national_May2021_dl.csv", personas / "cpsaat11.xlsx")

    assert built.write_csv() == (FACTS / "occupations.csv").read_text(encoding="utf-8")


def test_a_wage_above_the_highest_published_is_that_wage(personas: Path):
    built = build_occupations(personas / "national_May2021_dl.csv", personas / "cpsaat11.xlsx")

    assert built.filter(built["title"] == "Cardiologists")["median_wage"].to_list() == [208_000]


def test_a_missing_source_is_named(tmp_path: Path):
    with pytest.raises(TableError, match=r"oews\.csv"):
        build_occupations(tmp_path / "oews.csv", tmp_path / "cps.xlsx")
