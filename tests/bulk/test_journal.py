import os
import signal
import subprocess
import sys
import tracemalloc
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.bulk import journal as module
from matrix_dspy.bulk.journal import CallKey, Journal, hash_request
from matrix_dspy.engine.base import Completion, Request, Sampling
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.errors import RunError

REQUEST = Request([{"role": "user", "content": "how many?"}], Sampling(seed=1))
DIGEST = hash_request(REQUEST, "model")


def make_key(number: int = 0, **more: Any) -> CallKey:
    return CallKey("stage", f"row-{number}", "call", **more)


def answer(text: str, **more: Any) -> Completion:
    return Completion((text,), ("stop",), 3, 5, 0.25, **more)


def write_entries(folder: Path, n: int, *, writer: str = "main", text: str = "answer") -> Path:
    """Journal `n` answers, to row-0, row-1, ... and return the segment."""
    journal = Journal(folder, writer)
    for number in range(n):
        journal.append(make_key(number), DIGEST, REQUEST, answer(f"{text} {number}"))
    journal.close()
    return folder / f"{writer}.jsonl"


def find_numbers(folder: Path, n: int, **options: Any) -> list[int]:
    """Return the rows out of `n` that a new journal on `folder` finds, each with its own answer."""
    journal = Journal(folder, **options)
    found = {number: journal.find(make_key(number), DIGEST) for number in range(n)}
    journal.close()
    assert all(c is None or c.texts == (f"answer {number}",) for number, c in found.items())
    return [number for number, completion in found.items() if completion is not None]


def test_a_journaled_completion_is_found_whole(tmp_path: Path):
    key = make_key(3, round=2, attempt=1, sample=4)
    completion = Completion(("a\n\u2028\U0001f600", "b"), ("stop", "length"), 7, 9, 1.25, logprobs=([-0.5],))
    journal = Journal(tmp_path)
    journal.append(key, DIGEST, REQUEST, completion)
    journal.close()

    again = Journal(tmp_path)

    assert again.find(key, DIGEST) == Completion(
        ("a\n\u2028\U0001f600", "b"), ("stop", "length"), 7, 9, 1.25, logprobs=([-0.5],)
    )
    assert (len(again), again.n_replayed) == (1, 1)


def test_a_refusal_is_found_as_a_refusal(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.append(make_key(), DIGEST, REQUEST, Completion(error="too long"))
    journal.close()

    found = Journal(tmp_path).find(make_key(), DIGEST)

    assert found is not None
    assert (found.texts, found.error, found.is_ok) == ((), "too long", False)


@pytest.mark.parametrize(
    "key",
    [
        make_key(1),
        make_key(0, round=1),
        make_key(0, attempt=1),
        make_key(0, sample=1),
        CallKey("other", "row-0", "call"),
        CallKey("stage", "row-0", "other"),
    ],
)
def test_an_entry_is_not_found_under_another_key(tmp_path: Path, key: CallKey):
    write_entries(tmp_path, 1)

    assert Journal(tmp_path).find(key, DIGEST) is None


def test_an_entry_is_not_found_for_another_request(tmp_path: Path):
    write_entries(tmp_path, 1)

    assert Journal(tmp_path).find(make_key(), hash_request(REQUEST, "another model")) is None


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=2),
        Sampling(seed=1, temperature=0.1),
        Sampling(seed=1, top_p=0.9),
        Sampling(seed=1, max_tokens=5),
        Sampling(seed=1, stop=("x",)),
        Sampling(seed=1, n=2),
        Sampling(seed=1, response_schema={"type": "object"}),
    ],
)
def test_the_hash_depends_on_all_of_the_sampling(sampling: Sampling):
    assert hash_request(Request(REQUEST.messages, sampling), "model") != DIGEST


def test_the_hash_depends_on_words_roles_and_model():
    said = [{"role": "system", "content": "how many?"}], [{"role": "user", "content": "how many"}]

    digests = {hash_request(Request(messages, REQUEST.sampling), "model") for messages in said}

    assert len(digests | {DIGEST, hash_request(REQUEST, "other")}) == 4


def test_the_hash_does_not_depend_on_address_or_concurrency():
    here = EndpointEngine("http://one:1/v1", "model", concurrency=1)
    there = EndpointEngine("http://two:2/v1", "model", concurrency=99, timeout_s=1.0)

    assert hash_request(REQUEST, here.model) == hash_request(REQUEST, there.model) == DIGEST


def test_the_hash_is_the_same_in_every_version():
    assert DIGEST == "1a19e1256a8bdbc118d6e673"


def test_the_last_entry_for_a_call_counts(tmp_path: Path):
    write_entries(tmp_path, 1, text="old")

    write_entries(tmp_path, 1, text="answer")

    assert find_numbers(tmp_path, 1) == [0]


def test_all_writers_segments_are_read(tmp_path: Path):
    write_entries(tmp_path, 2, writer="one")
    write_entries(tmp_path, 4, writer="two")

    assert find_numbers(tmp_path, 5) == [0, 1, 2, 3]


def test_other_runs_journals_are_replayed_and_not_written_to(tmp_path: Path):
    segment = write_entries(tmp_path / "old", 2)
    before = segment.read_bytes()
    journal = Journal(tmp_path / "new", replay=(tmp_path / "old",))
    journal.append(make_key(2), DIGEST, REQUEST, answer("answer 2"))
    journal.close()

    found = find_numbers(tmp_path / "new", 3, replay=(tmp_path / "old",))

    assert found == [0, 1, 2]
    assert find_numbers(tmp_path / "new", 3) == [2]
    assert segment.read_bytes() == before
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["main.jsonl"]


def test_the_own_journal_comes_before_a_replayed_one(tmp_path: Path):
    write_entries(tmp_path / "old", 1, text="old")
    write_entries(tmp_path / "new", 1)

    assert find_numbers(tmp_path / "new", 1, replay=(tmp_path / "old",)) == [0]


def test_a_torn_last_line_is_forgotten_and_not_built_upon(tmp_path: Path):
    segment = write_entries(tmp_path, 3)
    segment.write_bytes(segment.read_bytes()[:-20])

    assert find_numbers(tmp_path, 3) == [0, 1]
    journal = Journal(tmp_path)
    journal.append(make_key(2), DIGEST, REQUEST, answer("answer 2"))
    journal.close()
    assert find_numbers(tmp_path, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    "middle",
    [b"", b"{", b"\x00" * 300, b"\xff\xfe", b"[]", b"3", b"null", b'"x"', b"{}", b'{"key": "a"}', b'{"hash": "a"}'],
)
def test_a_spoilt_line_in_the_middle_harms_no_other(tmp_path: Path, middle: bytes):
    segment = write_entries(tmp_path, 3)
    first, _, last = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(first + middle + b"\n" + last)

    assert find_numbers(tmp_path, 3) == [0, 2]


@given(st.integers(0, 400))
@settings(max_examples=40)
def test_wherever_the_file_was_cut_whole_lines_are_found(tmp_path_factory: pytest.TempPathFactory, cut: int):
    folder = tmp_path_factory.mktemp("cut")
    segment = write_entries(folder, 3)
    content = segment.read_bytes()
    segment.write_bytes(content[:cut])

    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    assert find_numbers(folder, 3) == [number for number, end in enumerate(ends) if end - 1 <= cut]


def test_prompts_are_kept_only_when_asked_for(tmp_path: Path):
    for name, keep in (("without", False), ("with", True)):
        journal = Journal(tmp_path / name, keep_prompts=keep)
        journal.append(make_key(), DIGEST, REQUEST, answer("answer 0"))
        journal.close()

    assert b"how many?" not in (tmp_path / "without" / "main.jsonl").read_bytes()
    assert b"how many?" in (tmp_path / "with" / "main.jsonl").read_bytes()
    assert find_numbers(tmp_path / "with", 1) == [0]


CHILD = """
import sys
from pathlib import Path
from matrix_dspy.bulk.journal import CallKey, Journal, hash_request
from matrix_dspy.engine.base import Completion, Request, Sampling

request = Request([{"role": "user", "content": "how many?"}], Sampling(seed=1))
journal = Journal(Path(sys.argv[1]))
for number in range(10**6):
    completion = Completion((f"answer {number}",), ("stop",), 3, 5, 0.25, logprobs="x" * 5000)
    journal.append(CallKey("stage", f"row-{number}", "call"), hash_request(request, "model"), request, completion)
    print(number, flush=True)
"""


def test_every_acknowledged_line_survives_sigkill(tmp_path: Path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 200:
            break

    child.kill()

    acknowledged = 200 + len(child.stdout.read().splitlines())
    assert child.wait() == -signal.SIGKILL
    found = find_numbers(tmp_path, acknowledged + 50)
    assert found == list(range(len(found)))
    assert len(found) >= acknowledged + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB; needs root and a kernel that lets it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(small_disk: Path):
    journal = Journal(small_disk)
    n_written = 0
    with pytest.raises(RunError, match="no space left on device; free some space and run the same command again"):
        for number in range(1000):
            journal.append(make_key(number), DIGEST, REQUEST, answer(f"answer {number}", logprobs="x" * 3000))
            n_written += 1
    journal.close()

    assert n_written > 10
    assert find_numbers(small_disk, 1000) == list(range(n_written))


def test_what_is_written_after_a_full_disk_was_freed_is_not_lost(small_disk: Path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (240 * 1024))
    journal = Journal(small_disk)
    with pytest.raises(RunError):
        journal.append(make_key(0), DIGEST, REQUEST, answer("answer 0", logprobs="x" * 50_000))
    ballast.unlink()

    journal.append(make_key(1), DIGEST, REQUEST, answer("answer 1"))
    journal.close()

    assert find_numbers(small_disk, 2) == [1]


def test_a_journal_that_cannot_be_opened_is_one_clear_error(tmp_path: Path):
    (tmp_path / "journal").write_text("a file")

    with pytest.raises(RunError, match="could not open the journal"):
        Journal(tmp_path / "journal")


def test_the_index_holds_positions_and_not_texts(tmp_path: Path):
    n = 3000
    journal = Journal(tmp_path)
    for number in range(n):
        journal.append(make_key(number), DIGEST, REQUEST, answer(f"answer {number}", logprobs="x" * 3000))
    journal.close()
    tracemalloc.start()

    reopened = Journal(tmp_path)

    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(reopened) == n
    assert size < 300 * n
    reopened.close()


def test_a_closed_journal_holds_no_file_open(tmp_path: Path):
    write_entries(tmp_path, 1)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    find_numbers(tmp_path, 1)

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def read_index(journal: Journal) -> list[Any]:
    """Return the flat arrays of a journal's index."""
    index = journal._index
    return [index._names, index._starts, index._lengths, index._order, index._sorted]


def test_an_index_of_a_hundred_thousand_entries_is_flat(tmp_path: Path):
    n = 100_000
    lines = (
        f'{{"key":"{make_key(number)}","hash":"{DIGEST}","texts":["answer {number}"],"finish":["stop"],'
        f'"in":3,"out":5,"s":0.25}}\n'
        for number in range(n)
    )
    (tmp_path / "main.jsonl").write_text("".join(lines))

    journal = Journal(tmp_path)

    size = sum(sys.getsizeof(each) if isinstance(each, array) else each.nbytes for each in read_index(journal))
    assert len(journal) == n
    assert size <= 48 * n
    for number in (0, 1, 4321, n - 1):
        assert journal.find(make_key(number), DIGEST) == answer(f"answer {number}")
    assert journal.find(make_key(n), DIGEST) is None
    journal.close()


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["main", "other"])), max_size=12))
@settings(max_examples=30)
def test_of_equal_entries_the_latest_of_the_last_segment_counts(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[int, str]]
):
    folder = tmp_path_factory.mktemp("equal")
    latest: dict[str, dict[int, str]] = {"main": {}, "other": {}}
    for number, (row, writer) in enumerate(written):
        journal = Journal(folder, writer)
        journal.append(make_key(row), DIGEST, REQUEST, answer(f"{number}"))
        journal.close()
        latest[writer][row] = f"{number}"

    journal = Journal(folder)
    found = {row: journal.find(make_key(row), DIGEST) for row in range(4)}
    journal.close()

    expected = latest["main"] | latest["other"]
    assert {row: completion.texts[0] for row, completion in found.items() if completion is not None} == expected


def test_entries_whose_short_names_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_shorten", lambda key, digest: len(key) % 2)
    write_entries(tmp_path, 30)
    write_entries(tmp_path, 30, writer="other", text="answer")
    other = hash_request(REQUEST, "another model")

    assert find_numbers(tmp_path, 40) == list(range(30))
    journal = Journal(tmp_path)
    assert journal.find(make_key(3), other) is None
    journal.close()


def test_a_writer_that_is_no_reader_reads_nothing_and_loses_nothing(tmp_path: Path):
    segment = write_entries(tmp_path, 3)
    (tmp_path / "broken.jsonl").mkdir()  # would not even open

    journal = Journal(tmp_path, "worker", is_reader=False)
    journal.append(make_key(3), DIGEST, REQUEST, answer("answer 3"))

    assert (len(journal), journal.find(make_key(0), DIGEST), journal.find(make_key(3), DIGEST)) == (0, None, None)
    journal.close()
    (tmp_path / "broken.jsonl").rmdir()
    assert find_numbers(tmp_path, 5) == [0, 1, 2, 3]
    assert segment.read_bytes().count(b"\n") == 3


def test_what_is_appended_now_is_found_by_the_next_start_only(tmp_path: Path):
    write_entries(tmp_path, 1)
    journal = Journal(tmp_path)
    journal.append(make_key(1), DIGEST, REQUEST, answer("answer 1"))

    assert (len(journal), journal.find(make_key(1), DIGEST)) == (1, None)
    journal.close()
    assert find_numbers(tmp_path, 2) == [0, 1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1, logprobs=5),
        Sampling(seed=1, top_k=5),
        Sampling(seed=1, min_p=0.1),
        Sampling(seed=1, repetition_penalty=1.1),
        Sampling(seed=1, chat_template_kwargs={"enable_thinking": True}),
    ],
)
def test_the_hash_depends_on_the_options_of_vllm(sampling: Sampling):
    assert hash_request(Request(REQUEST.messages, sampling), "model") != DIGEST


@pytest.mark.parametrize("option", [{"top_k": 0}, {"min_p": 0.0}])
def test_an_option_of_nought_is_another_than_none(option: dict[str, Any]):
    assert hash_request(Request(REQUEST.messages, Sampling(seed=1, **option)), "model") != DIGEST


def test_the_hash_does_not_depend_on_the_place_in_the_servers_queue():
    assert hash_request(Request(REQUEST.messages, Sampling(seed=1, priority=-5)), "model") == DIGEST


def test_cached_tokens_come_back(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.append(make_key(), DIGEST, REQUEST, answer("yes", cached_tokens=2))
    journal.close()

    assert Journal(tmp_path).find(make_key(), DIGEST) == answer("yes", cached_tokens=2)
