"""What a user would get wrong, tried on the real parts: one clear sentence, nothing spoilt, nothing paid for."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from aiohttp import web

from matrix_dspy import pipeline
from matrix_dspy.bulk.folder import read_run_id, read_run_table
from matrix_dspy.bulk.program import run_async
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import RECIPES, Config, apply_kind, load_kind, load_recipe
from matrix_dspy.curating import Curated, curate_files
from matrix_dspy.curation.base import Candidate
from matrix_dspy.curation.filters import LengthFilter
from matrix_dspy.delivery.merging import merge
from matrix_dspy.delivery.pushing import plan_push
from matrix_dspy.delivery.reading import read_dataset
from matrix_dspy.errors import ConfigError, MatrixError, RunError, TableError
from matrix_dspy.gates import build_curator, check_selection, load_benchmarks
from matrix_dspy.planning import estimate_run, shrink_config
from matrix_dspy.report.page import write_report
from matrix_dspy.report.records import read_records
from tests.toys import ToyEmbedder

SFT = (RECIPES / "kinds" / "sft.toml").read_text("utf-8")
QUESTIONS = [
    "Explain in plain words how a violin is cleaned after a long winter in the attic.",
    "What should somebody look at first when the kitchen pump begins to hum at night?",
    "Write a short notice that tells the neighbours of the garden party on Saturday.",
    "Compare the bus and the bicycle for a way of four miles with two heavy bags.",
    "Give me three reasons why a letter box ought to be emptied before a holiday.",
    "Which questions would you ask an old man who repairs copper kettles for a living?",
]


def write_kind(path: Path, line: str = "", old: str = "", new: str = "") -> str:
    """Write the shipped kind sft with a line put in place of the one of that key, or words replaced once."""
    text = SFT
    if line:
        key = line.partition(" ")[0]
        text = line + "\n" + re.sub(rf"(?m)^{key} *=.*\n", "", text, count=1)
    if old:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, "utf-8")
    return str(path)


def build_config(**changes: object) -> Config:
    """Build the config of a run of a few rows in about a second."""
    small = {"n": 2, "population.n_agents": 8, "operation.refresh_s": 0, "operation.plots": False}
    return load_recipe("preview", small | {key.replace("__", "."): value for key, value in changes.items()})


def generate(config: Config, path: Path) -> pipeline.Result:
    """Run the pipeline in this process."""
    return run_async(pipeline.generate(config, path, progress=Progress(), is_quiet=True))


def write_conversations(path: Path, questions: list[str] | None = None) -> Path:
    """Write a data set of conversations."""
    rows = [
        {"messages": [{"role": "user", "content": each}, {"role": "assistant", "content": f"Begin slowly. {each}"}]}
        for each in questions or QUESTIONS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_pairs(path: Path) -> Path:
    """Write a data set of preference pairs."""
    rows = [
        {
            "prompt": [{"role": "user", "content": each}],
            "chosen": [{"role": "assistant", "content": f"Begin slowly and look at it twice. {each}"}],
            "rejected": [{"role": "assistant", "content": "There is not much that could be said about it."}],
        }
        for each in QUESTIONS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def curate(source: Path, out: Path, **changes: object) -> Curated:
    """Curate a file in this process."""
    config = load_recipe("tiny", {key.replace("__", "."): value for key, value in changes.items()})
    return curate_files([source], out, config, {}, 1)


@pytest.mark.parametrize(
    ("line", "old", "new", "said"),
    [
        ('shape = "triple"', "", "", "shape = 'triple' in the kind file"),
        ('checks = "code"', "", "", "write a list"),
        ('name = "../../evil"', "", "", "write small letters, digits"),
        ('name = ".."', "", "", "write small letters, digits"),
        ('requirement = " "', "", "", "requirement = ' ' in the kind file"),
        ("", 'name = "information"', 'name = ""', "categories.0.name = ''"),
        ("", 'name = "advice"', 'name = "information"', "two of the categories are called 'information'"),
        ("surprise = 1", "", "", "unknown key 'surprise' in the kind file"),
        ("thinking_tokens = [9, 2]", "", "", "thinking_tokens = 9, 2"),
    ],
)
def test_a_broken_kind_file_is_named_with_its_fault(tmp_path: Path, line: str, old: str, new: str, said: str):
    path = write_kind(tmp_path / "mine.toml", line, old, new)
    with pytest.raises(ConfigError) as caught:
        load_kind(path)
    assert said in str(caught.value) and repr(path) in str(caught.value)
    assert "pattern" not in str(caught.value) and "tuple" not in str(caught.value)


def test_a_kind_is_called_by_its_name_wherever_its_file_lies(tmp_path: Path):
    config = build_config(synthesis__kind=write_kind(tmp_path / "file.toml", 'name = "mine"'))
    assert pipeline.default_folder(config, "generate") == Path("runs/preview-mine")


def test_an_unknown_language_is_refused_before_anything_is_made(tmp_path: Path):
    path = tmp_path / "run"
    for config in (build_config(synthesis__language="Klingonese"), build_config(synthesis__language="Kannada")):
        with pytest.raises(ConfigError, match=r"Klingonese|Kannada"):
            generate(config, path)
        with pytest.raises(ConfigError, match=r"Klingonese|Kannada"):
            run_async(estimate_run(config))
        assert not path.exists()


def test_a_language_that_nobody_can_tell_does_where_its_filter_is_off(tmp_path: Path):
    config = build_config(synthesis__language="Kannada", curation__off=["language"])
    kind = load_kind("sft")
    curator = build_curator(apply_kind(config, kind), kind, [], [], ToyEmbedder(), [])
    assert curator.check_instruction("instruction-1", QUESTIONS[0], []) is None
    assert curator.find_root_verb(QUESTIONS[0]) is None
    found = curate(
        write_conversations(tmp_path / "rows.jsonl"),
        tmp_path / "out",
        synthesis__language="Kannada",
        curation__off=["language"],
    )
    assert found.n_kept == len(QUESTIONS)


def test_what_a_later_filter_drops_is_nobodys_twin(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": QUESTIONS[0]}) + "\n", "utf-8")
    kind = load_kind("sft")
    config = apply_kind(build_config(curation__benchmarks=str(tmp_path)), kind)
    curator = build_curator(config, kind, [], [], ToyEmbedder(), load_benchmarks(config))
    dropped = [curator.check_instruction(f"instruction-{number}", QUESTIONS[0], []) for number in range(2)]
    assert [drop and drop.reason for drop in dropped] == ["contamination", "contamination"]


def test_a_dump_of_characters_is_no_text_of_few_words():
    words = LengthFilter(5, 400)
    drop = words.judge(Candidate("instruction-1", f"Please say what this is for: {'A' * 100_000}"))
    assert drop is not None and drop.reason == "length" and "100,029 characters" in drop.detail
    assert words.judge(Candidate("instruction-2", " ".join(["incomprehensibilities"] * 400))) is None


def test_a_refused_start_does_not_bind_the_next(tmp_path: Path):
    path = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"--set selection\.force=true"):
        generate(build_config(selection__on=True), path)
    assert generate(build_config(), path).is_complete
    with pytest.raises(RunError, match="holds a run with"):  # now there is something to lose
        generate(build_config(seed=1), path)


@pytest.mark.parametrize(
    ("kind", "selection", "said"),
    [
        ("sft", {"scorer": "reward"}, "give --reward-model"),
        ("sft", {"scorer": "verifier"}, "kind 'sft' has neither code nor worked-out numbers"),
        ("code", {"scorer": "verifier"}, None),
        ("reason", {"scorer": "verifier"}, None),
    ],
)
def test_a_scorer_that_could_score_nothing_is_refused(kind: str, selection: dict[str, str], said: str | None):
    changes = {f"selection__{key}": value for key, value in selection.items()}
    config = build_config(synthesis__kind=kind, selection__on=True, **changes)
    if said is None:
        check_selection(config, load_kind(kind))
        return
    with pytest.raises(ConfigError, match=said):
        check_selection(config, load_kind(kind))


def test_a_judge_is_not_used_unmeasured_because_a_reward_model_is_named(tmp_path: Path):
    config = build_config(selection__on=True, selection__scorer="judge", selection__reward_model="nowhere")
    with pytest.raises(ConfigError, match="no calibration"):
        generate(config, tmp_path / "run")


def test_a_reward_model_that_nobody_asks_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert generate(build_config(selection__reward_model="nowhere"), tmp_path / "run").is_complete
    assert "add --select" in caplog.text


async def _serve(answer: Callable[[web.Request], web.Response], work: Callable[[str], object]) -> None:
    """Serve one answer to whatever is asked, and do the work beside it."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "toy"}]})

    async def reply(request: web.Request) -> web.Response:
        return answer(request)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/{anything:.*}", reply)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        await work(f"http://127.0.0.1:{runner.addresses[0][1]}")  # type: ignore[misc]
    finally:
        await runner.cleanup()


def _say_nothing(_: web.Request) -> web.Response:
    message = {"role": "assistant", "content": "I would rather not say."}
    return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def _score_nan(_: web.Request) -> web.Response:
    return web.Response(text='{"data": [{"index": 0, "probs": [NaN]}]}', content_type="application/json")


@pytest.mark.parametrize(
    ("answer", "changes", "reason", "detail"),
    [
        (_say_nothing, {"lm__judge": "{}/v1", "curation__judge_threshold": 3}, "unjudged", "gave no verdict"),
        (_score_nan, {"selection__on": True, "selection__reward_model": "{}"}, "no score", "by the reward model"),
    ],
)
def test_a_judge_without_a_verdict_or_a_number_stops_the_run_and_says_so(
    tmp_path: Path, answer: Callable[[web.Request], web.Response], changes: dict[str, object], reason: str, detail: str
):
    ends: list[pipeline.Result] = []

    async def work(url: str) -> None:
        given = {key: value.format(url) if isinstance(value, str) else value for key, value in changes.items()}
        ends.append(await pipeline.generate(build_config(**given), tmp_path, progress=Progress(), is_quiet=True))

    run_async(_serve(answer, work))
    (end,) = ends
    assert end.n_kept == 0 and f"for '{reason}'" in end.reason and detail in end.reason
    rejected = read_run_table(tmp_path, "rejected")
    assert set(rejected.filter(pl.col("noun") != "profile")["reason"]) == {reason}


def test_an_empty_answer_is_no_example_of_anything(tmp_path: Path):
    def answer(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": ""}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    ends: list[pipeline.Result] = []

    async def work(url: str) -> None:
        config = build_config(lm__writer=f"{url}/v1")
        ends.append(await pipeline.generate(config, tmp_path, progress=Progress(), is_quiet=True))

    run_async(_serve(answer, work))
    assert "for 'empty' (the answer was empty)" in ends[0].reason and "for example" not in ends[0].reason


def test_curate_takes_the_kind_that_fits_the_rows(tmp_path: Path):
    pairs, rows = write_pairs(tmp_path / "pairs.jsonl"), write_conversations(tmp_path / "rows.jsonl")
    assert (curate(pairs, tmp_path / "a").path / "dataset" / "dpo.parquet").is_file()
    assert (curate(rows, tmp_path / "b").path / "dataset" / "sft.parquet").is_file()
    with pytest.raises(ConfigError, match="the rows are pairs, and kind 'sft' is not; give --kind dpo"):
        curate(pairs, tmp_path / "c", synthesis__kind="sft")
    with pytest.raises(ConfigError, match="the rows are conversations, and kind 'dpo' is not"):
        curate(rows, tmp_path / "d", synthesis__kind="dpo")
    assert not (tmp_path / "c").exists() and not (tmp_path / "d").exists()


def test_curate_keeps_no_row_with_a_turn_that_is_not_to_be_learnt(tmp_path: Path):
    rows = write_conversations(tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    next(turn for turn in lines[0]["messages"] if turn["role"] == "assistant")["weight"] = 0
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    folder = curate(rows, tmp_path / "out").path

    assert read_run_table(folder, "rejected")["reason"].to_list() == ["other weight"]


def test_curate_advises_nothing_that_it_cannot_do(tmp_path: Path):
    curate(write_conversations(tmp_path / "rows.jsonl"), tmp_path / "out")
    other = write_conversations(tmp_path / "rows.jsonl", QUESTIONS[:3])
    with pytest.raises(RunError, match=r"give another folder with --out$"):
        curate(other, tmp_path / "out")


def test_a_benchmark_without_a_prompt_says_how_to_name_one(tmp_path: Path):
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n", "utf-8")
    with pytest.raises(TableError) as caught:
        generate(build_config(curation__benchmarks=str(folder)), tmp_path / "run")
    assert """--set 'curation.benchmark_columns={"x.csv" = "..."}'""" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_more_groups_than_people_are_refused_before_anything_is_made(tmp_path: Path):
    with pytest.raises(ConfigError, match="200 groups cannot be formed from 8 agents"):
        generate(build_config(simulation__n_groups=200), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_chain_is_no_recipe_where_one_is_wanted():
    with pytest.raises(ConfigError, match="is a chain of others; name one of them: type1-sft, type2-dpo"):
        load_recipe("type1-sft+type2-dpo")


def test_an_estimate_of_a_selection_counts_who_scores(tmp_path: Path):
    config = build_config(synthesis__kind="reason", selection__on=True, selection__force=True)
    sizes = shrink_config(config, "generate", 8).selection
    assert (sizes.scorer, sizes.force) == ("auto", True)
    rewarded = build_config(selection__on=True, selection__reward_model=str(tmp_path))
    sizes = shrink_config(rewarded, "generate", 8).selection
    assert (sizes.scorer, sizes.reward_model) == ("judge", "")
    made = run_async(estimate_run(config))
    assert made.money is not None and made.money.high == 0.0  # the model to be trained is a rehearsal too
    assert "response_judge" not in {stage.program for stage in made.stages}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small runs of one kind."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert generate(build_config(seed=seed, n=3), folder / str(seed)).is_complete
    return [folder / "0", folder / "1"]


def test_a_merged_folder_is_a_run_to_report_and_to_merge_again(tmp_path: Path, runs: list[Path]):
    merged = merge(runs, tmp_path / "m")
    assert read_run_id(merged.path) == merged.merge_id
    records = read_records(merged.path)
    assert (records.status, len(records.rows)) == ("complete", merged.n_rows)
    page = write_report(merged.path).read_text("utf-8")
    assert f"{merged.n_rows} rows" in page or f">{merged.n_rows}<" in page
    again = merge([merged.path, runs[0]], tmp_path / "again")
    assert again.n_rows == merged.n_rows and again.n_dropped == {"exact duplicate": 3}
    assert merge([runs[1], runs[0]], tmp_path / "m").merge_id == merged.merge_id
    for refused in (merged.path, curate(write_conversations(tmp_path / "rows.jsonl"), tmp_path / "c").path):
        with pytest.raises(RunError, match=r"put together out of other runs|a run of curate"):
            pipeline.mark_retries(refused)


def test_a_simulation_holds_no_data_set_to_export(tmp_path: Path):
    work = pipeline.simulate(build_config(n=1), tmp_path, progress=Progress(), is_quiet=True)
    assert run_async(work).is_complete
    with pytest.raises(TableError, match="does not hold a data set yet"):
        read_dataset(tmp_path)


def test_a_set_without_rows_is_not_sent(tmp_path: Path):
    end = generate(build_config(curation__min_words=399), tmp_path)
    assert end.n_kept == 0 and "'length'" in end.reason
    with pytest.raises(RunError, match="holds no rows"):
        plan_push(tmp_path, "somebody/set")


def test_every_error_a_user_meets_is_one_line(tmp_path: Path, runs: list[Path]):
    told: list[str] = []
    wrong: list[Callable[[], object]] = [
        lambda: load_kind(str(tmp_path)),
        lambda: load_kind(str(tmp_path / "no.toml")),
        lambda: merge(runs[:1], tmp_path / "m"),
        lambda: merge([runs[0], tmp_path], tmp_path / "m"),
        lambda: write_report(tmp_path),
        lambda: plan_push(runs[0], "../../x"),
        lambda: read_dataset(tmp_path / "nothing.jsonl"),
        lambda: generate(build_config(curation__benchmarks=str(tmp_path)), tmp_path / "run"),
    ]
    for one in wrong:
        with pytest.raises(MatrixError) as caught:
            one()
        told.append(str(caught.value))
    assert all(len(words) < 300 and "\n" not in words for words in told)
