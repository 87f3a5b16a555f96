import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.lm_eval_files import (
    TASKS,
    Results,
    Sample,
    build_samples,
    list_target,
    read_results,
    read_samples,
    summarise,
    write_completions,
    write_responses,
    write_results,
    write_samples,
)

STAMP = "2025-01-31T12-00-00.000000"
DOCS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "Two boats carry three crates each. How many?", "answer": "2 * 3 = 6\n#### 6"},
    "humaneval": {
        "task_id": "HumanEval/900",
        "prompt": 'def knots(miles):\n    """Give knots."""\n',
        "canonical_solution": "    return miles / 1.15\n",
        "test": "def check(candidate):\n    assert candidate(1.15) == 1\n",
        "entry_point": "knots",
    },
    "mbpp": {
        "task_id": 900,
        "text": "Write a function to add a crate.",
        "code": "def add(n): return n + 1",
        "test_list": ["assert add(1) == 2", "assert add(2) == 3", "assert add(3) == 4", "assert add(4) == 5"],
    },
    "ifeval": {
        "key": 900,
        "prompt": "Write of a pier, no commas, in lower case.",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {}],
    },
}
SCORES: dict[str, Any] = {
    "gsm8k": {"strict-match": {"exact_match": 0.0}, "flexible-extract": {"exact_match": 1.0}},
    "humaneval": {"pass@1": 1.0},
    "mbpp": {"pass_at_1": 0.0},
    "ifeval": {
        "prompt_level_strict_acc": False,
        "inst_level_strict_acc": [True, False],
        "prompt_level_loose_acc": True,
        "inst_level_loose_acc": [True, True],
    },
}
# a line of lm-eval 0.4.13, cut to what matters; the same document as above
LOGGED = {
    "doc_id": 0,
    "doc": DOCS["gsm8k"],
    "target": DOCS["gsm8k"]["answer"],
    "arguments": {
        "gen_args_0": {"arg_0": "Question: ...\nAnswer:", "arg_1": {"until": ["Question:"], "do_sample": False}}
    },
    "resps": [["so #### 6"]],
    "filtered_resps": ["6"],
    "filter": "strict-match",
    "metrics": ["exact_match"],
    "doc_hash": "",
    "prompt_hash": "",
    "target_hash": "",
    "exact_match": 1.0,
}


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def build(task: str, doc_id: int = 0, reply: str = "six: 6", **others: Any) -> list[Sample]:
    return build_samples(task, doc_id, DOCS[task], "Please answer.", [reply], SCORES[task], **others)


@pytest.mark.parametrize("task", TASKS)
def test_samples_of_every_task_are_written_with_the_harness_fields_and_read_back(tmp_path: Path, task: str):
    samples = [each for i in range(3) for each in build(task, i, generation={"temperature": 0.0})]

    path = write_samples(samples, tmp_path, task, STAMP)

    assert path.name == f"samples_{task}_{STAMP}.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == 3 * len(TASKS[task].filters)
    assert (LOGGED.keys() - {"exact_match"}) | set(TASKS[task].metrics) <= rows[0].keys()
    assert read_samples(path) == sorted(samples, key=lambda each: (each.filter, each.doc_id))


def test_a_line_the_harness_wrote_is_read(tmp_path: Path):
    (found,) = read_samples(write_lines(tmp_path / "samples_gsm8k_x.jsonl", LOGGED))

    assert found == Sample(
        doc_id=0,
        doc=DOCS["gsm8k"],
        target=DOCS["gsm8k"]["answer"],
        prompt="Question: ...\nAnswer:",
        replies=("so #### 6",),
        filtered="6",
        metrics={"exact_match": 1.0},
        filter="strict-match",
        generation={"until": ["Question:"], "do_sample": False},
    )


def test_arguments_as_the_harness_returns_them_are_read_too(tmp_path: Path):
    row = {**LOGGED, "arguments": [["Question: ...", {"until": []}]]}

    (found,) = read_samples(write_lines(tmp_path / "s.jsonl", row))

    assert (found.prompt, found.generation) == ("Question: ...", {"until": []})


def test_hashes_are_those_of_the_harness(tmp_path: Path):
    path = write_samples(build("gsm8k"), tmp_path, "gsm8k", STAMP)

    row = json.loads(path.read_text("utf-8").splitlines()[0])
    document = json.dumps(DOCS["gsm8k"], indent=2, ensure_ascii=False)
    assert row["doc_hash"] == hashlib.sha256(document.encode()).hexdigest()
    assert row["prompt_hash"] == hashlib.sha256(b"Please answer.").hexdigest()
    assert row["target_hash"] == hashlib.sha256(DOCS["gsm8k"]["answer"].encode()).hexdigest()


def test_targets_and_readings_are_those_of_each_task():
    assert list_target("humaneval", DOCS["humaneval"]).endswith("== 1\n\ncheck(knots)")
    assert list_target("mbpp", DOCS["mbpp"]) == "assert add(1) == 2\nassert add(2) == 3\nassert add(3) == 4"
    assert list_target("ifeval", DOCS["ifeval"]) == "0"
    assert build("humaneval", reply="    return 1\n")[0].filtered == [DOCS["humaneval"]["prompt"] + "    return 1\n"]
    strict, flexible = build("gsm8k", filtered={"flexible-extract": "6"})
    assert (strict.filter, strict.filtered, strict.metrics) == ("strict-match", "six: 6", {"exact_match": 0.0})
    assert (flexible.filter, flexible.filtered, flexible.metrics) == ("flexible-extract", "6", {"exact_match": 1.0})


def test_documents_of_the_shared_benchmarks_have_targets(shared_data: Path):
    folder = shared_data / "benchmarks"
    with gzip.open(folder / "HumanEval.jsonl.gz", "rt") as file:
        humaneval = [json.loads(line) for line in file]
    sets = {"humaneval": humaneval}
    for task, name in (("gsm8k", "gsm8k_test"), ("mbpp", "mbpp"), ("ifeval", "ifeval_en_input_data")):
        sets[task] = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]

    assert {task: len(docs) for task, docs in sets.items()} == {
        "humaneval": 164,
        "gsm8k": 1319,
        "mbpp": 974,
        "ifeval": 541,
    }
    assert all(list_target(task, doc) for task, docs in sets.items() for doc in docs)


def test_figures_are_means_with_errors_and_parts_count_alone():
    samples = []
    for i in range(4):
        scores = {**SCORES["ifeval"], "prompt_level_strict_acc": i < 1, "inst_level_strict_acc": [True] * i}
        samples += build_samples("ifeval", i, DOCS["ifeval"], "p", ["r"], scores)

    found = summarise("skiff", {"ifeval": samples})

    figures = found.tasks["ifeval"]
    assert figures["prompt_level_strict_acc,none"] == 0.25
    assert figures["prompt_level_strict_acc_stderr,none"] == pytest.approx(0.25)
    assert figures["inst_level_strict_acc,none"] == 1.0
    assert figures["inst_level_strict_acc_stderr,none"] is None
    assert found.n_samples == {"ifeval": 4}


def test_results_are_written_with_the_harness_fields_and_read_back(tmp_path: Path):
    results = summarise("org/skiff", {"gsm8k": [each for i in range(5) for each in build("gsm8k", i)]}, n_shot=2)

    path = write_results(results, tmp_path, STAMP)

    row = json.loads(path.read_text("utf-8"))
    assert path.name == f"results_{STAMP}.json"
    assert row["results"]["gsm8k"]["exact_match,flexible-extract"] == 1.0
    assert row["n-samples"] == {"gsm8k": {"original": 5, "effective": 5}}
    assert row["model_name_sanitized"] == "org__skiff"
    assert row["higher_is_better"] == {"gsm8k": {"exact_match": True}}
    assert read_results(path) == results


def test_results_the_harness_wrote_are_read(tmp_path: Path):
    path = tmp_path / "results_x.json"
    figures = {"name": "t", "alias": "t", "sample_len": 6, "acc,none": 0.25, "acc_stderr,none": "N/A"}
    path.write_text(json.dumps({"results": {"t": figures}, "date": 1.5, "config": {"model": "hf"}}), "utf-8")

    assert read_results(path) == Results("", {"t": {"acc,none": 0.25, "acc_stderr,none": None}}, {})


@given(
    st.lists(
        st.builds(
            Sample,
            doc_id=st.integers(0, 50),
            doc=st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.booleans(), max_size=3),
            target=st.text(max_size=9),
            prompt=st.text(max_size=9),
            replies=st.lists(st.text(max_size=9), max_size=3).map(tuple),
            filtered=st.text(max_size=9) | st.lists(st.text(max_size=9), max_size=2),
            metrics=st.fixed_dictionaries({"acc": st.floats(0, 1) | st.booleans() | st.lists(st.booleans())}),
            filter=st.sampled_from(["none", "other"]),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda each: (each.doc_id, each.filter),
    )
)
def test_any_samples_survive_the_way_to_disk(tmp_path_factory, samples: list[Sample]):
    path = write_samples(samples, tmp_path_factory.mktemp("lm"), "any_task", STAMP)

    assert read_samples(path) == sorted(samples, key=lambda each: (each.filter, each.doc_id))


def spoil(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**LOGGED, **changes}.items() if value != "gone"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (spoil(doc_id="gone"), "lacks 'doc_id'"),
        (spoil(doc_id="0"), "'doc_id': '0', which is no whole number"),
        (spoil(doc_id=True), "'doc_id': True, which is no whole number"),
        (spoil(doc="text"), "'doc' in line 1 .* is 'text', which is no object"),
        (spoil(resps="gone"), "lacks 'resps'"),
        (spoil(resps=[]), "has no generated text in 'resps'"),
        (spoil(resps=[[["-1.5", "False"]]]), "has no generated text in 'resps'; give samples of a generation task"),
        (spoil(filtered_resps="6"), "'filtered_resps': '6', which is no list"),
        (spoil(arguments={}), "lacks 'gen_args_0'"),
        (spoil(exact_match="gone"), "lacks 'exact_match'"),
        (spoil(exact_match=float("nan")), "has no number for 'exact_match'"),
        (spoil(exact_match="high"), "'exact_match': 'high', which is no number"),
        (spoil(exact_match=[1, 0]), "neither true nor false"),
    ],
)
def test_a_bad_sample_is_refused_in_one_sentence(tmp_path: Path, row: dict[str, Any], words: str):
    with pytest.raises(TableError, match=words) as caught:
        read_samples(write_lines(tmp_path / "s.jsonl", row))

    assert "line 1 of" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_doubles_empty_and_cut_files_are_refused(tmp_path: Path):
    with pytest.raises(TableError, match="has document 0 of 'strict-match' twice"):
        read_samples(write_lines(tmp_path / "s.jsonl", LOGGED, LOGGED))
    with pytest.raises(TableError, match="holds no samples"):
        read_samples(write_lines(tmp_path / "s.jsonl"))
    whole = write_lines(tmp_path / "s.jsonl", LOGGED, {**LOGGED, "doc_id": 1}).read_text("utf-8")
    (tmp_path / "s.jsonl").write_text(whole[:-30], "utf-8")
    with pytest.raises(TableError, match=r"line 2 of .* breaks off in the middle"):
        read_samples(tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "breaks off in the middle"),
        ("[]", "is a list of 0, which is no object"),
        ("{}", "lacks 'results'"),
        ('{"results": {}}', "holds no results"),
        ('{"results": {"t": 3}}', "'t' in 'results' in .* is 3, which is no object"),
        ('{"results": {"t": {"acc,none": "good"}}}', "'acc,none': 'good', which is no number"),
        (
            '{"results": {"t": {}}, "n-samples": {"t": {"effective": 1.5}}}',
            "'effective': 1.5, which is no whole number",
        ),
    ],
)
def test_bad_results_are_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    (tmp_path / "r.json").write_text(text, "utf-8")

    with pytest.raises(TableError, match=words):
        read_results(tmp_path / "r.json")


def test_what_cannot_be_a_sample_is_refused():
    with pytest.raises(ConfigError, match="no task 'chess'; choose one of gsm8k, humaneval, ifeval, mbpp"):
        build_samples("chess", 0, {}, "p", ["r"], {})
    with pytest.raises(ConfigError, match="mbpp has the metrics 'pass_at_1', not 'pass@1'; give those"):
        build_samples("mbpp", 0, DOCS["mbpp"], "p", ["r"], {"pass@1": 1.0})
    with pytest.raises(TableError, match="a document of humaneval lacks 'test'"):
        list_target("humaneval", {"prompt": "def f(): ..."})


@pytest.mark.parametrize("stamp", ["../x", "a_b", "", "12:00", ".x"])
def test_a_time_that_would_mislead_the_harness_is_refused(tmp_path: Path, stamp: str):
    with pytest.raises(ConfigError, match="cannot be part of a file's name"):
        write_samples(build("mbpp"), tmp_path, "mbpp", stamp)


def test_answers_alone_are_written_for_the_authors_own_tools(tmp_path: Path):
    write_completions([("HumanEval/900", "    return 1\n")], tmp_path / "c.jsonl")
    write_responses([("Write of a pier.", "wood and rope")], tmp_path / "r.jsonl")

    assert json.loads((tmp_path / "c.jsonl").read_text("utf-8")) == {
        "task_id": "HumanEval/900",
        "completion": "    return 1\n",
    }
    assert json.loads((tmp_path / "r.jsonl").read_text("utf-8")) == {
        "prompt": "Write of a pier.",
        "response": "wood and rope",
    }
