"""How much of a run's prompts a prefix cache could serve: the share of tokens that repeat the start of an earlier one.

    python benchmarks/prefix.py [RUN] [--tokenizer DIR] [--metrics URL]

RUN is the folder of a run made with `--set operation.keep_prompts=true`; without one a tiny run is made on the
rehearsal engine. Prompts are read in the order in which their answers were journaled, and each is rendered as its
messages' roles and texts. DIR holds a `tokenizer.json`; without it words, marks and blanks count as tokens.

`by token`: tokens in the longest prefix shared with any earlier prompt. `by block`: the same in whole blocks of 16,
the last token of a prompt never among them, as vLLM counts hits (its chained block hashes are equal exactly where the
prefixes are). Both take the cache to be as large as the run and every earlier prompt to be in it, so they are what a
server could reach at best. Prompts that are never kept, those with raw profiles, are left out and counted.

`--metrics` adds what a vLLM server says of its own cache since it was started.
"""

import argparse
import bisect
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 16
"""Tokens in a block of vLLM's prefix cache, as shipped."""
CLI = Path(__file__).parent.parent / "cli.py"
PIECE = re.compile(r"\w+|[^\w\s]|\s+")
COUNTER = re.compile(r"^vllm:prefix_cache_(hits|queries)_total(?:\{.*\})? (\S+)", re.MULTILINE)

Tokenize = Callable[[str], list[int]]


@dataclass(slots=True)
class Tally:
    """Sums over the prompts of one program."""

    prompts: int = 0
    tokens: int = 0
    shared: int = 0
    """Tokens in prefixes shared with an earlier prompt."""
    in_blocks: int = 0
    """The same in whole blocks."""

    def add(self, n_tokens: int, n_shared: int) -> None:
        """Add one prompt."""
        self.prompts += 1
        self.tokens += n_tokens
        self.shared += n_shared
        self.in_blocks += min(n_shared, n_tokens - 1) // BLOCK * BLOCK

    def line(self, name: str) -> str:
        """Return the sums as a line of the table."""
        shares = f"{self.shared / self.tokens:9.1%} {self.in_blocks / self.tokens:9.1%}"
        return f"{name:24} {self.prompts:8,} {self.tokens:12,} {self.tokens / self.prompts:11,.0f} {shares}"


class SeenPrompts:
    """All prompts so far, in order of their tokens: a prompt's nearest kin stand next to its place."""

    def __init__(self) -> None:
        self._sorted: list[bytes] = []

    def add(self, tokens: list[int]) -> int:
        """Add a prompt; returns how many tokens it shares with the start of an earlier one."""
        packed = np.array(tokens, dtype=">u4").tobytes()
        place = bisect.bisect_left(self._sorted, packed)
        shared = max((count_shared(packed, near) for near in self._sorted[max(0, place - 1) : place + 1]), default=0)
        self._sorted.insert(place, packed)
        return shared


def count_shared(one: bytes, other: bytes) -> int:
    """Count the tokens two packed prompts begin with in common."""
    n = min(len(one), len(other))
    differs = np.frombuffer(one[:n], dtype=">u4") != np.frombuffer(other[:n], dtype=">u4")
    return int(differs.argmax()) if differs.any() else len(differs)


def read_prompts(run: Path) -> Iterator[tuple[str, list[dict[str, Any]] | None]]:
    """Read the program and the messages of every journaled call; None where they were not kept."""
    segments = sorted((run / "journal").glob("*.jsonl"))
    if not segments:
        raise SystemExit(f"{run} has no journal")
    for segment in segments:
        with segment.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # a line torn by a kill
                purpose = entry["key"].rsplit("/", 3)[1]
                yield purpose.partition("+")[0], entry.get("messages")


def render_prompt(messages: list[dict[str, Any]]) -> str:
    """Render messages as text, about as a chat template would."""
    return "".join(f"{message['role']}\n{message['content']}\n" for message in messages)


def load_tokenize(folder: Path | None) -> Tokenize:
    """Load a tokenizer, or stand in for one."""
    if folder is not None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: tokenizer.encode(text).ids
    ids: dict[str, int] = {}
    return lambda text: [ids.setdefault(piece, len(ids)) for piece in PIECE.findall(text)]


def measure_run(run: Path, tokenize: Tokenize) -> tuple[dict[str, Tally], int]:
    """Measure every program of a run; returns the tallies and how many prompts were not kept."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    seen, n_private = SeenPrompts(), 0
    for program, messages in read_prompts(run):
        if messages is None:
            n_private += 1
            continue
        tokens = tokenize(render_prompt(messages))
        tallies[program].add(len(tokens), seen.add(tokens))
    return tallies, n_private


def print_run(run: Path, folder: Path | None) -> None:
    """Print the table of a run."""
    tallies, n_private = measure_run(run, load_tokenize(folder))
    if not tallies:
        raise SystemExit(f"no prompt is kept in {run}; make the run with --set operation.keep_prompts=true")
    print(f"{'program':24} {'prompts':>8} {'tokens':>12} {'mean prompt':>11} {'by token':>9} {'by block':>9}")
    for name, tally in sorted(tallies.items(), key=lambda item: -item[1].tokens):
        print(tally.line(name))
    sums = ((t.prompts, t.tokens, t.shared, t.in_blocks) for t in tallies.values())
    print(Tally(*map(sum, zip(*sums, strict=True))).line("all"))
    if n_private:
        print(f"\n{n_private:,} prompts with raw profiles are not kept and not counted")
    if folder is None:
        print("\nwithout --tokenizer: words, marks and blanks for tokens")


def print_metrics(url: str) -> None:
    """Print what a served vLLM says of its prefix cache."""
    address = url.rstrip("/").removesuffix("/metrics").removesuffix("/v1") + "/metrics"
    with urllib.request.urlopen(address) as reply:
        text = reply.read().decode()
    counts: dict[str, float] = defaultdict(float)
    for name, value in COUNTER.findall(text):
        counts[name] += float(value)
    if not counts["queries"]:
        raise SystemExit(f"{address} counts no queries of a prefix cache")
    share = counts["hits"] / counts["queries"]
    print(f"\nthe server: {counts['hits']:,.0f} of {counts['queries']:,.0f} prompt tokens cached, {share:.1%}")


def make_run(folder: Path) -> Path:
    """Make a tiny run on the rehearsal engine, its prompts kept."""
    run = folder / "run"
    command = [sys.executable, str(CLI), "generate", "-q", "--set", "operation.keep_prompts=true", "--out", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def main() -> None:
    """Measure a run, or a tiny one made for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="run folder; default: a tiny run made now")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json")
    parser.add_argument("--metrics", help="address of a served vLLM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print_run(options.run or make_run(Path(scratch)), options.tokenizer)
    if options.metrics:
        print_metrics(options.metrics)


if __name__ == "__main__":
    main()
