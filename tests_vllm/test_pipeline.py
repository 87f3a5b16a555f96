"""Whole runs against a real vLLM, in process and served, and against a server that dies of what it is asked."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dspy
import orjson
import polars as pl
import pytest

import matrix_dspy
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import EngineError
from tests_vllm.conftest import build_command, find_port, serving_environment, wait_until_ready

ROOT = Path(__file__).parent.parent
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Once upon a time{% endif %}"
)


def generate(lm: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Make 50 rows with the recipe for models that know nothing."""
    command = [sys.executable, str(ROOT / "cli.py"), "generate", "--lm", lm, "--n", "50", "--recipe", "plumbing"]
    return subprocess.run(
        [*command, "--out", str(out), *more], capture_output=True, text=True, timeout=900, check=False
    )


def check_run(out: Path) -> None:
    """Look at the rows, and at what the card says of them."""
    rows = pl.read_parquet(out / "dataset" / "sft.parquet")
    assert len(rows) == 50
    assert rows["example_id"].n_unique() == 50
    assert all(turn["content"].strip() for messages in rows["messages"] for turn in messages)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Switched off in this run: the privacy check" in card
    assert "with a JSON schema" in card
    assert "prefix cache" in card


def test_a_run_with_vllm_in_process_keeps_all_its_rows(tiny_model: Path, tmp_path: Path):
    done = generate(f"vllm:{tiny_model}", tmp_path / "run")

    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run")


def test_a_run_on_a_served_vllm_keeps_all_its_rows(server_url: str, tmp_path: Path):
    done = generate(server_url, tmp_path / "run")

    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run")
    rejected = pl.read_parquet(tmp_path / "run" / "tables" / "rejected.parquet")
    assert not rejected.filter(pl.col("reason").is_in(["unparsed", "refused by server", "cut off"])).height


@contextmanager
def serving(model: Path, port: int, log: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Serve a model until the block ends, or the server does."""
    with log.open("ab") as lines:
        server = subprocess.Popen(
            build_command(model, port, *flags), stdout=lines, stderr=lines, env=serving_environment()
        )
    try:
        wait_until_ready(server, port, log)
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_a_request_that_kills_the_engine_costs_a_restart_and_no_row(tiny_model: Path, tmp_path: Path):
    """A seeded request whose prompt chunked prefill splits ends vLLM 0.32 on a CPU."""
    port, log, out = find_port(), tmp_path / "log", tmp_path / "run"
    url = f"http://127.0.0.1:{port}/v1"
    results: list[subprocess.CompletedProcess[str]] = []
    with serving(tiny_model, port, log, "--enable-chunked-prefill", "--max-num-batched-tokens", "256") as fragile:
        run = threading.Thread(target=lambda: results.append(generate(url, out)))
        run.start()
        fragile.wait(300)  # it dies of the run's own requests
    assert not results, results
    with serving(tiny_model, port, log):
        run.join(600)

    (done,) = results
    assert done.returncode == 0, done.stderr
    assert "paused until it is back" in done.stderr
    assert "the server is back" in done.stderr
    check_run(out)
    keys = [orjson.loads(line)["key"] for line in (out / "journal" / "main.jsonl").read_bytes().splitlines()]
    assert len(keys) == len(set(keys))


@pytest.fixture(scope="module")
def stories_url(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[str]:
    """A model of 656,000 real weights, served by transformers."""
    folder, port = tmp_path_factory.mktemp("stories") / "stories", find_port()
    shutil.copytree(shared_data / "models" / "TinyStories-656K", folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder)]
    log = folder.parent / "log"
    with log.open("wb") as lines:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"], stdout=lines, stderr=lines
        )
    try:
        wait_until_ready(server, port, log)
        yield f"http://127.0.0.1:{port}/v1#{folder}"
    finally:
        server.kill()
        server.wait()


def test_another_real_server_is_asked_in_words(stories_url: str, tmp_path: Path):
    writer = matrix_dspy.load_program("responder")
    frame = pl.DataFrame({"instruction": [f"Tell me about a dog called number {number}." for number in range(40)]})
    engine = build_engine(stories_url, concurrency=8, timeout_s=60.0, patience_s=20.0)

    made = matrix_dspy.run_program(writer, frame, lm=engine, out=tmp_path, max_tokens=24)

    assert len(made) == 40
    assert made.filter(pl.col("error").is_null() | pl.col("error").str.starts_with("cut off")).height == 40
    assert not engine.supports_response_schema


def test_a_server_that_fails_every_request_stops_the_run_and_fails_no_row(stories_url: str, tmp_path: Path):
    """It answers 500 to a stop string whose characters its tokenizer does not have."""
    frame = pl.DataFrame({"question": ["How many legs has a dog?"] * 4})
    engine = build_engine(stories_url, concurrency=4, timeout_s=60.0, patience_s=5.0)

    with pytest.raises(EngineError, match="answers 500"):
        matrix_dspy.run_program(dspy.Predict("question -> legs: int"), frame, lm=engine, out=tmp_path, max_tokens=16)

    assert not (tmp_path / "output.parquet").exists()
    assert (tmp_path / "journal" / "main.jsonl").read_bytes() == b""
