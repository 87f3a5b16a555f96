"""Facts about working people, from public statistics: occupations, wages, shares of women, ages and kinds of place.

In: two files of the U.S. Bureau of Labor Statistics, or the small tables in `data/facts` made from them.
Out: tables of figures. Readable job names and the invented people themselves are left to `composing`.
"""

import csv
import functools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import polars as pl

from matrix_dspy.errors import TableError, boundary

FACTS = Path(__file__).parent.parent / "data" / "facts"

_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_MISSING = ("*", "**", "#", "")
"""OEWS: `*` and `**` are not released, `#` is at or above the highest wage published."""
_TOP_WAGE = 208_000
"""USD a year; what `#` stands for in OEWS May 2021."""
_HOURS = 2080
"""Hours in a full working year, as OEWS turns hourly into yearly wages."""

_RENAMED_MAJORS = {"education, training, and library occupations": "educational instruction and library occupations"}
"""CPS titles of major groups that OEWS calls otherwise."""

_NEAR_TITLES = {
    "11-9030": "education and childcare administrators",
    "13-1070": "human resources workers",
    "15-1230": "computer support specialists",
    "25-1000": "postsecondary teachers",
    "25-2010": "preschool and kindergarten teachers",
    "25-2021": "elementary and middle school teachers",
    "25-2022": "elementary and middle school teachers",
    "25-2030": "secondary school teachers",
    "25-2050": "special education teachers",
    "25-9040": "teaching assistants",
    "29-1020": "dentists",
    "29-1210": "other physicians",
    "29-1220": "other physicians",
    "31-1120": "personal care aides",
    "33-3050": "police officers",
    "33-9030": "security guards and gambling surveillance officers",
    "35-2010": "cooks",
    "37-2011": "janitors and building cleaners",
    "41-4010": "sales representatives, wholesale and manufacturing",
    "45-2090": "miscellaneous agricultural workers",
    "47-2040": "carpet, floor, and tile installers and finishers",
    "47-2050": "cement masons, concrete finishers, and terrazzo workers",
    "47-2070": "construction equipment operators",
    "47-2080": "drywall installers, ceiling tile installers, and tapers",
    "47-2130": "insulation workers",
    "47-2140": "painters and paperhangers",
    "47-3010": "helpers, construction trades",
    "49-3040": "heavy vehicle and mobile equipment service technicians and mechanics",
    "49-9040": "industrial and refractory machinery mechanics",
    "51-2090": "other assemblers and fabricators",
    "51-3020": "butchers and other meat, poultry, and fish processing workers",
    "51-4120": "welding, soldering, and brazing workers",
    "51-6050": "tailors, dressmakers, and sewers",
    "51-9120": "painting workers",
    "51-9160": "computer numerically controlled tool operators and programmers",
    "53-1040": "supervisors of transportation and material moving workers",
    "53-2010": "aircraft pilots and flight engineers",
    "53-3030": "driver/sales workers and truck drivers",
    "53-4010": "locomotive engineers and operators",
}
"""Codes of occupations and of broader groups, to the CPS row that counts them under another name."""


@dataclass(frozen=True)
class AgeBand:
    """A span of ages and its share of working adults."""

    low: int
    high: int
    share: float


@dataclass(frozen=True)
class PlaceKind:
    """A kind of place to live in, in words, and its share."""

    kind: str
    place: str
    share: float


def build_occupations(oews: Path, cps: Path) -> pl.DataFrame:
    """Return one row an occupation: soc, title, employment, median_wage (USD a year), female_share (0 to 1).

    `oews` is the national OEWS table as CSV, `cps` the CPS annual table 11 as XLSX. The share of women is that of the
    CPS row of the same title, else of the nearest broader group that has one, else of the major group.
    Source: BLS OEWS May 2021; BLS CPS table 11, annual averages 2022.

    Raises:
        TableError: a file cannot be read.
    """
    with boundary(TableError, f"read {str(oews)!r}"):
        rows = pl.read_csv(oews, infer_schema=False).rows(named=True)
    shares = _read_shares(cps, {row["OCC_TITLE"].lower() for row in rows if row["O_GROUP"] == "major"})
    titles = {row["OCC_CODE"]: row["OCC_TITLE"] for row in rows}
    occupations = [
        {
            "soc": row["OCC_CODE"],
            "title": row["OCC_TITLE"],
            "employment": int(row["TOT_EMP"].replace(",", "")),
            "median_wage": _parse_wage(row["A_MEDIAN"], row["H_MEDIAN"]),
            "female_share": _find_share(row["OCC_CODE"], titles, shares),
        }
        for row in rows
        if row["O_GROUP"] == "detailed" and row["TOT_EMP"] not in _MISSING
    ]
    schema = {
        "soc": pl.String,
        "title": pl.String,
        "employment": pl.Int64,
        "median_wage": pl.Int64,
        "female_share": pl.Float64,
    }
    return pl.DataFrame(occupations, schema=schema).sort("soc")


@functools.cache
def load_occupations() -> pl.DataFrame:
    """Return the shipped table of occupations, in the columns of `build_occupations`."""
    return pl.read_csv(FACTS / "occupations.csv", schema_overrides={"soc": pl.String})


@functools.cache
def load_job_names() -> dict[str, tuple[str, ...]]:
    """Return occupation code to readable names in the singular; an occupation without a name is not there."""
    rows = _read_rows("job_names.csv")
    return {row["soc"]: tuple(row["names"].split("|")) for row in rows}


@functools.cache
def load_ages() -> tuple[AgeBand, ...]:
    """Return the age bands of working adults."""
    return tuple(AgeBand(int(row["low"]), int(row["high"]), float(row["share"])) for row in _read_rows("ages.csv"))


@functools.cache
def load_places() -> tuple[PlaceKind, ...]:
    """Return the kinds of place people live in."""
    return tuple(PlaceKind(row["kind"], row["place"], float(row["share"])) for row in _read_rows("places.csv"))


def _read_rows(name: str) -> list[dict[str, str]]:
    with (FACTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _parse_wage(yearly: str, hourly: str) -> int | None:
    if yearly == "#" or hourly == "#":
        return _TOP_WAGE
    if yearly not in _MISSING:
        return int(yearly.replace(",", ""))
    return None if hourly in _MISSING else round(float(hourly.replace(",", "")) * _HOURS)


def _read_shares(cps: Path, majors: set[str]) -> dict[str, dict[str, float]]:
    """Return major group title to (row title to share of women), the group's own row included."""
    with boundary(TableError, f"read {str(cps)!r}"):
        rows = _read_sheet(cps)
    shares: dict[str, dict[str, float]] = {}
    major = ""
    for title, _, women in (row[:3] for row in rows if len(row) >= 3):
        title = " ".join(title.lower().split())
        title = _RENAMED_MAJORS.get(title, title)
        if title in majors:
            major = title
        if major and re.fullmatch(r"\d+(\.\d+)?", women):
            shares.setdefault(major, {})[title] = float(women) / 100
    if not shares:
        raise TableError(f"no occupations in {str(cps)!r}; give the CPS annual table 11 as it was published")
    return shares


def _read_sheet(path: Path) -> list[list[str]]:
    """Return the cells of an XLSX file's first sheet as text, row by row."""
    with zipfile.ZipFile(path) as archive:
        strings = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    shared = ["".join(text.text or "" for text in item.iter(f"{_SHEET}t")) for item in strings.iter(f"{_SHEET}si")]
    return [[_read_cell(cell, shared) for cell in row.iter(f"{_SHEET}c")] for row in sheet.iter(f"{_SHEET}row")]


def _read_cell(cell: ElementTree.Element, shared: list[str]) -> str:
    value = cell.findtext(f"{_SHEET}v") or ""
    return shared[int(value)] if cell.get("t") == "s" and value else value


def _find_share(soc: str, titles: dict[str, str], shares: dict[str, dict[str, float]]) -> float:
    """Look from the occupation upwards: its own title, then each broader group's, then the major group's."""
    major = titles[f"{soc[:2]}-0000"].lower()
    section = shares[major]
    for code in (soc, f"{soc[:6]}0", f"{soc[:5]}00", f"{soc[:4]}000"):
        for title in (titles.get(code, "").lower(), _NEAR_TITLES.get(code, "")):
            if title in section:
                return round(section[title], 4)
    return round(section[major], 4)
