import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from matrix_dspy.bulk.folder import CONTRACT, RunFolder, read_config, read_run, read_run_id, read_run_table
from matrix_dspy.bulk.journal import CallKey, hash_request
from matrix_dspy.bulk.tables import read_table, replacing, write_parquet
from matrix_dspy.config import Config, load_recipe
from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.errors import RunError, TableError
from matrix_dspy.report.estimate import Forecast, tell_estimate, write_estimate
from matrix_dspy.types import Example, Group, Message, Rejected

MODELS = {"main": "rehearsal"}
REQUEST = Request([{"role": "user", "content": "hello"}])
KEY = CallKey("stage", "row-0", "call")


def open_run(path: Path, changes: dict[str, Any] | None = None, **options: Any) -> RunFolder:
    config = load_recipe("tiny", changes)
    return RunFolder.open(path, options.pop("command", "generate"), config, options.pop("models", MODELS), **options)


def make_group(number: int) -> Group:
    return Group(
        group_id=f"group-{number:03d}", agent_ids=(f"agent-{number}", "agent-\u00e9"), description=f"no {number}"
    )


def make_rejected(number: int, reason: str = "leak") -> Rejected:
    return Rejected(noun="instruction", id=f"i-{number}", stage="filter", reason=reason)


def make_example(number: int) -> Example:
    messages = (Message(role="user", content="hi\n\u00e9"), Message(role="assistant", content="yes"))
    nouns = ("instruction", "response", "scenario", "agent", "group", "profile")
    ids: dict[str, Any] = {f"{noun}_id": f"{noun}-{number}" for noun in nouns}
    return Example(
        example_id=f"example-{number:03d}", messages=messages, kind="sft", type="simple", category="x", model="m", **ids
    )  # fmt: skip


def test_run_toml_is_written_before_anything_else(tmp_path: Path):
    with open_run(tmp_path / "run") as folder:
        document = tomllib.loads((tmp_path / "run" / "run.toml").read_text("utf-8"))

        assert not (tmp_path / "run" / "tables").exists()
        assert folder.journal is not None and len(folder.journal) == 0

    assert (document["contract"], document["n"], document["identity"]["command"]) == (CONTRACT, 200, "generate")
    assert document["identity"]["models"] == MODELS
    assert {"matrix_dspy", "python", "dspy"} <= set(document["versions"])


def test_the_version_of_the_contract_is_one():
    assert CONTRACT == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"simulation.lookahead": 0}, "simulation.lookahead = 3, not 0"),
        ({"simulation.n_groups": 4}, "simulation.n_groups = None, not 4"),
        ({"sampling.actor.temperature": 0.1}, "sampling.actor.max_tokens = None, not 384"),
        ({"synthesis.need": "a bank"}, "synthesis.need = '', not 'a bank'"),
        ({"population.columns": {"name": "x"}}, "population.columns.name = None, not 'x'"),
    ],
)
def test_a_changed_key_is_refused_by_name_and_both_values(tmp_path: Path, changes: dict[str, Any], key: str):
    open_run(tmp_path / "run").__exit__()
    before = (tmp_path / "run" / "run.toml").read_bytes()

    with pytest.raises(RunError) as caught:
        open_run(tmp_path / "run", changes)

    assert key in str(caught.value)
    assert "--out" in str(caught.value) and "--fresh" in str(caught.value)
    assert (tmp_path / "run" / "run.toml").read_bytes() == before


def test_another_model_or_command_is_refused_by_name(tmp_path: Path):
    open_run(tmp_path / "run").__exit__()

    with pytest.raises(RunError, match=r"models\.main = 'rehearsal', not 'big'"):
        open_run(tmp_path / "run", models={"main": "big"})
    with pytest.raises(RunError, match="command = 'generate', not 'simulate'"):
        open_run(tmp_path / "run", command="simulate")


def test_n_may_grow_and_not_shrink(tmp_path: Path):
    open_run(tmp_path / "run", {"n": 10}).__exit__()
    open_run(tmp_path / "run", {"n": 20}).__exit__()

    with pytest.raises(RunError, match="n = 20, which may grow but not shrink to 19"):
        open_run(tmp_path / "run", {"n": 19})

    assert read_run(tmp_path / "run")["n"] == 20


def test_operation_and_address_may_change(tmp_path: Path):
    open_run(tmp_path / "run").__exit__()
    run_id = read_run_id(tmp_path / "run")

    changes = {
        "operation.concurrency": 999,
        "operation.timeout_s": 1.0,
        "operation.max_calls": 5,
        "operation.keep_prompts": True,
        "lm.main": "http://elsewhere:1/v1",
    }
    open_run(tmp_path / "run", changes).__exit__()

    document = read_run(tmp_path / "run")
    assert document["operation"]["concurrency"] == 999
    assert read_run_id(tmp_path / "run") == run_id
    assert document["start"]["lm"] == "http://elsewhere:1/v1"
    assert "elsewhere" not in str(document["identity"])


def test_runs_of_different_configs_have_different_ids(tmp_path: Path):
    for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        open_run(tmp_path / name, changes).__exit__()

    ids = [read_run_id(tmp_path / name) for name in "abc"]

    assert ids[0] == ids[1] != ids[2]


def test_a_folder_written_by_another_version_is_refused(tmp_path: Path):
    open_run(tmp_path / "run").__exit__()
    path = tmp_path / "run" / "run.toml"
    path.write_text(path.read_text("utf-8").replace("contract = 1", "contract = 2"), encoding="utf-8")

    with pytest.raises(RunError, match="written by another version"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "n = ", "contract = 1\nidentity = 3\nn = 1\n"])
def test_a_broken_run_toml_is_refused(tmp_path: Path, content: str):
    open_run(tmp_path / "run").__exit__()
    (tmp_path / "run" / "run.toml").write_text(content, encoding="utf-8")

    with pytest.raises(RunError, match="--fresh"):
        open_run(tmp_path / "run")


def test_tables_of_unknown_origin_are_not_built_upon(tmp_path: Path):
    (tmp_path / "run" / "tables").mkdir(parents=True)

    with pytest.raises(RunError, match=r"holds tables but no run\.toml"):
        open_run(tmp_path / "run")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("a file")

    with pytest.raises(RunError, match="is a file; give another folder with --out"):
        open_run(tmp_path / "run")


def test_a_folder_without_a_run_is_said_to_have_none(tmp_path: Path):
    with pytest.raises(RunError, match=r"no run in .*; it has no run\.toml"):
        read_run_id(tmp_path)


CHILD = """
import sys, time
from pathlib import Path
from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.config import load_recipe

with RunFolder.open(Path(sys.argv[1]), "generate", load_recipe("tiny"), {"main": "rehearsal"}):
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real process that holds the run folder `run`."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    yield child
    child.kill()
    child.wait()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path, holder: subprocess.Popen[str]):
    with pytest.raises(RunError, match="another process is working on"):
        open_run(tmp_path / "run")

    holder.kill()
    assert holder.wait() == -signal.SIGKILL

    with open_run(tmp_path / "run") as folder:
        assert folder.journal is not None


def test_a_folder_that_was_closed_or_refused_can_be_opened_again(tmp_path: Path):
    open_run(tmp_path / "run").__exit__()
    with pytest.raises(RunError):
        open_run(tmp_path / "run", {"seed": 1})

    with open_run(tmp_path / "run") as folder:
        assert folder.path == tmp_path / "run"


def test_completions_of_another_run_are_replayed(tmp_path: Path):
    digest = hash_request(REQUEST, "rehearsal")
    with open_run(tmp_path / "old") as old:
        assert old.journal is not None
        old.journal.append(KEY, digest, REQUEST, Completion(("yes",), ("stop",)))

    with open_run(tmp_path / "new", {"seed": 1}, replay=(tmp_path / "old",)) as new:
        assert new.journal is not None
        found = new.journal.find(KEY, digest)

    assert found is not None and found.texts == ("yes",)


def test_a_folder_to_replay_must_be_a_run(tmp_path: Path):
    with pytest.raises(RunError, match=r"no journal in .*; --from takes a run folder"):
        open_run(tmp_path / "new", replay=(tmp_path,))


def test_tables_are_sorted_by_id_and_byte_identical_on_rewrite(tmp_path: Path):
    groups = [make_group(number) for number in range(50)]
    path = tmp_path / "run" / "tables" / "groups.parquet"
    with open_run(tmp_path / "run") as folder:
        folder.write_table("groups", groups)
        first = path.read_bytes()

        folder.write_table("groups", reversed(groups))

    assert path.read_bytes() == first
    frame = read_run_table(tmp_path / "run", "groups")
    assert frame["group_id"].to_list() == sorted(frame["group_id"])
    assert frame.row(3, named=True) == make_group(3).model_dump() | {"agent_ids": ["agent-3", "agent-\u00e9"]}


def test_two_runs_of_the_same_config_write_identical_tables(tmp_path: Path):
    for name in ("a", "b"):
        with open_run(tmp_path / name, {"operation.concurrency": 1 if name == "a" else 64}) as folder:
            folder.write_table("groups", [make_group(1)])
            folder.write_dataset("sft", [make_example(1)])

    for file in ("tables/groups.parquet", "dataset/sft.parquet", "dataset/sft.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_rejected_rows_are_ordered_by_more_than_their_id(tmp_path: Path):
    rows = [make_rejected(1, "leak"), make_rejected(1, "length"), make_rejected(0, "leak")]
    with open_run(tmp_path / "run") as folder:
        folder.write_table("rejected", rows)
        first = (tmp_path / "run" / "tables" / "rejected.parquet").read_bytes()

        folder.write_table("rejected", rows[::-1])

    assert (tmp_path / "run" / "tables" / "rejected.parquet").read_bytes() == first
    assert read_run_table(tmp_path / "run", "rejected")["reason"].to_list() == ["leak", "leak", "length"]


def test_an_empty_table_keeps_its_columns(tmp_path: Path):
    with open_run(tmp_path / "run") as folder:
        folder.write_table("groups", [])

    frame = read_run_table(tmp_path / "run", "groups")
    assert frame.columns == list(Group.model_fields)
    assert frame.schema["agent_ids"] == pl.List(pl.String)


def test_the_dataset_is_written_as_parquet_and_as_lines(tmp_path: Path):
    with open_run(tmp_path / "run") as folder:
        frame = folder.write_dataset("sft", [make_example(2), make_example(1)])

    lines = pl.read_ndjson(tmp_path / "run" / "dataset" / "sft.jsonl")
    assert frame["example_id"].to_list() == lines["example_id"].to_list() == ["example-001", "example-002"]
    assert frame["messages"].to_list() == lines["messages"].to_list()
    assert read_table(tmp_path / "run" / "dataset" / "sft.parquet").equals(frame)


def test_a_table_copied_from_another_run_is_refused(tmp_path: Path):
    for name, changes in (("a", {}), ("b", {"seed": 1})):
        with open_run(tmp_path / name, changes) as folder:
            folder.write_table("groups", [make_group(1)])

    (tmp_path / "a" / "tables" / "groups.parquet").replace(tmp_path / "b" / "tables" / "groups.parquet")

    with pytest.raises(TableError, match="belongs to another run"):
        read_run_table(tmp_path / "b", "groups")


def test_a_table_that_is_missing_or_broken_is_a_clear_error(tmp_path: Path):
    open_run(tmp_path / "run").__exit__()
    with pytest.raises(TableError, match="run the stage that writes it first"):
        read_run_table(tmp_path / "run", "groups")

    (tmp_path / "run" / "tables").mkdir()
    (tmp_path / "run" / "tables" / "groups.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TableError, match="could not read the table"):
        read_run_table(tmp_path / "run", "groups")


def test_an_unknown_table_is_refused_with_what_there_is(tmp_path: Path):
    with pytest.raises(TableError, match="no table 'grops'; there are profiles, agents, groups"):
        read_run_table(tmp_path, "grops")


def test_a_half_written_table_is_never_seen(tmp_path: Path):
    path = tmp_path / "groups.parquet"
    write_parquet(pl.DataFrame({"a": [1]}), path)

    with pytest.raises(RunError), replacing(path) as temporary:
        temporary.write_bytes(b"half of ")
        assert read_table(path)["a"].to_list() == [1]
        raise OSError("the power went")

    assert read_table(path)["a"].to_list() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["groups.parquet"]


def test_the_state_of_the_last_start_is_kept(tmp_path: Path):
    with open_run(tmp_path / "run") as folder:
        assert folder.read_state() == {}

        folder.write_state({"is_done": True, "n": 3})

        assert folder.read_state() == {"is_done": True, "n": 3}


def test_a_config_without_a_value_can_be_written(tmp_path: Path):
    folder = RunFolder.open(tmp_path / "run", "generate", Config(sampling={"actor": {"top_p": None}}), MODELS)  # pyright: ignore

    with folder:
        identity = tomllib.loads(folder.path.joinpath("run.toml").read_text("utf-8"))["identity"]
        assert "top_p" not in identity["sampling"]["actor"]


def read_start(lm: str, path: Path) -> str:
    open_run(path, {"lm.main": lm}).__exit__()
    return tomllib.loads((path / "run.toml").read_text("utf-8"))["start"]["lm"]


@pytest.mark.parametrize(
    ("lm", "kept"),
    [
        ("http://user:hunter2@host:8000/v1", "http://host:8000/v1"),
        ("http://hunter2@host:8000/v1", "http://host:8000/v1"),
        ("https://host/v1?api_key=hunter2", "https://host/v1"),
        ("https://host/v1?version=2&access_token=hunter2", "https://host/v1?version=2"),
        ("https://host/v1?version=2&client_secret=hunter2&x=1", "https://host/v1?version=2&x=1"),
        ("http://host:8000/v1#org/model", "http://host:8000/v1#org/model"),
        ("rehearsal?seed=1&latency=0.01", "rehearsal?seed=1&latency=0.01"),
        ("openai/gpt-4o-mini", "openai/gpt-4o-mini"),
    ],
)
def test_no_secret_of_an_address_is_written(tmp_path: Path, lm: str, kept: str):
    assert read_start(lm, tmp_path / "run") == kept
    assert b"hunter2" not in (tmp_path / "run" / "run.toml").read_bytes()


@pytest.mark.parametrize(
    "lm", ["http://user:p@hunter2@host/v1", "http://host/v1?API_KEY=hunter2", "http://host/v1?password=hunter2"]
)
def test_no_secret_in_an_unusual_place_is_written(tmp_path: Path, lm: str):
    assert "hunter2" not in read_start(lm, tmp_path / "run")


@pytest.mark.parametrize(
    ("lm", "kept"),
    [
        ("vllm:org/m?max_num_batched_tokens=8192", "vllm:org/m?max_num_batched_tokens=8192"),
        ("vllm:org/m?tokenizer=org/t&max_model_len=99", "vllm:org/m?tokenizer=org/t&max_model_len=99"),
        ("http://host/v1?api_key=hunter2&version=2", "http://host/v1?version=2"),
        ("http://host/v1?api_key=hunter2#org/model", "http://host/v1#org/model"),
    ],
)
def test_what_is_no_secret_stays_in_the_address(tmp_path: Path, lm: str, kept: str):
    assert read_start(lm, tmp_path / "run") == kept


def test_no_secret_of_an_address_is_written_into_an_estimate(tmp_path: Path):
    config = load_recipe("tiny", {"lm.main": "http://user:hunter2@host/v1"})
    made = tell_estimate(Forecast("a sample", is_real=False), config, "generate", price=None)

    path = write_estimate(made, tmp_path)

    assert b"hunter2" not in path.read_bytes()


CHANGES: list[dict[str, Any]] = [
    {},
    {"n": 7, "seed": 3, "population.columns": {"name": "who"}, "population.profiles": "people/all.jsonl"},
    {"operation.concurrency": 99, "operation.hedge_s": 2.5, "operation.price_in": 1.5, "operation.send_seeds": False},
    {
        "curation.off": ["length", "near duplicate"],
        "population.privacy_check": False,
        "synthesis.need": "a \u00e9 bank",
    },
    {"lm.structured": "off", "lm.main": "http://host:8000/v1#m"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes) or "none")
def test_a_runs_config_is_read_back_as_it_was_started(tmp_path: Path, changes: dict[str, Any]):
    config = load_recipe("tiny", changes)
    open_run(tmp_path / "run", changes).__exit__()

    command, again = read_config(tmp_path / "run")

    assert command == "generate"
    assert again.model_copy(update={"lm": config.lm}) == config
    assert again.lm.main == config.lm.main
    assert again.lm.structured == "off"  # what `auto` came to


def test_a_runs_schemas_are_read_back(tmp_path: Path):
    open_run(tmp_path / "run", {"lm.longest_text": 80}, has_schemas=True).__exit__()

    _, config = read_config(tmp_path / "run")

    assert (config.lm.structured, config.lm.longest_text) == ("on", 80)


@pytest.mark.parametrize("program", ["responder", "anonymiser"])
def test_a_part_of_the_sampling_is_read_back_alone(tmp_path: Path, program: str):
    changes = {f"sampling.{program}.min_p": 0.1}
    open_run(tmp_path / "run", changes).__exit__()

    _, config = read_config(tmp_path / "run")

    assert config.sampling_of(program) == load_recipe("tiny", changes).sampling_of(program)


def test_a_config_that_reads_back_is_the_same_run(tmp_path: Path):
    open_run(tmp_path / "run", {"seed": 3, "synthesis.need": "bees"}).__exit__()
    run_id = read_run_id(tmp_path / "run")
    _, config = read_config(tmp_path / "run")

    RunFolder.open(tmp_path / "run", "generate", config, MODELS).__exit__()

    assert read_run_id(tmp_path / "run") == run_id


def test_there_is_no_config_to_read_without_a_run(tmp_path: Path):
    with pytest.raises(RunError, match=r"no run in .*; it has no run\.toml"):
        read_config(tmp_path)


def test_retries_are_kept_and_none_are_none(tmp_path: Path):
    with open_run(tmp_path / "run") as folder:
        assert folder.read_retries() == {}

        folder.write_retries({"responder": {"instruction-b": 1, "instruction-a": 2}, "instruction_writer": {}})

        assert folder.read_retries() == {
            "instruction_writer": {},
            "responder": {"instruction-a": 2, "instruction-b": 1},
        }


def test_broken_retries_are_a_clear_error(tmp_path: Path):
    with open_run(tmp_path / "run") as folder:
        (folder.path / "retries.json").write_text("{")

        with pytest.raises(RunError, match=r"could not read .*retries\.json"):
            folder.read_retries()
