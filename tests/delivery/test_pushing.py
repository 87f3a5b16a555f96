import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix_dspy.delivery.merging import merge
from matrix_dspy.delivery.pushing import plan_push, push
from matrix_dspy.errors import ConfigError, MatrixError, RunError
from tests.conftest import ROOT
from tests.delivery.hub import TOKEN, Hub, serve_hub
from tests.delivery.runs import write_run

SCRIPT = """
import logging, sys
from pathlib import Path
from matrix_dspy.delivery.pushing import push
from matrix_dspy.errors import MatrixError
logging.basicConfig(level=logging.DEBUG)
try:
    done = push(Path(sys.argv[1]), "someone/set", is_real=True)
    print("sent", *done.sent)
    print("skipped", *done.skipped)
except MatrixError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with everything that may be pushed, and much that may not."""
    run = write_run(tmp_path / "run", [("Why is the sky blue?", "Because."), ("What is bread?", "Food.")], ranks=[0, 1])
    (run / "plots").mkdir()
    (run / "plots" / "lengths.png").write_bytes(b"\x89PNG not looked into")
    (run / "report.html").write_text("<p>report</p>")
    (run / "journal" / "one.jsonl").write_text("{}\n")
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        yield hub


PUSHED = ["dataset/sft.parquet", "plots/lengths.png", "report.html", "README.md"]


def start_push(run: Path, hub: Hub) -> subprocess.Popen[str]:
    own = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(run)],
        env={**kept, **own},
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_without_asking_nothing_is_sent_and_everything_is_listed(run: Path, hub: Hub):
    done = push(run, "someone/set")

    assert [name for name, _ in done.plan.files] == PUSHED
    assert dict(done.plan.files)["report.html"] == len("<p>report</p>")
    assert (done.is_real, done.sent, done.plan.is_private) == (False, (), True)
    assert done.plan.card_head.startswith("---\nlicense: other")
    assert hub.is_private is None


def test_a_push_sends_card_data_plots_and_report_and_the_card_last(run: Path, hub: Hub):
    done = push(run, "set", is_real=True)

    assert hub.commits == PUSHED
    assert hub.is_private
    assert done.url == f"{hub.address}/datasets/someone/set"
    assert all(hub.files["main"][name] == (run / name).read_bytes() for name in PUSHED)


def test_a_second_push_sends_only_what_changed(run: Path, hub: Hub):
    push(run, "someone/set", is_real=True)
    (run / "report.html").write_text("<p>another</p>")

    done = push(run, "someone/set", is_real=True, tables=True)

    assert done.sent == ("report.html", "tables/instructions.parquet", "tables/profiles.parquet")
    assert set(done.skipped) == {*PUSHED} - {"report.html"}


def test_a_branch_is_made_for_another_revision(run: Path, hub: Hub):
    push(run, "someone/set", is_real=True, revision="v1.0", private=False)

    assert set(PUSHED) <= hub.files["v1.0"].keys()
    assert hub.files["main"].keys() == {".gitattributes"}
    assert hub.is_private is False


def test_a_push_killed_half_way_is_gone_on_with_and_never_shows_the_token(run: Path, hub: Hub):
    hub.large_endings, hub.hold_after = (".parquet", ".png"), 2
    first = start_push(run, hub)
    assert hub.is_held.wait(60)
    first.kill()
    said, _ = first.communicate()
    hub.hold_after = None

    second = start_push(run, hub)
    more, _ = second.communicate(timeout=60)

    assert second.returncode == 0, more
    assert f"skipped {' '.join(PUSHED[:2])}" in more
    assert f"sent {' '.join(PUSHED[2:])}" in more
    assert all(hub.files["main"][name] == (run / name).read_bytes() for name in PUSHED)
    assert len(hub.large) == 2
    written = b"".join(path.read_bytes() for path in run.parent.rglob("*") if path.is_file())
    assert TOKEN not in said + more
    assert TOKEN.encode() not in written


def test_a_link_is_never_followed(run: Path, tmp_path: Path):
    secret = tmp_path / "secret.parquet"
    secret.write_bytes(b"secret")
    (run / "dataset" / "other.parquet").symlink_to(secret)

    plan = plan_push(run, "someone/set")

    assert [name for name, _ in plan.files] == PUSHED
    assert any("dataset/other.parquet" in warning for warning in plan.warnings)


def test_the_rehearsal_and_missing_rows_are_warned_of(tmp_path: Path):
    run = write_run(tmp_path / "run", [("a b c", "d")], model="rehearsal", is_finished=False)
    (tmp_path / "other").mkdir()
    other = write_run(tmp_path / "other" / "run", [("a b c", "d")])
    (other / "ended.json").write_text('{"reason": "the agents fell quiet", "n": 5, "kept": 1}')

    assert [warning.split(";")[0] for warning in plan_push(run, "x").warnings] == [
        "rows were written by the rehearsal engine, a stand-in",
        "the run is not finished",
    ]
    assert plan_push(other, "x").warnings == ("4 of 5 rows are missing: the agents fell quiet",)


def test_a_merged_set_can_be_pushed(run: Path, hub: Hub, tmp_path: Path):
    other = write_run(tmp_path / "more", [("Who wrote the Iliad?", "Homer.")], seed=2)

    push(merge([run, other], tmp_path / "merged").path, "someone/set", is_real=True)

    assert hub.commits == ["dataset/sft.parquet", "README.md"]


def test_a_folder_without_card_or_data_is_refused(run: Path, tmp_path: Path):
    (run / "README.md").unlink()
    with pytest.raises(RunError, match=r"no card \(README.md\)"):
        plan_push(run, "someone/set")
    with pytest.raises(RunError, match="no dataset"):
        plan_push(tmp_path, "someone/set")


@pytest.mark.parametrize("repo", ["", "a/b/c", "..", "a b", "-a/b", "x" * 120])
def test_a_bad_name_is_refused_before_anything_else(repo: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="is no name of a repository"):
        plan_push(tmp_path, repo)


def test_a_public_repository_is_not_pushed_to_as_private(run: Path, hub: Hub):
    hub.is_private, hub.files = False, {"main": {}}

    with pytest.raises(ConfigError, match="is public already"):
        push(run, "someone/set", is_real=True)
    assert hub.commits == []


def test_no_token_and_offline_are_said_before_anything_is_sent(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        push(run, "someone/set", is_real=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        push(run, "someone/set", is_real=True)
    assert hub.is_private is None


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, ConfigError, "may not write to 'someone/set'"),
        (413, RunError, "the Hub answered 413 to the push to 'someone/set': too large \\*\\*\\*; run the same command"),
        (500, RunError, "the Hub answered 500"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(status: int, kind: type[MatrixError], said: str, run: Path, hub: Hub):
    hub.answer = status, f"too large {TOKEN}"

    with pytest.raises(kind, match=said) as caught:
        push(run, "someone/set", is_real=True)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_token_is_said_and_not_shown(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")

    with pytest.raises(ConfigError, match="does not take the token") as caught:
        push(run, "someone/set", is_real=True)
    assert "hf_wrong" not in str(caught.value)


def test_a_hub_that_is_gone_is_said(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(RunError, match=r"could not reach http://127\.0\.0\.1:9"):
        push(run, "someone/set", is_real=True)


def test_a_card_that_holds_the_token_is_not_sent(run: Path, hub: Hub):
    (run / "report.html").write_text(f"<p>{TOKEN}</p>")

    with pytest.raises(RunError, match=r"report\.html holds the token") as caught:
        push(run, "someone/set", is_real=True)
    assert TOKEN not in str(caught.value)
    assert hub.is_private is None
