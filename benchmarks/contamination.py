"""Decontamination: its speed at a million rows, the leaks it finds, and what it takes for a leak that is none.

    MATRIX_DSPY_DATA=FOLDER python benchmarks/contamination.py [--rows 1000000] [--workers 2] [--run RUN] [--quick]

FOLDER holds `benchmarks/` with evaluation sets and `personas/full_onet_data.tsv` with real task statements (O*NET).

Speed: instructions of 30 words and responses of 250, drawn from the task statements, asked against all sets. The
yardstick is the plain way: a Python set of 13-word tuples and a loop.
Leaks: 500 are planted, half as instructions and half as responses, a quarter each of: the whole prompt, the whole
prompt inside a longer text, a run of 13 words or more inside a longer text, and exactly 13 words inside one; each is
re-cased and re-punctuated. Found means that the very item is named.
False alarms: task statements, functions of Python's standard library (as code a model might write) and, with --run,
the instructions and responses of a run folder.
"""

import argparse
import ast
import os
import random
import resource
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from matrix_dspy.curation.contamination import (
    N_WORDS,
    Benchmark,
    ContaminationIndex,
    find_overlaps,
    read_benchmarks,
    summarise_overlaps,
)
from matrix_dspy.text import words

PART_ROWS = 50_000
N_LEAKS = 500
MARKS = [" ", "\n", ", ", " - ", "; ", "\n> ", "... ", " / ", ": "]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows")
    options = parser.parse_args()
    folder = Path(os.environ["MATRIX_DSPY_DATA"])

    benchmarks = read_benchmarks(folder / "benchmarks")
    begin = time.perf_counter()
    index = ContaminationIndex(benchmarks)
    print(f"index of {sum(each.n_items for each in benchmarks):,} items: {time.perf_counter() - begin:.1f} s")
    tasks = pl.read_csv(folder / "personas" / "full_onet_data.tsv", separator="\t", infer_schema=False)[
        "Task"
    ].to_list()
    n_rows = options.rows // 20 if options.quick else options.rows

    say_what_cannot_be_found(benchmarks)
    plant_leaks(benchmarks, index, tasks)
    count_false_alarms(index, tasks, options.run)
    measure_speed(benchmarks, index, tasks, n_rows, options.workers)


def say_what_cannot_be_found(benchmarks: list[Benchmark]) -> None:
    """Print, per set, the items that are found only where they are the whole text."""
    print(f"\n{'items':<46}{'all':>7}{'hash only':>11}{f'under {N_WORDS} words':>16}")
    for each in summarise_overlaps(benchmarks, []):
        print(f"{each.benchmark:<46}{each.n_items:>7}{each.n_hash_only:>11}{each.n_short:>16}")
    print("those of the two last columns are found only as a whole text, hashes only up to case and spacing")


def plant_leaks(benchmarks: list[Benchmark], index: ContaminationIndex, tasks: list[str]) -> None:
    """Print the share of planted leaks that is found, per way and field."""
    generator = random.Random(0)
    items = [(each.name, item.id, prompt) for each in benchmarks for item in each.items for prompt in item.prompts]
    long = [(name, item, text) for name, item, text in items if len(words(text)) >= N_WORDS]
    ways: dict[str, Callable[[str], str]] = {
        "whole": lambda text: disguise(text, generator),
        "whole inside": lambda text: embed(disguise(text, generator), tasks, generator),
        "13+ words inside": lambda text: embed(disguise(cut_run(text, None, generator), generator), tasks, generator),
        "13 words inside": lambda text: embed(disguise(cut_run(text, N_WORDS, generator), generator), tasks, generator),
    }
    rows = []
    for number in range(N_LEAKS):
        way = list(ways)[number // 2 % len(ways)]
        name, item, text = generator.choice(items if way == "whole" else long)
        rows.append((f"r{number}", ("instruction", "response")[number % 2], way, name, item, ways[way](text)))
    frame = pl.DataFrame(rows, ["id", "field", "way", "benchmark", "item", "text"], orient="row")
    found: set[tuple[str, str, str]] = set()
    for field in ("instruction", "response"):
        table = find_overlaps(frame.filter(pl.col("field") == field), "text", "id", index, field=field)
        found |= set(table.select("row_id", "benchmark", "item").iter_rows())
    frame = frame.with_columns(is_found=pl.Series([(row[0], row[3], row[4]) in found for row in rows]))
    print(f"\nplanted leaks found: {frame['is_found'].sum()} of {N_LEAKS} ({frame['is_found'].mean():.1%})")
    for way, field, n, n_found in (
        frame.group_by("way", "field")
        .agg(pl.len(), pl.col("is_found").sum().alias("n"))
        .sort("way", "field")
        .iter_rows()
    ):
        print(f"  {way:<18}{field:<13}{n_found:>4} of {n}")
    for row in frame.filter(~pl.col("is_found")).iter_rows(named=True):
        print(f"  missed: {row['way']} of {row['benchmark']}/{row['item']}")


def disguise(text: str, generator: random.Random) -> str:
    """Change case and punctuation: strip it, blank it, put other marks between the words, or mark them up."""
    recase = generator.choice([str.lower, str.upper, str.title, str.swapcase, str])
    way = generator.randrange(4)
    if way == 0:
        text = "".join(mark for mark in text if mark.isalnum() or mark.isspace())
    elif way == 1:
        text = "".join(mark if mark.isalnum() or mark.isspace() else " " for mark in text)
    elif way == 2:
        text = "".join(word + generator.choice(MARKS) for word in text.split())
    else:
        text = " ".join(f"**{word}**" if generator.random() < 0.3 else word for word in text.split())
    return recase(text)


def cut_run(text: str, n_words: int | None, generator: random.Random) -> str:
    """Return a run of the blank-separated words of a text that holds `n_words` words, or some number from 13."""
    parts = text.split()
    wanted = n_words or generator.randint(N_WORDS, max(N_WORDS, len(words(text))))
    first = generator.randrange(len(parts))
    while len(words(" ".join(parts[first:]))) < wanted:
        first -= 1
    last = first + 1
    while len(words(" ".join(parts[first:last]))) < wanted:
        last += 1
    return " ".join(parts[first:last])


def embed(text: str, tasks: list[str], generator: random.Random) -> str:
    """Put a text between real sentences."""
    return f"{generator.choice(tasks)} {text}\n\n{' '.join(generator.sample(tasks, 3))}"


def count_false_alarms(index: ContaminationIndex, tasks: list[str], run: Path | None) -> None:
    """Print how many clean texts are taken for leaks, with the first few."""
    clean = {"task statements": tasks, "functions": list(read_functions())}
    if run is not None:
        for noun in ("instructions", "responses"):
            clean[f"{noun} of {run.name}"] = pl.read_parquet(run / "tables" / f"{noun}.parquet")["text"].to_list()
    print("\nfalse alarms on clean texts")
    for name, texts in clean.items():
        alarms = list(index.match_texts(texts))
        print(f"  {name}: {len(alarms)} of {len(texts):,} {dict(Counter(match[0].kind for _, match in alarms))}")
        for _, (match, *_) in alarms[:5]:
            print(f"    {match.benchmark}/{match.item} ({match.part}): {match.shared}")


def read_functions() -> Iterator[str]:
    """Give the source of every function of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        lines = source.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield "\n".join(lines[node.lineno - 1 : node.end_lineno])


def measure_speed(
    benchmarks: list[Benchmark], index: ContaminationIndex, tasks: list[str], n_rows: int, n_workers: int
) -> None:
    """Print rows a second for instructions and responses, beside the plain way, and how memory grows."""
    stream = [word for task in tasks for word in task.split()]
    total = 0.0
    print(f"\n{'speed':<34}{'rows':>10}{'seconds':>9}{'rows/s':>10}{'x plain':>9}{'CPU s':>8}{'grown MB':>10}")
    for name, length in (("instructions of 30 words", 30), ("responses of 250 words", 250)):
        plain = measure_plainly(benchmarks, next(build_parts(stream, length, 2000, 1)))
        size, seconds, cpu = 0, 0.0, 0.0
        for number, part in enumerate(build_parts(stream, length, PART_ROWS, n_rows // PART_ROWS or 1)):
            if number == 1:
                size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begin, begin_cpu = time.perf_counter(), time.process_time()
            find_overlaps(part, "text", "id", index, n_workers)
            seconds += time.perf_counter() - begin
            cpu += time.process_time() - begin_cpu
        n_done = max(n_rows // PART_ROWS, 1) * PART_ROWS
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) / 1024 if size else 0.0
        rate = n_done / seconds
        print(f"{name:<34}{n_done:>10,}{seconds:>9.1f}{rate:>10,.0f}{rate / plain:>9.1f}{cpu:>8.1f}{grown:>10.0f}")
        total += seconds
    print(f"{'both':<34}{'':>10}{total:>9.1f}")
    leaks = [(item.id, " ".join(item.prompts) + " and so on") for each in benchmarks for item in each.items] * 5
    frame = pl.DataFrame(leaks, ["id", "text"], orient="row")
    begin = time.perf_counter()
    find_overlaps(frame, "text", "id", index, n_workers)
    rate = frame.height / (time.perf_counter() - begin)
    print(f"{'a set in which every row is a leak':<34}{frame.height:>10,}{frame.height / rate:>9.1f}{rate:>10,.0f}")
    begin = time.perf_counter()
    for text in (texts := [text for text in tasks if text][:2000]):
        index.match(text)
    print(f"one text at a time: {(time.perf_counter() - begin) / len(texts) * 1e6:.0f} microseconds")


def build_parts(stream: list[str], length: int, n_rows: int, n_parts: int) -> Iterator[pl.DataFrame]:
    """Give frames of texts of `length` words cut from real statements, every one different."""
    generator = random.Random(length)
    for part in range(n_parts):
        places = [generator.randrange(len(stream) - length) for _ in range(n_rows)]
        texts = [f"{' '.join(stream[place : place + length - 1])} {part}-{i}." for i, place in enumerate(places)]
        yield pl.DataFrame({"id": [f"r{i}" for i in range(n_rows)], "text": texts})


def measure_plainly(benchmarks: list[Benchmark], frame: pl.DataFrame) -> float:
    """Return the rows a second of a Python set of tuples and a loop."""
    runs: set[tuple[str, ...]] = set()
    for text in (prompt for each in benchmarks for item in each.items for prompt in item.prompts):
        found = words(text)
        runs.update(tuple(found[i : i + N_WORDS]) for i in range(len(found) - N_WORDS + 1))
    begin = time.perf_counter()
    for text in frame["text"]:
        found = words(text)
        any(tuple(found[i : i + N_WORDS]) in runs for i in range(len(found) - N_WORDS + 1))
    return frame.height / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
