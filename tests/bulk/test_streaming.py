"""Tables larger than memory: rows in order whatever happens, few batches open, all or nothing on disk."""

import asyncio
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy import run_program
from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.journal import Journal
from matrix_dspy.bulk.program import run_table
from matrix_dspy.bulk.streaming import BATCH_ROWS, SPARE_BATCHES, Batch, TableWriter, read_slices, stream_rows
from matrix_dspy.engine.base import Completion, DownError, Engine, Request
from matrix_dspy.errors import EngineError, RunError, TableError

_WORD = re.compile(r"\[\[ ## word ## \]\]\n(.*?)\n\nRespond with", re.DOTALL)


class Shouting(Engine):
    """Shouts the word back; takes as long for it, or fails as, `rule` says; counts what is open at a time."""

    supports_n = True

    def __init__(
        self, rule: Callable[[str], float | Exception] = lambda word: 0.0, *, bad: str = "", **limits: Any
    ) -> None:
        super().__init__(**{"concurrency": 8, "patience_s": 0.01} | limits)
        self.model = "shouting"
        self.rule = rule
        self.bad = bad
        self.n_asked = 0

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.n_asked += 1
        found = _WORD.search(str(request.messages[-1]["content"]))
        word = found[1] if found else self.bad
        wait = self.rule(word)
        if isinstance(wait, Exception):
            raise wait
        await asyncio.sleep(wait)
        if self.bad and word.endswith(self.bad):
            return Completion(("no such field: \u00e9",) * request.sampling.n, ("stop",) * request.sampling.n, 10, 5)
        texts = tuple(
            f"[[ ## loud ## ]]\n{word.upper()}\n[[ ## length ## ]]\n{len(word) + sample}"
            for sample in range(request.sampling.n)
        )
        return Completion(texts, ("stop",) * len(texts), 10, 5)


def make_shouter() -> dspy.Predict:
    return dspy.Predict("word -> loud, length: int")


def write_words(path: Path, n: int) -> pl.DataFrame:
    frame = pl.DataFrame({"id": range(n), "word": [f"word {number}" for number in range(n)]})
    frame.write_parquet(path)
    return frame


def list_files(folder: Path) -> list[str]:
    """Return what stands in a folder, the journal's segments and the lock left out."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("journal", ".lock"))


def frames_of(*lengths: int) -> Iterator[pl.DataFrame]:
    numbers = itertools.count()
    for length in lengths:
        yield pl.DataFrame({"number": list(itertools.islice(numbers, length))}, schema={"number": pl.Int64})


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=60)
def test_rows_come_out_in_order_whatever_the_latencies(lengths: list[int], width: int, seed: int):
    rng = random.Random(seed)
    finished: list[int] = []
    n_inside = most_inside = 0

    async def work(batch: Batch[int], place: int) -> int:
        nonlocal n_inside, most_inside
        n_inside += 1
        most_inside = max(most_inside, n_inside)
        for _ in range(rng.randint(0, 5)):
            await asyncio.sleep(0)
        n_inside -= 1
        assert batch.values("number")[place] == batch.first + place
        return batch.first + place

    def finish(batch: Batch[int]) -> None:
        assert batch.n_left == 0
        finished.extend(result for result in batch.results if result is not None)

    asyncio.run(asyncio.wait_for(stream_rows(frames_of(*lengths), width, work, finish), 10))

    assert finished == list(range(sum(lengths)))
    assert most_inside <= width


def test_a_row_that_is_stuck_bounds_how_many_batches_are_open():
    n_given, done = 0, asyncio.Event()
    width = 2 * BATCH_ROWS

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal n_given
        for _ in range(50):
            n_given += 1
            yield pl.DataFrame({"number": range(BATCH_ROWS)})

    async def work(batch: Batch[None], place: int) -> None:
        if batch.first + place == 0:
            await done.wait()

    async def run() -> None:
        finished: list[int] = []
        stream = asyncio.create_task(stream_rows(frames(), width, work, lambda batch: finished.append(batch.first)))
        await asyncio.sleep(0.5)
        assert finished == []
        assert n_given == SPARE_BATCHES + width // BATCH_ROWS
        done.set()
        await asyncio.wait_for(stream, 10)
        assert finished == [BATCH_ROWS * number for number in range(50)]

    asyncio.run(run())


@pytest.mark.parametrize("where", ["work", "finish", "frames"])
def test_an_error_anywhere_stops_all_workers(where: str):
    async def work(batch: Batch[int], place: int) -> int:
        await asyncio.sleep(0 if where != "work" or batch.first + place else 0.001)
        if where == "work" and batch.first + place == 7:
            raise KeyError(where)
        return place

    def finish(batch: Batch[int]) -> None:
        if where == "finish":
            raise KeyError(where)

    def frames() -> Iterator[pl.DataFrame]:
        yield from frames_of(5, 5)
        if where == "frames":
            raise KeyError(where)

    async def run() -> int:
        with pytest.raises(ExceptionGroup) as caught:
            await stream_rows(frames(), 4, work, finish)
        assert caught.group_contains(KeyError, match=where)
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("options", [{}, {"n": 2}], ids=["one", "two"])
def test_a_table_becomes_what_the_frame_becomes(tmp_path: Path, options: dict[str, Any]):
    frame = write_words(tmp_path / "words.parquet", 2 * BATCH_ROWS + 100)
    waits = random.Random(1)

    def rule(word: str) -> float:
        return waits.choice([0.0, 0.0, 0.0, 0.002])

    path = run_table(
        make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=Shouting(rule, bad="77"), **options
    )
    expected = run_program(make_shouter(), frame, lm=Shouting(bad="77"), out=tmp_path / "frame", **options)

    assert path == tmp_path / "out" / "output.parquet"
    made = pl.read_parquet(path)
    assert made.equals(expected)
    assert made["id"].to_list() == [number for number in range(len(frame)) for _ in range(options.get("n", 1))]
    for name in ("output.parquet", "rejected.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "frame" / name).read_bytes()
    rejected = pl.read_parquet(tmp_path / "out" / "rejected.parquet")
    assert len(rejected) == 21 * options.get("n", 1)
    assert rejected["id"].is_sorted()
    assert set(rejected["reason"]) == {"unparsed"}
    assert list_files(tmp_path / "out") == ["output.parquet", "rejected.parquet"]
    assert pq.ParquetFile(path).num_row_groups == 3


def test_samples_and_expectations_have_columns_of_their_own(tmp_path: Path):
    class Grade(dspy.Signature):
        """Grade."""

        word: str = dspy.InputField()
        score: Literal[1, 2, 3] = dspy.OutputField()

    class Grading(Engine):
        supports_n = True

        async def attempt(self, request: Request, n_asked: int) -> Completion:
            top = [{"token": "2", "logprob": -0.6931471805599453}, {"token": "3", "logprob": -0.6931471805599453}]
            tokens = [
                {"token": "[[ ## score ## ]]\n", "logprob": 0.0, "top_logprobs": []},
                {"token": "2", "logprob": -0.6931471805599453, "top_logprobs": top},
                {"token": "\n", "logprob": 0.0, "top_logprobs": []},
            ]
            n = request.sampling.n
            text = "[[ ## score ## ]]\n2\n"
            return Completion((text,) * n, ("stop",) * n, 1, 1, logprobs=(tokens, *[None] * (n - 1)))

    write_words(tmp_path / "words.parquet", 3)

    path = run_table(
        dspy.Predict(Grade), tmp_path / "words.parquet", tmp_path / "out", lm=Grading(), n=2, expect="score"
    )

    made = pl.read_parquet(path)
    assert made.columns == ["id", "word", "score", "score_expected", "sample", "model", "error"]
    assert made["id"].to_list() == [0, 0, 1, 1, 2, 2]
    assert made["sample"].to_list() == [0, 1] * 3
    assert made["score"].to_list() == [2] * 6
    assert made["score_expected"].to_list() == [pytest.approx(2.5), None] * 3


@pytest.mark.parametrize("options", [{}, {"n": 3}], ids=["one", "three"])
def test_an_empty_table_becomes_an_empty_table_with_the_new_columns(tmp_path: Path, options: dict[str, Any]):
    write_words(tmp_path / "words.parquet", 0)
    engine = Shouting()

    path = run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=engine, **options)

    made = pl.read_parquet(path)
    added = ["sample"] if options else []
    assert (len(made), made.columns) == (0, ["id", "word", "loud", "length", *added, "model", "error"])
    assert made.schema["length"] == pl.Int64
    assert len(pl.read_parquet(tmp_path / "out" / "rejected.parquet")) == 0
    assert engine.n_asked == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no table .*; give the path of a Parquet file"),
        (lambda path: path.mkdir(), "no table "),
        (lambda path: path.write_text("word\none\n"), "is no Parquet file"),
        (lambda path: path.write_bytes(b""), "is no Parquet file"),
        (lambda path: path.write_bytes(b"PAR1 not really PAR1"), "is no Parquet file"),
        (lambda path: pl.DataFrame({"words": ["one"]}).write_parquet(path), "no column 'word'; did you mean 'words'"),
        (lambda path: pl.DataFrame({"word": ["a"], "loud": [1]}).write_parquet(path), "has a column 'loud' already"),
    ],
    ids=["missing", "folder", "csv", "empty", "broken", "column", "in the way"],
)
def test_a_source_that_will_not_do_is_said_before_anything_is_made(
    tmp_path: Path, make: Callable[[Path], Any], words: str
):
    make(tmp_path / "words.parquet")
    engine = Shouting()

    with pytest.raises(TableError, match=words):
        run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=engine)

    assert engine.n_asked == 0
    assert not (tmp_path / "out").exists()


def test_a_table_torn_in_the_middle_is_a_clear_error_and_leaves_nothing(tmp_path: Path):
    source = tmp_path / "words.parquet"
    n = 8 * BATCH_ROWS
    noise = random.Random(0)
    frame = pl.DataFrame({"word": [f"{noise.random()}" for _ in range(n)]})
    frame.write_parquet(source, row_group_size=BATCH_ROWS, compression="uncompressed")
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = b"\xff" * 40_000
    source.write_bytes(content)

    with pytest.raises(TableError, match="could not read the table"):
        run_table(make_shouter(), source, tmp_path / "out", lm=Shouting())

    assert list_files(tmp_path / "out") == []


def test_an_engine_that_goes_down_leaves_only_the_journal(tmp_path: Path):
    write_words(tmp_path / "words.parquet", BATCH_ROWS + 50)
    dying = Shouting(lambda word: DownError("the server is gone") if word == f"word {BATCH_ROWS + 40}" else 0.0)

    with pytest.raises(EngineError, match="the server is gone"):
        run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=dying)

    assert list_files(tmp_path / "out") == []
    journal = Journal(tmp_path / "out" / "journal")
    assert len(journal) > BATCH_ROWS
    journal.close()

    engine = Shouting()
    run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=engine)
    assert engine.n_asked < 50


def test_an_earlier_output_stands_until_the_new_one_is_whole(tmp_path: Path):
    write_words(tmp_path / "words.parquet", 10)
    run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=Shouting())
    before = (tmp_path / "out" / "output.parquet").read_bytes()
    write_words(tmp_path / "words.parquet", 20)

    with pytest.raises(EngineError):
        run_table(
            make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=Shouting(lambda word: DownError("gone"))
        )

    assert (tmp_path / "out" / "output.parquet").read_bytes() == before
    assert list_files(tmp_path / "out") == ["output.parquet", "rejected.parquet"]


CHILD = """
import sys
from pathlib import Path
from matrix_dspy.bulk.program import run_table
from tests.bulk.test_streaming import Shouting, make_shouter

folder = Path(sys.argv[1])
run_table(make_shouter(), folder / "words.parquet", folder / "out", lm=Shouting(lambda word: 0.002, bad="77"))
"""


def test_after_sigkill_only_the_rest_is_paid_for_and_the_bytes_are_the_same(tmp_path: Path):
    n = 1500
    write_words(tmp_path / "words.parquet", n)
    run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "whole", lm=Shouting(bad="77"))
    segment = tmp_path / "out" / "journal" / "main.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=Path(__file__).parent.parent.parent)
    deadline = time.monotonic() + 60
    while not (segment.exists() and segment.read_bytes().count(b"\n") > n // 4):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    n_paid = segment.read_bytes().count(b"\n")
    assert not (tmp_path / "out" / "output.parquet").exists()

    engine = Shouting(bad="77")
    run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=engine)

    n_again = 15  # rows that end in 77 are asked twice
    assert n // 4 < n_paid < n
    assert engine.n_asked == n + n_again - n_paid
    for name in ("output.parquet", "rejected.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_killed_process_left_half_written_is_taken_away_by_the_next(tmp_path: Path):
    write_words(tmp_path / "words.parquet", 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".output.parquet.999999999.tmp").write_bytes(b"half")

    run_table(make_shouter(), tmp_path / "words.parquet", tmp_path / "out", lm=Shouting())

    assert list_files(tmp_path / "out") == ["output.parquet", "rejected.parquet"]


def test_a_writer_that_is_abandoned_leaves_no_trace(tmp_path: Path):
    frame = pl.DataFrame({"a": [1, 2]})
    writer = TableWriter(tmp_path / "t.parquet", frame)
    writer.append(frame)
    assert not (tmp_path / "t.parquet").exists()

    writer.abandon()

    assert list(tmp_path.iterdir()) == []


def test_what_was_written_comes_back_equal(tmp_path: Path):
    frame = pl.DataFrame(
        {"a": [1, None], "b": ["x\u00e9", ""], "c": [[1], []], "d": [{"e": 1.5}, {"e": None}], "f": [None, None]}
    )
    writer = TableWriter(tmp_path / "t.parquet", frame)
    for _ in range(3):
        writer.append(frame)
    writer.commit()
    writer.abandon()

    assert pl.read_parquet(tmp_path / "t.parquet").equals(pl.concat([frame] * 3))
    empty, slices = read_slices(tmp_path / "t.parquet")
    assert (empty.columns, len(empty)) == (frame.columns, 0)
    assert pl.concat(list(slices)).equals(pl.concat([frame] * 3))


def test_a_table_that_cannot_be_made_is_a_clear_error(tmp_path: Path):
    with pytest.raises(RunError, match="could not write"):
        TableWriter(tmp_path / "no such folder" / "t.parquet", pl.DataFrame({"a": [1]}))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Mount a file system of 1 MiB; needs root and a kernel that lets it."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_too_small_for_the_table_is_a_clear_error_and_leaves_nothing(small_disk: Path, tmp_path: Path):
    noise = random.Random(0)
    ballast = [noise.randbytes(2000) for _ in range(BATCH_ROWS)]
    frame = pl.DataFrame({"word": [str(n) for n in range(BATCH_ROWS)], "ballast": ballast})
    frame.write_parquet(tmp_path / "words.parquet")
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with pytest.raises(RunError, match="no space left on device; free some space and run the same command again"):
        run_table(make_shouter(), tmp_path / "words.parquet", small_disk / "out", lm=Shouting())

    assert list_files(small_disk / "out") == []
    assert len(os.listdir("/proc/self/fd")) <= n_open  # noqa: PTH208
    take_lock(small_disk / "out").release()
