"""The append-only record of every completion: what cost money is never lost.

One line a call, written with one system call the moment its answer arrives, so that even after SIGKILL at most the
calls in flight are repeated. An entry is found by its call key and a hash of messages, sampling and model name; both
must match, so a journal can never answer a question it was not asked. In memory stand only positions, not texts.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.errors import RunError, boundary

_LATER_OPTIONS = ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs")
_START_BITS = 48
_START_MASK = (1 << _START_BITS) - 1


@dataclass(frozen=True, slots=True)
class CallKey:
    """What a call is for, apart from its words: the same in every run of the same command."""

    stage: str
    id: str
    """The row or actor."""
    purpose: str
    round: int = 0
    attempt: int = 0
    """0, or the number of the retry that a failed check asked for."""
    sample: int = 0

    @property
    def program(self) -> str:
        """The purpose without the marks of a call asked again or for several answers."""
        return self.purpose.partition("+")[0].partition("*")[0]

    def __str__(self) -> str:
        return f"{self.stage}/{self.id}/{self.round}/{self.purpose}/{self.attempt}/{self.sample}"


def hash_request(request: Request, model: str) -> str:
    """Hash messages, sampling and model name; never address, concurrency or dials."""
    sampling = request.sampling
    drawn = [sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop, sampling.seed, sampling.n]
    packed: list[Any] = [model, request.encoded, drawn, sampling.response_schema]
    later = {name: value for name in _LATER_OPTIONS if (value := getattr(sampling, name)) is not None}
    if sampling.logprobs:
        later["logprobs"] = sampling.logprobs
    if later:
        packed.append(later)
    return hashlib.blake2b(orjson.dumps(packed), digest_size=12).hexdigest()


class Journal:
    """Segments `<folder>/*.jsonl`, one per writer; this one appends to `<writer>.jsonl` and reads all.

    Further folders given as `replay` are read too and never written to. With `is_reader` off nothing is read: for
    writers beside the one that replays.
    """

    def __init__(
        self,
        folder: Path,
        writer: str = "main",
        *,
        replay: tuple[Path, ...] = (),
        keep_prompts: bool = False,
        is_reader: bool = True,
    ) -> None:
        self.folder = folder
        self.keep_prompts = keep_prompts
        self.n_replayed = 0
        self._readers: list[int] = []
        self._index = _Index()
        with boundary(RunError, f"open the journal {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if is_reader:
                for place in (*replay, folder):
                    for segment in sorted(place.glob("*.jsonl")):
                        self._read_segment(segment)
                self._index.close()
            self._file = self._open_segment(folder / f"{writer}.jsonl")

    def __len__(self) -> int:
        return len(self._index)

    def find(self, key: CallKey, digest: str) -> Completion | None:
        """Return the completion journaled for this very call, if there is one; the latest where there are several."""
        entry = self._find_entry(key, digest)
        if entry is None:
            return None
        self.n_replayed += 1
        return _read_completion(entry)

    def holds(self, key: CallKey, digest: str) -> bool:
        """Whether a completion is journaled for this very call."""
        return self._find_entry(key, digest) is not None

    def _find_entry(self, key: CallKey, digest: str) -> dict[str, Any] | None:
        if not len(self._index):
            return None
        name = str(key)
        for reader, start, length in self._index.find(name, digest):
            entry = orjson.loads(os.pread(self._readers[reader], length, start))
            if entry["key"] == name and entry["hash"] == digest:
                return entry
        return None

    def append(
        self, key: CallKey | str, digest: str, request: Request, completion: Completion, *, is_private: bool = False
    ) -> None:
        """Write one completion; a private prompt (a raw profile's) is never kept.

        Raises:
            RunError: the disk will not take it.
        """
        entry: dict[str, Any] = {
            "key": key if isinstance(key, str) else str(key),
            "hash": digest,
            "texts": completion.texts,
            "finish": completion.finish_reasons,
            "in": completion.prompt_tokens,
            "out": completion.completion_tokens,
            "s": round(completion.seconds, 4),
        }
        if completion.error is not None:
            entry["error"] = completion.error
        if completion.logprobs is not None:
            entry["logprobs"] = completion.logprobs
        if completion.reasonings:
            entry["reasonings"] = completion.reasonings
        if completion.cached_tokens:
            entry["cached"] = completion.cached_tokens
        if self.keep_prompts and not is_private:
            entry["messages"] = request.encoded
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        written = 0
        with boundary(RunError, f"write to the journal {self.folder}"):
            try:
                while written < len(line):
                    written += os.write(self._file, line[written:])
            except OSError:
                if written:  # take back the torn part, or the next line would be glued to it and lost
                    os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise

    def close(self) -> None:
        """Flush to disk and let go of the files."""
        try:
            with boundary(RunError, f"write to the journal {self.folder}"):
                os.fsync(self._file)
        finally:
            for number in (self._file, *self._readers):
                os.close(number)
            self._readers.clear()

    def _read_segment(self, segment: Path) -> None:
        reader = len(self._readers)
        self._readers.append(os.open(segment, os.O_RDONLY))
        for start, line in _read_lines(segment):
            try:
                entry = orjson.loads(line)
                self._index.add(entry["key"], entry["hash"], (reader, start, len(line)))
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue  # a line torn by a kill or a full disk; its call is asked again

    @staticmethod
    def _open_segment(path: Path) -> int:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(number).st_size
        if size and os.pread(number, 1, size - 1) != b"\n":
            os.write(number, b"\n")
        return number


class _Index:
    """Where each entry stands: 40 bytes an entry in flat arrays, so that millions fit in memory."""

    def __init__(self) -> None:
        self._names, self._starts, self._lengths = array("Q"), array("Q"), array("Q")
        self._order: Any = None

    def __len__(self) -> int:
        return len(self._names)

    def add(self, key: str, digest: str, place: tuple[int, int, int]) -> None:
        """Note an entry at (reader, start, length)."""
        reader, start, length = place
        self._names.append(_shorten(key, digest))
        self._starts.append(reader << _START_BITS | start)
        self._lengths.append(length)

    def close(self) -> None:
        """Sort for `find`; nothing is added afterwards."""
        names = np.frombuffer(self._names, dtype=np.uint64) if self._names else np.zeros(0, dtype=np.uint64)
        self._order = np.argsort(names, kind="stable")
        self._sorted = names[self._order]

    def find(self, key: str, digest: str) -> Iterator[tuple[int, int, int]]:
        """Give the places of entries that may be the one, the latest first."""
        name = np.uint64(_shorten(key, digest))
        first, last = np.searchsorted(self._sorted, name, "left"), np.searchsorted(self._sorted, name, "right")
        for position in self._order[first:last][::-1].tolist():
            start = self._starts[position]
            yield start >> _START_BITS, start & _START_MASK, self._lengths[position]


def _shorten(key: str, digest: str) -> int:
    """Fold key and hash into 64 bits; who finds an entry by them compares both."""
    return int.from_bytes(hashlib.blake2b(f"{key}\x1f{digest}".encode(), digest_size=8).digest(), "big")


def _read_lines(segment: Path) -> Iterator[tuple[int, bytes]]:
    start = 0
    with segment.open("rb") as file:
        for line in file:
            yield start, line
            start += len(line)


def _read_completion(entry: dict[str, Any]) -> Completion:
    return Completion(
        texts=tuple(entry["texts"]),
        finish_reasons=tuple(entry["finish"]),
        prompt_tokens=entry["in"],
        completion_tokens=entry["out"],
        seconds=entry["s"],
        logprobs=tuple(entry["logprobs"]) if entry.get("logprobs") else None,
        error=entry.get("error"),
        cached_tokens=entry.get("cached", 0),
        reasonings=tuple(entry.get("reasonings", ())),
    )
