"""The gate of a run: curation's filters, checks and selection, put together for one kind of data.

Synthesis asks it (see `synthesis.gate.Gate`); it knows nothing of models and prompts.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein

from matrix_dspy.bulk.runner import gather_all
from matrix_dspy.config import Config, KindConfig, SelectionConfig
from matrix_dspy.curation import rewarding, selection
from matrix_dspy.curation.base import Candidate, Filter, apply_filters
from matrix_dspy.curation.benchmarks import Benchmark, read_benchmarks
from matrix_dspy.curation.code import check_code_async
from matrix_dspy.curation.contamination import ContaminationFilter, ContaminationIndex, warn_nearest
from matrix_dspy.curation.diversity import pick_diverse
from matrix_dspy.curation.duplicates import SemanticFilter
from matrix_dspy.curation.filters import LeakFilter, RefusalFilter, build_instruction_filters
from matrix_dspy.curation.language import LanguageFilter, find_language, is_english
from matrix_dspy.curation.sandbox import isolation, run_program_async
from matrix_dspy.curation.tagging import find_root_verb
from matrix_dspy.curation.verifying import (
    Number,
    build_verifying_program,
    find_final_number,
    find_instruction_tests,
    is_same_number,
    read_share,
)
from matrix_dspy.engine.embedding import Embedder, build_embedder
from matrix_dspy.errors import ConfigError
from matrix_dspy.synthesis.gate import Scorer, Selected
from matrix_dspy.text import count_words
from matrix_dspy.types import Drop, Instruction, Overlap, Profile

NEAR_BY_WORDS, NEAR_BY_MEANING = 0.65, 0.9
"""Cosines from which an item is named as near; by TF-IDF clean texts reached 0.56, prompts less 30 % of words 0.65."""


@dataclass(slots=True)
class Curator:
    """Keeps or drops for one run; built once the people are known."""

    config: Config
    kind: KindConfig | None
    embedder: Embedder
    filters: list[Filter]
    contamination: ContaminationFilter | None
    benchmarks: list[Benchmark]
    reward: rewarding.Scorer | None = None
    calibration: rewarding.Calibration | None = None
    decisions: dict[str, selection.Decision] = field(default_factory=dict)
    """What selection said, by instruction id."""
    _sandboxes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 1))

    def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> Drop | None:
        """Ask the filters on instructions, in the order of METHOD 3.4; what one drops is nobody's twin."""
        return apply_filters(self.filters, Candidate(row_id, text, tuple(others)))

    def check_response(self, row_id: str, instruction: str, text: str, *, is_target: bool) -> Drop | None:
        """Ask the filters on responses; what nobody is trained to say may refuse and be in any language."""
        candidate = Candidate(row_id, text)
        for each in self.filters:
            if isinstance(each, LeakFilter) or each is self.contamination:
                drop = each.judge(candidate)
            elif not is_target:
                continue
            elif isinstance(each, LanguageFilter):
                drop = each.judge_response(instruction, text)
            elif isinstance(each, RefusalFilter) and not self._wants_refusals:
                drop = each.judge(candidate)
            else:
                continue
            if drop is not None:
                return drop
        return None

    async def check_answer(self, row_id: str, instruction: str, text: str) -> Drop | None:
        """Ask the checks of the kind: code must be there, parse, and pass the tests it brings."""
        if self.kind is None or "code" not in self.kind.checks:
            return None
        async with self._sandboxes:
            return (await check_code_async(text, runs_tests=self.config.curation.run_tests)).drop

    def check_pair(self, row_id: str, chosen: str, rejected: str) -> Drop | None:
        """Drop a pair whose sides are more alike than the kind allows (METHOD 3.3)."""
        most = 0.95 if self.kind is None else self.kind.most_alike
        alike = Levenshtein.normalized_similarity(chosen, rejected, score_cutoff=most)
        return Drop("alike", f"its sides are {alike:.3f} alike; at most {most:g} is kept") if alike > most else None

    def find_root_verb(self, text: str) -> str | None:
        """Return the verb that says what an instruction asks for; its rules know English only."""
        return find_root_verb(text) if is_english(self.config.synthesis.language) else None

    def choose_scorer(self, instruction: str, answer: str) -> Scorer:
        """Return who scores: as the config says, else whoever is surest (METHOD 3.6)."""
        wanted = self.config.selection.scorer
        if wanted != "auto":
            return wanted
        if self._find_tests(instruction, answer) or self._find_number(answer) is not None:
            return "verifier"
        return "reward" if self.reward else "judge"

    async def score(self, instruction: str, texts: Sequence[str], answer: str) -> list[float | None]:
        """Score texts by the reward model, or by the verifier: unit tests, else the aligned model's final number."""
        if self.choose_scorer(instruction, answer) == "reward":
            assert self.reward is not None
            return await self.reward.score(instruction, texts)
        if tests := self._find_tests(instruction, answer):
            return await gather_all(self._run_tests(tests, text) for text in texts)
        wanted = self._find_number(answer)
        if wanted is None:
            return [None] * len(texts)
        found = [find_final_number(text) for text in texts]
        return [float(number is not None and is_same_number(wanted, number)) for number in found]

    def calibrate(self, score: float) -> float:
        """Map a judge's score to the probability of being right, linearly between its levels."""
        table = self.calibration.probability if self.calibration else (0.0, 0.25, 0.5, 0.75, 1.0)
        return float(np.interp(score, rewarding.LEVELS, table))

    def select(
        self,
        instruction: Instruction,
        texts: Sequence[str],
        scores: Sequence[float | None],
        scorer: Scorer,
        *,
        is_pair: bool,
    ) -> Selected:
        """Decide whether an instruction can teach, and for pairs by which two answers."""
        kind: selection.ScoreKind = "verifier" if scorer == "verifier" else "graded"
        decision = selection.decide(scores[1:], scores[0], kind, self._noise_of(scorer), self.settings)
        self.decisions[instruction.instruction_id] = decision
        if not decision.is_kept:
            return Selected(Drop(decision.reason, _tell_decision(decision, scorer)), is_offered=decision.offer_to_sft)
        if not is_pair:
            return Selected(None)
        answers = [
            selection.ScoredResponse(str(place), score, count_words(text), is_aligned=place == 0)
            for place, (text, score) in enumerate(zip(texts, scores, strict=True))
        ]
        pair = selection.choose_pair(answers, self.settings)
        if pair is None:
            return Selected(Drop(selection.explain_no_pair(answers, self.settings), "no two answers make a pair"))
        return Selected(None, int(pair[0].id), int(pair[1].id))

    def pick_diverse(self, ids: Sequence[str], texts: Sequence[str]) -> list[str]:
        """Return the ids in the order in which variety takes them."""
        curation = self.config.curation
        if not curation.diverse:
            return list(ids)
        vectors = self.embedder.embed(list(texts))
        ranks = [1 - place / len(ids) for place in range(len(ids))]
        return pick_diverse(ids, vectors, ranks, len(ids), curation.diverse, curation.diverse_weight)

    def draw_control(self, ids: Sequence[str], n: int) -> list[str]:
        """Return a random subset of `n` ids."""
        return selection.draw_control(ids, n, self.config.seed)

    def list_overlaps(self, kept: pl.DataFrame) -> list[Overlap]:
        """Return what was found of evaluation sets, and for kept rows (id, text) the nearest item as a warning."""
        if self.contamination is None:
            return []
        found = list(self.contamination.overlaps)
        return found + find_nearest(kept, self.config, self.benchmarks)

    def _find_tests(self, instruction: str, answer: str) -> list[str]:
        """Return the tests that code must pass: the instruction's, else those the aligned model's answer brings."""
        if self.kind is None or "code" not in self.kind.checks:
            return []
        return find_instruction_tests(instruction) or find_instruction_tests(answer)

    def _find_number(self, answer: str) -> Number | None:
        """Return the number that the aligned model's worked-out answer ends in."""
        return find_final_number(answer) if self.kind is not None and self.kind.shape == "thinking" else None

    async def _run_tests(self, tests: Sequence[str], text: str) -> float | None:
        program = build_verifying_program(text, tests)
        if program is None:
            return 0.0
        async with self._sandboxes:
            return read_share(await run_program_async(program))

    def _noise_of(self, scorer: Scorer) -> float:
        if scorer == "judge":
            return self.calibration.noise if self.calibration else 0.0
        return self.reward.noise if scorer == "reward" and self.reward else 0.0

    @property
    def settings(self) -> selection.SelectionSettings:
        """The bounds of selection."""
        return read_settings(self.config.selection)

    @property
    def _wants_refusals(self) -> bool:
        return self.kind is not None and "safety" in self.kind.checks


def build_curator(
    config: Config,
    kind: KindConfig | None,
    profiles: Iterable[Profile],
    public: Iterable[str],
    embedder: Embedder,
    benchmarks: Sequence[Benchmark],
    reward: rewarding.Scorer | None = None,
    calibration: rewarding.Calibration | None = None,
) -> Curator:
    """Build the gate of a run from its config, its people and the evaluation sets it must keep clear of."""
    is_checked = bool(benchmarks) and "contamination" not in config.curation.off
    contamination = ContaminationFilter(ContaminationIndex(benchmarks)) if is_checked else None
    filters = build_instruction_filters(
        config.curation,
        profiles,
        config.seed,
        public,
        language=config.synthesis.language,
        semantic=_build_semantic(config, embedder),
        contamination=contamination,
    )
    return Curator(config, kind, embedder, filters, contamination, list(benchmarks), reward, calibration)


def _build_semantic(config: Config, embedder: Embedder) -> Filter | None:
    """Return the filter on meaning; TF-IDF knows none and is asked only where that is wanted (METHOD 3.4)."""
    if config.embedder == "tfidf" and not config.curation.tfidf_semantic:
        return None
    return SemanticFilter(embedder, config.curation.semantic_duplicate)


def _tell_decision(decision: selection.Decision, scorer: Scorer) -> str:
    if decision.mean is None or decision.spread is None:
        by = "reward model" if scorer == "reward" else scorer
        return f"only {decision.n_scores} of the answers have a score by the {by}"
    told = f"mean score {decision.mean:.2f}, spread {decision.spread:.2f}"
    return f"{told}; offered for SFT" if decision.offer_to_sft else told


def check_sandbox(config: Config, kind: KindConfig | None) -> None:
    """Refuse a run that would have to run code where it cannot be kept in.

    Raises:
        ConfigError: tests are to be run and this machine has no sandbox for them.
    """
    if kind is None or "code" not in kind.checks or not config.curation.run_tests:
        return
    found = isolation()
    if not found.seccomp:
        why = f" ({found.notes[0]})" if found.notes else ""
        raise ConfigError(
            f"code cannot be run in isolation here{why}; --set curation.run_tests=false only has it parsed"
        )


def check_selection(config: Config, kind: KindConfig | None) -> None:
    """Refuse a scorer that could score nothing.

    Raises:
        ConfigError: no reward model is named, or a kind has nothing to verify.
    """
    selection = config.selection
    if kind is None or not selection.on:
        return
    if selection.scorer == "reward" and not selection.reward_model:
        raise ConfigError("selection.scorer is reward and no reward model is named; give --reward-model")
    if selection.scorer == "verifier" and "code" not in kind.checks and kind.shape != "thinking":
        raise ConfigError(
            f"selection.scorer is verifier, and kind {kind.name!r} has neither code nor worked-out numbers to verify; "
            "set it to auto, reward or judge"
        )


def check_language(config: Config) -> None:
    """Refuse a language that the filter of languages cannot tell, before anything is paid for.

    Raises:
        ConfigError: there is no such language, or texts in it cannot be recognised.
    """
    if "language" not in config.curation.off:
        find_language(config.synthesis.language)


def find_nearest(asked: pl.DataFrame, config: Config, benchmarks: Sequence[Benchmark]) -> list[Overlap]:
    """Return, as warnings, the items of evaluation sets nearest to instructions (id, text) that were kept."""
    prompts = [prompt for each in benchmarks for item in each.items for prompt in item.prompts]
    if not prompts or not len(asked):
        return []
    embedder = build_embedder(config.embedder, prompts, config.seed)
    usual = NEAR_BY_WORDS if config.embedder == "tfidf" else NEAR_BY_MEANING
    near = warn_nearest(asked, "text", "id", benchmarks, embedder, config.curation.warn_nearest or usual)
    return [Overlap(**row) for row in near.iter_rows(named=True)]


def load_benchmarks(config: Config) -> list[Benchmark]:
    """Read the evaluation sets of a run; none where it names none."""
    curation = config.curation
    if not curation.benchmarks or "contamination" in curation.off:
        return []
    return read_benchmarks(Path(curation.benchmarks), curation.benchmark_columns)


def read_settings(config: SelectionConfig) -> selection.SelectionSettings:
    """Return the bounds of selection as the config sets them."""
    return selection.SelectionSettings(
        least_learnability=config.least_learnability,
        least_spread=config.least_spread,
        most_spread=config.most_spread,
        least_noises=config.noise_factor,
        saturated_mean=config.saturated,
        hopeless_mean=config.hopeless,
        least_margin=config.least_margin,
        most_margin=config.most_margin,
        best_margin=config.best_margin,
        most_length_ratio=config.length_ratio,
    )
