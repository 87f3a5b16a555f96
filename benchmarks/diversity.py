"""What picking for variety does: the same candidates, of which half are kept first come, by MMR and by DPP.

    python benchmarks/diversity.py [RUN] [--diversity 0.5] [--pools 2000x4000,10000x20000]

Candidates are real prompts, from the evaluation sets under $MATRIX_DSPY_DATA/benchmarks in an order drawn once, and the
instructions of RUN in the order of their ranks; without RUN one of 400 rows is made on the rehearsal engine. Vectors
are the default embedder's, relevance is the order: an earlier candidate is worth more. `random` is the mean of five
random halves, with the standard deviation in brackets: what the size of the set alone makes.

Then the seconds it takes to pick K of N vectors of 384 random numbers, beside those of pyversity's own DPP; that one's
column `live` says how many of its picks raised the determinant at all.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl

from matrix_dspy.curation.diversity import DiverseMethod, Diversity, measure_diversity, pick_diverse
from matrix_dspy.engine.embedding import TfidfEmbedder

CLI = Path(__file__).parent.parent / "cli.py"
COLUMNS = ("prompt", "question", "turns", "text")
N_REAL = 3_000
N_RANDOM = 5


def read_prompts(folder: Path) -> list[str]:
    """Return the different prompts of the JSONL files, in an order drawn once."""
    prompts: dict[str, None] = {}
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        whole = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in whole.decode().splitlines():
            row = json.loads(line)
            found = next(row[name] for name in COLUMNS if name in row)
            prompts[found if isinstance(found, str) else found[0]] = None
    texts = list(prompts)
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def make_run() -> Path:
    """Make a small run on the rehearsal engine."""
    run = Path(tempfile.mkdtemp()) / "run"
    command = [sys.executable, CLI, "generate", "--n", "400", "--quiet", "--out", run]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return run


def compare(title: str, texts: Sequence[str], groups: Sequence[str] | None, diversity: float) -> None:
    """Print every measure of half of the texts, kept in four ways."""
    n = len(texts) // 2
    ids = [f"{i:06d}" for i in range(len(texts))]
    vectors = TfidfEmbedder(texts).embed(texts)
    relevance = [-float(i) for i in range(len(texts))]

    def measure(kept: Sequence[int]) -> Diversity:
        own = None if groups is None else [groups[i] for i in kept]
        return measure_diversity([texts[i] for i in kept], vectors[list(kept)], groups=own, all_groups=groups)

    def pick(method: DiverseMethod) -> list[int]:
        return [int(id_) for id_ in pick_diverse(ids, vectors, relevance, n, method, diversity)]

    draws = [
        measure(np.random.default_rng(seed).choice(len(texts), n, replace=False).tolist()) for seed in range(N_RANDOM)
    ]
    columns = {"first come": measure(range(n)), "mmr": measure(pick("mmr")), "dpp": measure(pick("dpp"))}
    print(f"\n{title}: {n} of {len(texts)}, diversity {diversity}")
    print(f"{'measure':<20} {'more diverse':<12} {'random':>18} " + " ".join(f"{name:>11}" for name in columns))
    rows = [found.as_rows() for found in columns.values()]
    for i, row in enumerate(rows[0]):
        drawn = [value for found in draws if (value := found.as_rows()[i].value) is not None]
        by_chance = f"{np.mean(drawn):.4f} ({np.std(drawn):.4f})" if drawn else "-"
        values = " ".join(f"{other[i].value:>11.4f}" if other[i].value is not None else f"{'-':>11}" for other in rows)
        print(f"{row.name:<20} {row.more_diverse:<12} {by_chance:>18} {values}")


def time_pools(pools: Sequence[str]) -> None:
    """Print the seconds of picking K of N."""
    from pyversity import Strategy, diversify

    print(f"\n{'picked':>7} {'of':>7} {'mmr s':>8} {'dpp s':>8} {'pyversity dpp s':>16} {'live':>6}")
    for pool in pools:
        n, n_all = map(int, pool.split("x"))
        vectors = np.random.default_rng(0).standard_normal((n_all, 384)).astype(np.float32)
        ids, relevance = [f"{i:06d}" for i in range(n_all)], [-float(i) for i in range(n_all)]
        seconds = []
        for method in get_args(DiverseMethod):
            started = time.perf_counter()
            pick_diverse(ids, vectors, relevance, n, method)
            seconds.append(time.perf_counter() - started)
        line = f"{n:>7} {n_all:>7} {seconds[0]:>8.1f} {seconds[1]:>8.1f}"
        if n * n_all <= 8_000_000:  # beyond, it takes minutes and gigabytes
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gains = diversify(vectors, np.array(relevance), n, Strategy.DPP, 0.5).selection_scores
            line += f" {time.perf_counter() - started:>16.1f} {int((gains > 1e-3).sum()):>6}"
        print(line, flush=True)


def main() -> None:
    """Compare on both materials, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--diversity", type=float, default=0.5)
    parser.add_argument("--pools", default="2000x4000,10000x20000")
    given = parser.parse_args()
    if folder := os.environ.get("MATRIX_DSPY_DATA"):
        compare("real prompts", read_prompts(Path(folder) / "benchmarks")[:N_REAL], None, given.diversity)
    else:
        print("MATRIX_DSPY_DATA is not set: no real prompts")
    table = pl.read_parquet((given.run or make_run()) / "tables" / "instructions.parquet").sort("rank")
    compare("rehearsed instructions", table["text"].to_list(), table["group_id"].to_list(), given.diversity)
    if given.pools:
        time_pools(given.pools.split(","))


if __name__ == "__main__":
    main()
