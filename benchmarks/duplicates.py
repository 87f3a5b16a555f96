"""Duplicates: the speed and memory of `find_duplicates` on a million instructions, and what it finds.

    python benchmarks/duplicates.py [--rows 1000000] [--workers 2]
    python benchmarks/duplicates.py --planted [--show] [--shingle-words N] [--near-duplicate T] [--texts FILE]

Both need real prompts: MATRIX_DSPY_DATA is a folder with `benchmarks/`, or `--texts` names a file of one prompt a line.

Speed: the instructions are made by a chain of words that follow one another in the real prompts, with the real
prompts' lengths (10 to 200 words), and one row in ten is a copy of another with one of the changes below. Making them
is not timed; the search runs in a process of its own, whose memory is added to that of its workers. The exit code is 1
above 60 s or 4 GB for a million rows.

Planted: of 2,000 copies of real prompts, 500 each with one swap of neighbours per ten words, 5 % of the words (at least
one) put into other words, other punctuation, other case, how many are dropped; and how many of the 2,000 real prompts
themselves. A real prompt that differs from its twin by no more words than a planted copy does is counted apart: no
measure of overlap can drop the one and keep the other. The exit code is 1 below 95 % found or above 0.5 % false drops.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

MOST_SECONDS, MOST_GB = 60.0, 4.0
LEAST_FOUND, MOST_FALSE = 0.95, 0.005
N_PLANTED = 500
SHORTEST, LONGEST = 10, 200
FIELDS = ("prompt", "question", "text", "turns")
SYNONYMS = """
about/around all/every also/too although/though answer/reply array/sequence article/piece ask/request assist/help
average/mean bad/poor because/since begin/start below/under between/among big/large bought/purchased boy/lad
brief/short build/construct but/yet buy/purchase calculate/compute can/could car/vehicle check/verify child/kid
children/kids choose/pick city/town company/firm complete/finish contain/include contains/includes correct/right
cost/price costs/prices count/tally country/nation create/make day/date describe/explain detailed/thorough
different/various discuss/debate display/show each/every easy/simple eat/consume eats/consumes element/item
elements/items email/message end/finish ensure/guarantee entire/whole essay/paper example/instance fast/quick
final/last find/locate first/initial following/next friend/pal friends/pals function/routine get/obtain gets/obtains
girl/lass give/provide gives/provides given/supplied good/fine great/superb happy/glad hard/tough has/holds have/hold
house/home how/why idea/notion ideas/notions if/when important/key in/within into/to is/equals job/post keep/retain
least/minimum left/remaining letter/note like/as list/series long/lengthy look/glance made/created make/produce
makes/produces many/numerous maximum/largest method/way minimum/smallest minutes/moments money/cash more/further
most/largest much/plenty must/should name/title need/require needs/requires new/fresh not/never number/figure
numbers/figures old/aged on/upon once/after only/just or/else order/sequence out/outside over/above paid/spent
part/portion people/persons per/each person/individual picture/image place/spot plan/scheme please/kindly
poem/verse problem/issue program/script provide/supply question/query quickly/fast rate/pace reason/cause
result/outcome return/yield same/identical say/state second/next sell/trade sells/trades sentence/phrase
several/some shop/store short/brief should/ought small/little so/thus some/several speak/talk story/tale
street/road string/text strong/sturdy student/pupil students/pupils sum/total task/chore tell/inform than/over
that/which the/this their/his then/next there/here these/those they/people thing/object think/believe
through/via time/moment times/occasions to/toward total/sum true/correct try/attempt tuple/sequence twice/double
two/both up/upward use/employ uses/employs using/with value/amount values/amounts very/quite want/wish was/became
week/fortnight well/nicely were/became what/which while/whereas will/shall with/having woman/lady word/term
words/terms work/labour write/compose year/season years/seasons you/one your/the
"""
"""Common words and something to put in their place. A copy need not read well: it must differ as copies do."""
_OTHER_WORDS: dict[str, str] = {word: other for pair in SYNONYMS.split() for word, _, other in (pair.partition("/"),)}
_WORD = re.compile(r"\w+(?:['’]\w+)*")


# ---- real prompts and what becomes of them


def read_prompts(texts: str | None) -> list[tuple[str, str]]:
    """Return the real prompts of 10 to 200 words with their file's name, each text once."""
    if texts is not None:
        found = [("texts", line) for line in Path(texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        if "MATRIX_DSPY_DATA" not in os.environ:
            sys.exit("set MATRIX_DSPY_DATA to the folder with benchmarks/, or give --texts FILE")
        folder = Path(os.environ["MATRIX_DSPY_DATA"]) / "benchmarks"
        files = sorted(path for path in folder.iterdir() if ".jsonl" in path.name)
        found = [(path.name.partition(".")[0], text) for path in files for text in read_texts(path)]
    from matrix_dspy.curation.duplicates import split_units

    unique = {tuple(split_units(text)): (name, text) for name, text in reversed(found)}
    return [pair for units, pair in reversed(unique.items()) if SHORTEST <= len(units) <= LONGEST]


def read_texts(path: Path) -> list[str]:
    """Return the prompts of a benchmark file, of a conversation every turn of the user."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found: list[str] = []
    for line in content.decode().splitlines():
        row = json.loads(line)
        value = next(row[field] for field in FIELDS if field in row)
        found += value if isinstance(value, list) else [value]
    return found


def swap_neighbours(text: str, generator: random.Random) -> str:
    """Swap one pair of neighbouring words in every ten."""
    words = text.split()
    for start in range(0, max(1, len(words) - 9), 10):
        place = start + generator.randrange(min(9, len(words) - 1 - start))
        words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def change_words(text: str, generator: random.Random) -> str:
    """Put 5 % of the words, at least one, into other words; of those the table has, as far as they go."""
    matches = list(_WORD.finditer(text))
    known = [match for match in matches if match[0].lower() in _OTHER_WORDS]
    chosen = generator.sample(known, min(len(known), count_changes(len(matches))))
    for match in sorted(chosen, key=lambda match: -match.start()):
        text = text[: match.start()] + _OTHER_WORDS[match[0].lower()] + text[match.end() :]
    return text


def change_punctuation(text: str, generator: random.Random) -> str:
    """Take out, double or exchange every sign of punctuation but those inside words and numbers; add some."""
    signs = re.compile(r"(?<!\w)[.,;:!?\"'()]+|[.,;:!?\"'()]+(?!\w)")
    changed = signs.sub(lambda match: generator.choice(["", match[0] * 2, ";", " - ", "...", "!"]), text)
    words = changed.split(" ")
    for place in range(generator.randrange(10), len(words), 10):
        words[place] += generator.choice([",", ";", "!", " -"])
    return " ".join(words)


def change_case(text: str, generator: random.Random) -> str:
    """Write the text in capitals, small letters, as a title, or word by word at random."""
    how: list[Callable[[str], str]] = [str.upper, str.lower, str.title, str.swapcase]
    if generator.random() < 0.5:
        return generator.choice(how)(text)
    return " ".join(generator.choice(how)(word) for word in text.split(" "))


def count_changes(n_words: int) -> int:
    """Return how many words a planted copy of so many words has changed."""
    return max(1, round(0.05 * n_words))


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "swapped neighbours": swap_neighbours,
    "other words": change_words,
    "punctuation": change_punctuation,
    "case": change_case,
}


# ---- what is found


def measure_planted(arguments: argparse.Namespace) -> bool:
    """Print what is found of the planted copies and what is dropped of the real prompts; return whether all is well."""
    from matrix_dspy.curation.duplicates import find_duplicates

    generator = random.Random(arguments.seed)
    prompts = read_prompts(arguments.texts)
    n_each = min(N_PLANTED, len(prompts) // len(CHANGES))
    real = generator.sample(prompts, n_each * len(CHANGES))
    kinds = [name for name in CHANGES for _ in range(n_each)]
    copies = [CHANGES[kind](text, generator) for kind, (_, text) in zip(kinds, real, strict=True)]
    n_same = sum(copy == text for copy, (_, text) in zip(copies, real, strict=True))
    texts = [text for _, text in real] + copies
    dropped = find_duplicates(
        texts,
        ranks=range(len(texts)),
        n_shingle=arguments.shingle_words,
        threshold=arguments.near_duplicate,
        n_workers=arguments.workers,
    )
    twins = {row: int(twin) for row, twin in zip(dropped["row"], dropped["twin"], strict=True)}
    print(
        f"{len(copies):,} copies of as many of {len(prompts):,} real prompts; runs of {arguments.shingle_words} words, "
        f"near duplicate from {arguments.near_duplicate}; {n_same} copies equal their prompt to the letter"
    )
    shares = []
    for kind in CHANGES:
        rows = [row for row, each in enumerate(kinds, len(real)) if each == kind]
        found = [row for row in rows if row in twins]
        named = [row for row in found if twins[row] == twins.get(row - len(real), row - len(real))]
        shares.append(len(found) / len(rows))
        print(f"  {kind:20} {len(found):5} of {len(rows):5} found, {shares[-1]:.1%}; its own prompt named {len(named)}")
    whole = sum(row in twins for row in range(len(real), len(texts))) / len(copies)
    print(f"  {'all':20} {whole:.1%} found")
    false = [report_drops(name, real, twins, arguments.show) for name in sorted({name for name, _ in real})]
    n_false, n_alike = sum(each for each, _ in false), sum(each for _, each in false)
    print(
        f"  real prompts         {n_false} of {len(real):,} dropped in error, {n_false / len(real):.2%}; "
        f"{n_alike} more differ from their twin by no more words than a planted copy"
    )
    return min([*shares, whole]) >= LEAST_FOUND and n_false / len(real) <= MOST_FALSE


def report_drops(name: str, real: Sequence[tuple[str, str]], twins: dict[int, int], is_shown: bool) -> tuple[int, int]:
    """Print one file's drops; return how many are false, and how many are as near as planted copies."""
    rows = [row for row, (source, _) in enumerate(real) if source == name]
    dropped = [row for row in rows if row in twins]
    alike = [row for row in dropped if is_as_near_as_planted(real[row][1], real[twins[row]][1])]
    print(f"  {name:30} {len(rows):5} real, {len(dropped):3} dropped, {len(alike):3} of them as near as planted copies")
    for row in dropped if is_shown else ():
        print(f"    {'as near' if row in alike else 'FALSE  '} {real[twins[row]][1]!r}\n            {real[row][1]!r}")
    return len(dropped) - len(alike), len(alike)


def is_as_near_as_planted(text: str, other: str) -> bool:
    """Whether one text becomes the other by changing, adding or leaving out as many words as a planted copy's."""
    from rapidfuzz.distance import Levenshtein

    from matrix_dspy.curation.duplicates import split_units

    one, two = split_units(text), split_units(other)
    return Levenshtein.distance(one, two) <= count_changes(max(len(one), len(two)))


# ---- speed


def write_instructions(path: str, n_rows: int, texts: str | None, seed: int) -> None:
    """Write `n_rows` made instructions: a chain of words over the real prompts, and a tenth near copies."""
    prompts = [text.split() for _, text in read_prompts(texts)]
    followers: defaultdict[str, list[str]] = defaultdict(list)
    for words in prompts:
        for word, follower in pairwise(words):
            followers[word].append(follower)
    names = sorted({word for words in prompts for word in words})
    numbers = {name: number for number, name in enumerate(names)}
    firsts = np.array([numbers[words[0]] for words in prompts])
    chains = [np.array([numbers[word] for word in followers[name]] or firsts) for name in names]
    starts = np.concatenate([[0], np.cumsum([len(chain) for chain in chains])])
    flat, sizes = np.concatenate(chains), np.diff(starts)
    generator = np.random.default_rng(seed)
    n_copies = n_rows // 10
    lengths = generator.choice([len(words) for words in prompts], n_rows - n_copies)
    now = generator.choice(firsts, len(lengths))
    rows = np.zeros((len(lengths), lengths.max()), np.uint16 if len(names) < 2**16 else np.uint32)
    for place in range(rows.shape[1]):
        rows[:, place] = now
        now = flat[starts[now] + (generator.random(len(now)) * sizes[now]).astype(np.int64)]
    words = np.array(names, dtype=object)
    made = [" ".join(words[row[:length]]) for row, length in zip(rows, lengths, strict=True)]
    changer = random.Random(seed)
    changes = list(CHANGES.values())
    made += [changes[i % len(changes)](changer.choice(made), changer) for i in range(n_copies)]
    changer.shuffle(made)
    pl.DataFrame({"text": made}).write_parquet(path)


def search_file(path: str, n_workers: int, n_shingle: int, threshold: float, answers: Any) -> None:
    """Search one file in a process of its own, and send what it took."""
    from matrix_dspy.curation.duplicates import find_duplicates

    texts = pl.read_parquet(path)["text"]
    sampler = FamilySampler()
    sampler.start()
    start = time.perf_counter()
    found = find_duplicates(texts, n_shingle=n_shingle, threshold=threshold, n_workers=n_workers)
    seconds = time.perf_counter() - start
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answers.send(
        {
            "seconds": seconds,
            "cpu": sum(each.ru_utime + each.ru_stime for each in usage),
            "gb": max(sampler.finish(), usage[0].ru_maxrss * (1 if sys.platform == "linux" else 1 / 1024)) / 1024**2,
            "reasons": Counter(found["reason"].to_list()),
        }
    )


class FamilySampler(threading.Thread):
    """Adds up the resident memory of this process and its workers, 20 times a second (Linux only).

    Pages that they share count for each of them. The peak that the kernel keeps of a worker is of no use: it starts
    with what the parent held.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, sum(map(read_resident_kb, [os.getpid(), *read_children()])))

    def finish(self) -> int:
        """Stop, and return the highest sum in KB."""
        self._done.set()
        self.join()
        return self._peak


def read_children() -> list[int]:
    """Return the ids of this process's children."""
    return [int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]


def read_resident_kb(process: int) -> int:
    """Read `VmRSS`; 0 for a process that is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return int((status.partition("VmRSS:")[2].split() or ["0"])[0])


def measure_speed(arguments: argparse.Namespace) -> bool:
    """Print time and memory of the search; return whether both are within bounds."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "made.parquet")
        maker = context.Process(target=write_instructions, args=(path, arguments.rows, arguments.texts, arguments.seed))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit(1)
        n_words = pl.read_parquet(path)["text"].str.count_matches(r"\S+")
        print(
            f"{arguments.rows:,} instructions made of words that follow one another in real prompts, "
            f"{n_words.mean():.0f} words on average ({n_words.quantile(0.05):.0f} to {n_words.quantile(0.95):.0f}), "
            f"one in ten a copy with swapped neighbours, other words, punctuation or case"
        )
        mine, theirs = context.Pipe(duplex=False)
        settings = (arguments.workers, arguments.shingle_words, arguments.near_duplicate)
        searcher = context.Process(target=search_file, args=(path, *settings, theirs))
        searcher.start()
        theirs.close()
        answer = mine.recv()
        searcher.join()
    print(f"  {answer['seconds']:.1f} s ({answer['cpu']:.1f} s of CPU) with {arguments.workers} workers")
    print(f"  {answer['gb']:.2f} GB at the peak, workers included")
    print("  dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in sorted(answer["reasons"].items())))
    share = max(1.0, arguments.rows / 1e6)
    return answer["seconds"] <= MOST_SECONDS * share and answer["gb"] <= MOST_GB * share


def main() -> None:
    """Measure what the options ask for."""
    from matrix_dspy.config import CurationConfig

    shipped = CurationConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", action="store_true", help="measure what is found, not how fast")
    parser.add_argument("--show", action="store_true", help="print the real prompts that are dropped, with their twins")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", help="a file of real prompts, one a line")
    parser.add_argument("--shingle-words", type=int, default=shipped.shingle_words)
    parser.add_argument("--near-duplicate", type=float, default=shipped.near_duplicate)
    arguments = parser.parse_args()
    sys.exit(0 if (measure_planted if arguments.planted else measure_speed)(arguments) else 1)


if __name__ == "__main__":
    main()
