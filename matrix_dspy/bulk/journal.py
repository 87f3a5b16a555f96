"""The append-only record of every completion: what cost money is never lost.

One line a call, written with one system call the moment its answer arrives, so that even after SIGKILL at most the
calls in flight are repeated. An entry is found by its call key and a hash of messages, sampling and model name; both
must match, so a journal can never answer a question it was not asked. In memory stand only positions, not texts.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.errors import RunError, boundary


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
        """The purpose without the mark of a call asked again."""
        return self.purpose.partition("+")[0]

    def __str__(self) -> str:
        return f"{self.stage}/{self.id}/{self.round}/{self.purpose}/{self.attempt}/{self.sample}"


def hash_request(request: Request, model: str) -> str:
    """Hash messages, sampling and model name; never address, concurrency or dials."""
    sampling = request.sampling
    drawn = [sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop, sampling.seed, sampling.n]
    packed = orjson.dumps([model, request.messages, drawn, sampling.response_schema])
    return hashlib.blake2b(packed, digest_size=12).hexdigest()


class Journal:
    """Segments `<folder>/*.jsonl`, one per writer; this one appends to `<writer>.jsonl` and reads all.

    Further folders given as `replay` are read too and never written to.
    """

    def __init__(
        self, folder: Path, writer: str = "main", *, replay: tuple[Path, ...] = (), keep_prompts: bool = False
    ) -> None:
        self.folder = folder
        self.keep_prompts = keep_prompts
        self.n_replayed = 0
        self._positions: dict[bytes, tuple[int, int, int]] = {}
        self._readers: list[int] = []
        with boundary(RunError, f"open the journal {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for place in (*replay, folder):
                for segment in sorted(place.glob("*.jsonl")):
                    self._index(segment)
            self._file = self._open_segment(folder / f"{writer}.jsonl")

    def __len__(self) -> int:
        return len(self._positions)

    def find(self, key: CallKey, digest: str) -> Completion | None:
        """Return the completion journaled for this very call, if there is one."""
        position = self._positions.get(_pack(str(key), digest))
        if position is None:
            return None
        reader, start, length = position
        entry = orjson.loads(os.pread(self._readers[reader], length, start))
        self.n_replayed += 1
        return _read_completion(entry)

    def append(
        self, key: CallKey, digest: str, request: Request, completion: Completion, *, is_private: bool = False
    ) -> None:
        """Write one completion; a private prompt (a raw profile's) is never kept.

        Raises:
            RunError: the disk will not take it.
        """
        entry: dict[str, Any] = {
            "key": str(key),
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
        if self.keep_prompts and not is_private:
            entry["messages"] = request.messages
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

    def _index(self, segment: Path) -> None:
        reader = len(self._readers)
        self._readers.append(os.open(segment, os.O_RDONLY))
        for start, line in _read_lines(segment):
            try:
                entry = orjson.loads(line)
                self._positions[_pack(entry["key"], entry["hash"])] = (reader, start, len(line))
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue  # a line torn by a kill or a full disk; its call is asked again

    @staticmethod
    def _open_segment(path: Path) -> int:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(number).st_size
        if size and os.pread(number, 1, size - 1) != b"\n":
            os.write(number, b"\n")
        return number


def _pack(key: str, digest: str) -> bytes:
    """Fold key and hash into 12 bytes: a journal of a million calls must fit in memory."""
    return hashlib.blake2b(f"{key}\x1f{digest}".encode(), digest_size=12).digest()


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
        logprobs=entry.get("logprobs"),
        error=entry.get("error"),
    )
