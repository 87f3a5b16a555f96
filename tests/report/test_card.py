"""The dataset card and its plots."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.config import load_recipe
from matrix_dspy.engine.base import Usage
from matrix_dspy.report.card import Source, write_card, write_curated_card
from matrix_dspy.report.charts import Chart, Series, build_charts
from matrix_dspy.report.gathering import gather
from matrix_dspy.report.plots import SHOWN, plot, write_plots
from tests.report.folders import dropped, example, open_folder, pair, write_rows, write_set, write_society

HOSTILE = "x`](javascript:alert(1)) | <script>alert(1)</script>\n# heading\n--- $\\frac$ \u202e"


def tell(path: Path, n: int, command: str = "generate", **changes: Any) -> Path:
    """Write `figures.json` of a run of `n` rows, then its card."""
    values: dict[str, Any] = {
        "command": command, "name": "run", "describe": "rows", "model": "some-model", "models": {"main": "some-model"},
        "reason": "complete", "is_final": True, "began": "2026-01-02T00:00:00+00:00", "seconds": 1.0, "n_wanted": n,
        "n_kept": n, "n_calls": 3, "n_replayed": 0, "prompt_tokens": 10, "completion_tokens": 5, "cost": 0.5,
        "programs": {"responder": {"calls": 3, "prompt_tokens": 10}}, "n_profiles_read": 2, "n_candidates": n + 1,
    }  # fmt: skip
    kind = changes.pop("kind", "sft")
    (path / "figures.json").write_text(json.dumps({**values, **changes}), "utf-8")
    return write_card(path, Source(load_recipe("tiny", {"n": n}), kind, Usage(), False), command)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of four rows, one dropped."""
    path = open_folder(tmp_path / "run", 4)
    rows = [example(n, f"what is {n}", "it is", quality="good", root_verb="be") for n in range(4)]
    write_set(path, rows)
    write_society(path, rows)
    write_rows(path, "rejected", [dropped(1, "refusal")])
    return path


def test_the_card_tells_the_figures_of_the_page(run: Path):
    tell(run, 4)

    card = (run / "README.md").read_text("utf-8")
    for step in gather(run, has_diversity=False).steps:
        assert f"| {step.name} | {step.n_left} | {step.n_dropped or ''} |" in card
    assert "| instruction | refusal | 1 |" in card
    assert "By the known price all calls cost 0.5 dollars" in card
    assert "**Not decontaminated: no `--benchmarks` given.**" in card


def test_tables_of_the_cards_stand_apart_from_what_is_around_them(run: Path):
    tell(run, 4)
    cards = [(run / "README.md").read_text("utf-8"), write_curated_card(run).read_text("utf-8")]

    for card in cards:
        lines = card.splitlines()
        for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
            if line.startswith("|"):
                assert after.startswith("|") or not after, (line, after)
            if line.startswith("|--"):
                head = lines.index(before)
                assert lines[head - 1] == "", (lines[head - 1], before)


def test_every_plot_of_the_card_is_there(run: Path):
    tell(run, 4)

    named = re.findall(r"!\[[^\]]+\]\((plots/[a-z-]+\.png)\)", (run / "README.md").read_text("utf-8"))
    assert {Path(name).stem for name in named} == set(SHOWN) - {"difficulty", "scores"}
    for name in named:
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_the_head_of_the_card_is_what_the_hub_reads(run: Path):
    from huggingface_hub import DatasetCard

    tell(run, 4)

    data = DatasetCard.load(run / "README.md").data.to_dict()
    assert data["configs"] == [{"config_name": "default", "data_files": "dataset/sft.parquet"}]
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["text-generation"]
    assert data["license"] == "other"


def test_the_card_of_pairs_shows_both_sides(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)
    rows = [pair(0, "which of the two", "this one here", "that one there")]
    write_set(path, rows, "dpo")
    write_society(path, rows)

    tell(path, 1)

    card = (path / "README.md").read_text("utf-8")
    assert "- preference\n" in card
    assert "words in the rejected answer" in card
    assert "rejected:\n\n    that one there" in card


def test_a_folder_of_curate_has_a_card_too(tmp_path: Path):
    told = {"command": "curate", "is_final": True, "reason": "complete", "n_candidates": 3}
    path = open_folder(tmp_path / "run", 3, figures=told)
    write_set(path, [example(n, f"what is {n}", "it is") for n in range(2)], "mine")
    write_rows(path, "rejected", [dropped(1, "exact duplicate")])

    card = write_curated_card(path).read_text("utf-8")

    assert "2 rows kept of 3 read" in card
    assert '  data_files: "dataset/mine.parquet"\n' in card
    assert "| no exact duplicate | 2 | 1 |" in card


def test_what_is_unreadable_in_the_figures_file_is_left_out(run: Path):
    tell(run, 4, n_calls=77, cost=[1], benchmarks=[{"name": "exam", "items": 4}])

    card = (run / "README.md").read_text("utf-8")
    assert "77 sent in the last start" in card
    assert "dollars" not in card
    assert "| exam | 4 | text |" in card


def test_hostile_text_stays_text_in_the_card(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)
    rows = [example(0, HOSTILE, HOSTILE, category=HOSTILE)]
    write_set(path, rows)
    write_society(path, rows, HOSTILE)
    write_rows(path, "rejected", [dropped(1, HOSTILE, detail=HOSTILE)])

    tell(path, 1, "generate", name=HOSTILE, model=HOSTILE, describe=HOSTILE, kind='a"\nlicense: mit')

    card = (path / "README.md").read_text("utf-8")
    outside = [line for line in card.splitlines() if not line.startswith("    ")]
    assert not [line for line in outside if re.search(r"(?<!\\)<script|(?<!\\)\]\(javascript", line)]
    assert len([line for line in outside if line.startswith("# ")]) == 1
    assert outside.count("license: mit") == 0
    assert "\u202e" not in card


def test_plots_are_the_same_bytes_each_time(run: Path):
    charts = build_charts(("run", gather(run)))

    first = {chart.name: (run / "plots" / f"{chart.name}.png").read_bytes() for chart in write_plots(run, charts)}
    again = {chart.name: (run / "plots" / f"{chart.name}.png").read_bytes() for chart in write_plots(run, charts)}

    assert first == again
    assert len(first) >= 5


def test_labels_that_matplotlib_would_take_for_formulas_are_drawn(tmp_path: Path):
    labels = ("$\\frac{1}{", "costs $5 or $6", "\u6f22\u5b57", "%s {x}")
    chart = Chart("verbs", "$title", "x_{$", "$", labels, (Series("s", (1.0, 2.0, 3.0, 4.0)),), is_horizontal=True)

    plot(chart, tmp_path / "a.png")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_fails_is_left_out_and_named(run: Path, caplog: pytest.LogCaptureFixture):
    charts = build_charts(("run", gather(run)))
    (run / "plots" / "funnel.png").mkdir(parents=True)

    with caplog.at_level(logging.WARNING, "matrix_dspy"):
        written = write_plots(run, charts)

    assert "funnel" not in {chart.name for chart in written}
    assert "categories" in {chart.name for chart in written}
    assert "funnel.png was not drawn" in caplog.text


def test_a_plot_of_an_earlier_start_goes_when_it_has_no_figures_any_more(run: Path):
    charts = build_charts(("run", gather(run)))
    write_plots(run, charts)

    written = write_plots(run, {"funnel": charts["funnel"]})

    assert [chart.name for chart in written] == ["funnel"]
    assert [file.name for file in (run / "plots").iterdir()] == ["funnel.png"]
