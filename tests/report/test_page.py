"""The page and the comparison as a browser shows them, with the worst that texts can hold."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.errors import RunError
from matrix_dspy.report.comparing import find_shared, write_comparison
from matrix_dspy.report.gathering import gather
from matrix_dspy.report.page import dump_json, write_report
from matrix_dspy.types import Critique, Overlap
from tests.report.folders import FINAL, dropped, example, open_folder, pair, write_rows, write_set, write_society

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    '"><svg onload="window.hacked = 3"><style>body { display: none }</style><base href="https://evil.example/">'
    "<a href=\"javascript:window.hacked=4\">link</a> <meta http-equiv=refresh content='0;url=https://evil.example'>"
    "{{ 7 * 7 }} {% raw %} %{x} %s <!-- --> ]]> &lt;b&gt; $\\frac{1}{0}$ [a](javascript:window.hacked=5) | cell |\n"
    "\u202eright to left\u2066 \x00\x07\x1b[31m \u2028\u2029 " + "e" + "\u0301" * 300
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Visit:
    """A page in the browser, with what it tried to do."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, *, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.url = f"file://{path}"
        self.page.goto(self.url)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def wait_until(self, code: str) -> None:
        """Wait for a line of JavaScript to come true; Playwright's own way needs `eval`, which the page forbids."""
        for _ in range(400):
            if self.evaluate(code):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"it did not come true: {code}")

    def evaluate(self, code: str) -> Any:
        """Return what a line of JavaScript comes to on the page."""
        return self.page.evaluate(code)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every free text is hostile, its name included."""
    told = {
        **FINAL,
        "name": HOSTILE, "describe": HOSTILE, "models": {HOSTILE: HOSTILE}, "programs": {HOSTILE: {"model": HOSTILE}},
        "program_hashes": {HOSTILE: HOSTILE}, "benchmarks": [{"name": HOSTILE, "items": 3, "has_text": False}],
        "selection": {HOSTILE: HOSTILE}, "refinement": {HOSTILE: [HOSTILE]}, "began": HOSTILE,
        "diversity": {"rows": [[HOSTILE, HOSTILE, HOSTILE, HOSTILE]]}, "refusal_version": HOSTILE,
        "estimate": [{"what": HOSTILE, "low": 1, "expected": 2, "high": 3, "actual": 2}],
    }  # fmt: skip
    path = open_folder(tmp_path_factory.mktemp("hostile") / "run", 30, figures=told, synthesis__need=HOSTILE)
    changes = {"category": HOSTILE, "root_verb": HOSTILE, "model": HOSTILE, "quality": "good", "score": 3.5}
    rows = [pair(n, HOSTILE, HOSTILE * 3, HOSTILE, **changes) for n in range(25)]
    long = "word" * 100_000
    write_set(path, [*rows, pair(99, long, long, long, category="x" * 5000)])
    write_society(path, rows, HOSTILE)
    rejected = [dropped(n, reason, text=HOSTILE, detail=HOSTILE) for n, reason in enumerate(["leak", HOSTILE])]
    twin = dropped(7, "near duplicate", text=HOSTILE + " too", twin=rows[0].instruction_id, score=0.7)
    write_rows(path, "rejected", [*rejected, twin, dropped(8, "contamination", HOSTILE, HOSTILE, twin=HOSTILE)])
    overlap = Overlap(
        overlap_id="o", row_id=rejected[0].id, field="instruction", benchmark=HOSTILE, item=HOSTILE,
        kind="run of words", shared=HOSTILE,
    )  # fmt: skip
    write_rows(path, "overlaps", [overlap])
    critique = Critique(
        critique_id="c", response_id=rows[0].response_id, instruction_id=rows[0].instruction_id, round=0, text=HOSTILE,
        revision=HOSTILE, is_kept=True, verdict=HOSTILE,
    )  # fmt: skip
    write_rows(path, "critiques", [critique])
    return path


@pytest.mark.parametrize("width", [1200, 390])
def test_hostile_text_does_not_run_fetch_or_break_the_page(hostile: Path, browser: Any, width: int):
    path = write_report(hostile)

    visit = Visit(browser, path, width)

    visit.wait_until("document.querySelectorAll('.js-plotly-plot .bars').length > 4")
    visit.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert visit.faults == []
    assert visit.requests == [visit.url]
    assert visit.evaluate("window.hacked") is None
    assert (
        visit.evaluate("[...document.querySelectorAll('main img, main svg[onload], main base, main style')].length")
        == 0
    )
    own = "a => a.hash && a.getAttribute('href') === a.hash"
    assert visit.evaluate(f"[...document.querySelectorAll('a')].every({own})")
    assert visit.evaluate("document.querySelectorAll('script').length") == 3
    assert visit.evaluate("document.documentElement.scrollWidth") <= width
    shown = visit.evaluate("document.body.textContent")
    assert "window.hacked = 1" in shown and "{{ 7 * 7 }}" in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07\x1b]", shown)
    assert visit.evaluate("document.title").endswith(": report")
    assert path.stat().st_size < 12_000_000


def test_a_script_that_got_in_would_still_not_run(tmp_path: Path, browser: Any):
    path = open_folder(tmp_path / "run", 2)
    write_set(path, [example(n, f"a {n}", "b") for n in range(2)])
    page = write_report(path)
    text = page.read_text("utf-8")
    planted = (
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><img src='https://evil.example/'>"
    )
    page.write_text(text.replace("</main>", f"{planted}</main>"), encoding="utf-8")

    visit = Visit(browser, page)

    visit.wait_until("document.querySelectorAll('.js-plotly-plot .bars').length > 0")
    assert visit.evaluate("window.hacked") is None
    assert any("Content Security Policy" in fault for fault in visit.faults)


def test_plots_show_the_counts_and_follow_the_colour_scheme(tmp_path: Path, browser: Any):
    path = open_folder(tmp_path / "run", 6)
    write_set(path, [example(n, f"a {n}", "b", category="x" if n < 4 else "<b>y</b>") for n in range(6)])

    visit = Visit(browser, write_report(path))

    place = ".plot[data-chart=categories]"
    visit.page.wait_for_selector(f"{place} .bars")
    assert visit.evaluate(f"document.querySelector('{place}').data[0].x") == [4, 2]
    labels = visit.evaluate(f"[...document.querySelectorAll('{place} .ytick')].map(each => each.textContent)")
    assert labels == ["x", "<b>y</b>"]
    light = visit.evaluate(f"document.querySelector('{place}').layout.font.color")
    visit.page.emulate_media(color_scheme="dark")
    visit.wait_until(f"document.querySelector('{place}').layout.font.color !== '{light}'")


def test_every_section_says_what_it_shows(hostile: Path, browser: Any):
    visit = Visit(browser, write_report(hostile))

    told = visit.evaluate(
        "[...document.querySelectorAll('section')].map(s => [s.id, s.querySelector('h2 + p.lead')?.textContent ?? ''])"
    )
    linked = visit.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")

    assert [name for name, _ in told] == linked
    assert len(linked) == 14
    assert all(len(sentence) > 30 and sentence.strip().endswith(".") for _, sentence in told)


def test_the_page_of_a_run_without_rows_or_tables_says_so(tmp_path: Path):
    path = open_folder(tmp_path / "run", 5, figures=None)

    text = write_report(path).read_text("utf-8")

    assert "Stopped before its end" in text
    assert "No rows are kept yet." in text
    assert "Not decontaminated: no --benchmarks given." in text


def test_the_same_folder_gives_the_same_page(tmp_path: Path):
    path = open_folder(tmp_path / "run", 3)
    rows = [example(n, f"a {n}", "b") for n in range(3)]
    write_set(path, rows)
    write_society(path, rows)

    assert write_report(path).read_bytes() == write_report(path).read_bytes()


def test_diversity_is_measured_where_the_run_did_not(tmp_path: Path):
    path = open_folder(tmp_path / "run", 3, figures={"is_final": True, "reason": "complete"})
    write_set(path, [example(n, f"How do I mend clock number {n} before noon?", "b") for n in range(3)])

    gathered = gather(path)

    assert {"distinct-1", "self-BLEU"} <= {row[0] for row in gathered.diversity}
    assert "all 3 rows" in gathered.diversity_note


@given(st.recursive(st.text() | st.integers(-9, 9), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_stays_itself_and_cannot_end_its_element(values: Any):
    text = dump_json(values)

    assert orjson.loads(text) == values
    assert not set(text) & set("<>&\u2028\u2029")


def test_two_runs_stand_side_by_side(tmp_path: Path, browser: Any, hostile: Path):
    other = open_folder(tmp_path / "run", 3)
    write_set(other, [example(n, f"a {n}", "b") for n in range(3)])

    visit = Visit(browser, write_comparison(hostile, other, tmp_path / "both.html"))

    visit.wait_until("document.querySelectorAll('.js-plotly-plot .bars').length > 4")
    assert visit.faults == []
    assert visit.requests == [visit.url]
    assert visit.evaluate("window.hacked") is None
    assert visit.evaluate("document.querySelector('.plot[data-chart=categories]').data.length") == 2
    assert visit.evaluate("document.documentElement.scrollWidth") <= 1200


def test_shared_rows_are_found_whatever_their_case(tmp_path: Path):
    one, two = open_folder(tmp_path / "one", 3), open_folder(tmp_path / "two", 2)
    write_set(one, [example(0, "Mend my clock!", "Yes."), example(1, "mend my  CLOCK", "No."), example(2, "else", "b")])
    write_set(two, [example(0, "mend my clock", "yes"), example(1, "other", "b")])

    shared = find_shared(gather(one), gather(two))

    assert shared.n_requests == (2, 1)
    assert shared.n_rows == (1, 1)


def test_a_run_is_not_compared_with_itself(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)

    with pytest.raises(RunError, match="one and the same run"):
        write_comparison(path, tmp_path / "x" / ".." / "run")
