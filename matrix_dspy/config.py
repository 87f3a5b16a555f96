"""Every knob, with a sentence under each; read from a TOML recipe, changed by flags and `--set section.key=value`.

Configs are cheap and frozen, and unknown keys are refused. Keys of `[operation]` may change between starts of one run
and `n` may grow; any other key is part of what the run is.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from matrix_dspy.errors import ConfigError, describe_os_error, did_you_mean
from matrix_dspy.types import Communication, FilterName, InstructionType, KindCheck, Shape, Structured

S = TypeVar("S", bound="Section")
Words = Annotated[str, Field(pattern=r"\S")]
"""Text that says something."""

RECIPES = Path(__file__).parent / "recipes"
KIND_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class Section(BaseModel):
    """A frozen part of the config that knows its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class SamplingConfig(Section):
    """How one program's completions are drawn."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    """0 takes the likeliest token, higher is more various."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of probability mass to draw from; unset leaves it to the server."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer, in tokens."""
    top_k: int | None = Field(default=None, ge=-1)
    """Number of likeliest tokens to draw from, on servers that know it (vLLM); unset leaves it to the server."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a token, as a share of the likeliest one's, on servers that know it."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Above 1 makes tokens that were used less likely, on servers that know it."""
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None
    """Switches of the model's chat template, such as `enable_thinking = false`."""
    priority: int | None = None
    """Place in the server's queue, lower first, on servers that schedule by priority."""


SAMPLING: dict[str, SamplingConfig] = {
    "anonymiser": SamplingConfig(temperature=0.3, max_tokens=2048),
    "privacy_checker": SamplingConfig(temperature=0.0, max_tokens=256),
    "goal_setter": SamplingConfig(temperature=0.7, max_tokens=512),
    "planner": SamplingConfig(temperature=0.7, max_tokens=768),
    "actor": SamplingConfig(temperature=0.8, max_tokens=384),
    "memory_keeper": SamplingConfig(temperature=0.3, max_tokens=384),
    "intra_router": SamplingConfig(temperature=0.0, max_tokens=256),
    "inter_router": SamplingConfig(temperature=0.0, max_tokens=256),
    "reception_router": SamplingConfig(temperature=0.0, max_tokens=512),
    "scenario_writer": SamplingConfig(temperature=0.5, max_tokens=768),
    "instruction_writer": SamplingConfig(temperature=0.9, max_tokens=768),
    "instruction_rater": SamplingConfig(temperature=0.0, max_tokens=384),
    "responder": SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=2048),
    "response_judge": SamplingConfig(temperature=0.0, max_tokens=384),
    "pair_judge": SamplingConfig(temperature=0.0, max_tokens=384),
    "output_judge": SamplingConfig(temperature=0.0, max_tokens=384),
    "safety_judge": SamplingConfig(temperature=0.0, max_tokens=384),
    "arena_judge": SamplingConfig(temperature=0.0, max_tokens=512),
    "rating_judge": SamplingConfig(temperature=0.0, max_tokens=512),
    "attack_judge": SamplingConfig(temperature=0.0, max_tokens=384),
    "converser": SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=2048),
    "follow_up_writer": SamplingConfig(temperature=0.9, max_tokens=384),
    "critic": SamplingConfig(temperature=0.5, max_tokens=1024),
    "reviser": SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=2048),
}
"""Shipped sampling per program; the papers state none but T 0.7, top-p 0.9 for pairs (METHOD 3.3)."""


class PopulationConfig(Section):
    """Who lives."""

    profiles: str = ""
    """A JSONL, JSON, CSV or Parquet file of profiles, or a folder of JSON files; empty is the shipped invented set."""
    columns: dict[str, str] = {}
    """Where the fields stand in that file, as field = column; guessed from usual names where not given."""
    n_agents: int = Field(default=1000, ge=1)
    """Agents at the most; fewer when the file holds fewer. Paper: 1,000."""
    privacy_check: bool = True
    """Whether a second call checks every anonymous version; off only where all profiles are invented."""
    n_retries: int = Field(default=2, ge=0)
    """Further tries at anonymising a profile before it is dropped."""
    memory_tokens: int = Field(default=1500, ge=200)
    """Tokens of memory in a prompt before the older half is summarised."""
    n_recalled: int = Field(default=3, ge=0)
    """Folded memories shown again when they resemble what is going on."""


class SimulationConfig(Section):
    """How they live together."""

    communication: Communication = "structured"
    """Who observes an action: as modulators decide, a random draw, or nobody."""
    n_groups: int | None = Field(default=None, ge=1)
    """Groups to form; unset is one for every five agents. Paper: 200 for 1,000."""
    max_group_size: int = Field(default=10, ge=1)
    """Most agents in a group. Paper: 10."""
    scenarios: int | None = Field(default=None, ge=1)
    """Scenarios to simulate before instructions are written; unset follows from n. Paper: up to 10,000."""
    lookahead: int = Field(default=3, ge=0)
    """Rounds an event takes to reach another group; 0 makes all groups meet at every boundary."""
    rounds_per_scenario: int = Field(default=1, ge=1)
    """Turns every live agent has before a scenario may close; 3 shows reactions inside it, at three times the cost."""
    min_actions: int = Field(default=3, ge=1)
    """Actions a scenario needs before it may close. Paper: 3."""
    max_plans: int = Field(default=20, ge=1)
    """Plans an agent may make, one after the other. Paper: 1."""
    max_actions_per_step: int = Field(default=3, ge=1)
    """Turns after which a step of the plan is left, done or not."""
    max_late_reactions: int = Field(default=2, ge=0)
    """Reactions an agent may still have when its last plan is finished."""
    shortlist: int = Field(default=20, ge=1)
    """Groups shown to the router between groups, most similar first."""
    max_target_groups: int = Field(default=3, ge=0)
    """Other groups an action may reach."""
    max_outside_events: int = Field(default=5, ge=0)
    """Newest events from outside that a group takes in at a boundary."""
    quiet_boundaries: int = Field(default=3, ge=1)
    """Boundaries in a row without a new scenario after which a group rests."""
    random_receivers: int = Field(default=2, ge=0)
    """In mode random: receivers of each action."""


class SynthesisConfig(Section):
    """What is made of the scenarios; what a kind says of type, language and look-alikes holds where nothing is set."""

    kind: str = "sft"
    """Which kind of data: a file name in recipes/kinds or a path to one's own."""
    type: InstructionType = "simple"
    """Simple everyday instructions or specialised ones (METHOD 3.2)."""
    need: str = ""
    """What the data is for, in words; scenarios near to it are preferred. Empty draws evenly over groups."""
    language: str = "English"
    """The language instructions are asked for in."""
    turns: int | None = Field(default=None, ge=2, le=5)
    """User's turns in a dialogue; unset is the kind's."""
    lookalike_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of harmless look-alikes among harmful asks (kind safety); unset is the kind's. 0.2 is advised."""
    refine: int = Field(default=0, ge=0, le=8)
    """Rounds of critique and revision at the most; a revision is kept only where the judge prefers it both ways."""
    rate: bool = True
    """Whether kept instructions are rated for quality and difficulty, one call a row; for analysis, never a filter."""
    relevance_weight: float = Field(default=0.7, ge=0, le=1)
    """Weight of relevance against variety when scenarios are retrieved by need (MMR)."""
    oversample: float = Field(default=1.5, ge=1)
    """Candidates simulated for every row wanted, to start with."""
    need_oversample: float = Field(default=3.0, ge=1)
    """The same where a need is given, so that there is something to choose from."""
    group_share: float = Field(default=0.05, gt=0, le=1)
    """Largest share of the set that one group may supply, or two even shares where that is more."""


class CurationConfig(Section):
    """What is dropped."""

    off: tuple[FilterName, ...] = ()
    """Filters that are not asked, for trying the plumbing with a model that knows nothing; the card names them."""
    min_words: int = Field(default=5, ge=1)
    """Shortest instruction, in words."""
    max_words: int = Field(default=400, ge=1)
    """Longest instruction, in words."""
    leak_words: int = Field(default=12, ge=4)
    """Length of a run of words shared with a raw profile that counts as a leak."""
    shingle_words: int = Field(default=2, ge=1)
    """Words in a run, for near duplicates; single words count beside the runs."""
    near_duplicate: float = Field(default=0.77, gt=0, le=1)
    """Jaccard similarity of words and unordered runs of words from which two instructions are near duplicates."""
    semantic_duplicate: float = Field(default=0.92, gt=0, le=1)
    """Cosine from which two instructions mean the same; asked only where `embedder` is a real sentence embedder."""
    tfidf_semantic: bool = False
    """Whether semantic duplicates are looked for with TF-IDF too, which sees words and no meaning."""
    run_tests: bool = True
    """Whether the tests that code brings are run, in a sandbox (kind code); off, the code must only parse."""
    benchmarks: str = ""
    """Folder of evaluation sets that rows must not share 13-word runs or whole texts with; empty checks none."""
    benchmark_columns: dict[str, str] = {}
    """Where the prompts stand in those files, as file name = column; guessed from usual names where not given."""
    warn_nearest: float | None = Field(default=None, gt=0, le=1)
    """Cosine to the nearest item of an evaluation set from which a row is named; unset is 0.65 for tfidf, else 0.9."""
    judge_threshold: float | None = Field(default=None, ge=1, le=5)
    """Least score of a response by the judge, 1 to 5; unset is the kind's, and none where that has none."""
    diverse: Literal["", "mmr", "dpp"] = ""
    """How the kept rows are picked out of the survivors: first come where empty, else for variety."""
    diverse_pool: float = Field(default=2.0, ge=1)
    """Survivors wanted for every row picked, where rows are picked for variety."""
    diverse_weight: float = Field(default=0.8, ge=0, le=1)
    """Weight of variety against rank in that pick."""


class SelectionConfig(Section):
    """Which instructions can still teach the model to be trained (METHOD 3.6); this project's own, not the paper's."""

    on: bool = False
    """Whether rows are selected by the scores of sampled answers."""
    k: int = Field(default=8, ge=2, le=64)
    """Answers sampled from the model to be trained for every instruction."""
    scorer: Literal["auto", "verifier", "reward", "judge"] = "auto"
    """Who scores; auto asks a verifier where one applies, else the reward model where one is given, else the judge."""
    reward_model: str = ""
    """Reward model: a transformers folder, or http://host:port#model of a pooling server."""
    temperature: float = Field(default=0.9, ge=0, le=2)
    """Temperature of the samples."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Top-p of the samples."""
    least_learnability: float = Field(default=0.10, ge=0, le=0.25)
    """Least p(1-p) where answers pass or fail."""
    least_spread: float = Field(default=0.05, ge=0)
    """Least standard deviation of the scores where they are graded."""
    most_spread: float = Field(default=0.35, ge=0)
    """Largest standard deviation of graded scores."""
    noise_factor: float = Field(default=2.0, ge=0)
    """How often the scorer's own repeat noise the spread must be."""
    saturated: float = Field(default=0.9, ge=0, le=1)
    """Mean score from which an instruction of little spread is too easy."""
    hopeless: float = Field(default=0.1, ge=0, le=1)
    """Mean score up to which an instruction of little spread is too hard."""
    least_margin: float = Field(default=0.10, ge=0, le=1)
    """Least difference of the scores of a pair."""
    best_margin: float = Field(default=0.35, ge=0, le=1)
    """Difference that is taken first."""
    most_margin: float = Field(default=0.60, ge=0, le=1)
    """Largest difference of the scores of a pair."""
    length_ratio: float = Field(default=2.0, ge=1)
    """How many times longer one side of a pair may be than the other."""
    force: bool = False
    """Whether a judge without a calibration is used all the same."""


class LMConfig(Section):
    """Which model plays which part; a part that is unset is played by `main`."""

    main: str = "rehearsal"
    """The model that simulates, writes and answers: see --lm."""
    writer: str = ""
    """The model that writes instructions and follow-ups."""
    responder: str = ""
    """The model that answers, and revises: the aligned model."""
    judge: str = ""
    """The model that judges, compares, criticises and rates."""
    rejected: str = ""
    """The model to be trained, which gives the rejected side of pairs: the SFT model about to be tuned."""
    structured: Structured = "auto"
    """Whether typed outputs are asked for with a JSON schema: auto does so on servers known to hold a model to it."""
    longest_text: int | None = Field(default=None, ge=8)
    """Longest text in an answer with a schema, in characters; unset sets no bound but max_tokens."""

    @property
    def parts(self) -> dict[str, str]:
        """The parts that have a model of their own."""
        named = {"writer": self.writer, "responder": self.responder, "judge": self.judge, "rejected": self.rejected}
        return {part: spec for part, spec in named.items() if spec}


class OperationConfig(Section):
    """How the work is done; nothing here changes the result, so all of it may change between starts."""

    concurrency: int = Field(default=32, ge=1, le=65536)
    """Calls in flight at the most, for each model."""
    concurrency_of: dict[Literal["main", "writer", "responder", "judge", "rejected"], int] = {}
    """The same for one part's model, where it differs."""
    refresh_s: float = Field(default=120.0, ge=0)
    """Seconds between two writings of tables and card while a run goes on; 0 writes them at its end only."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one answer, in seconds."""
    patience_s: float = Field(default=600.0, gt=0)
    """How long a server that answers nobody is waited for before the run stops, in seconds."""
    hedge_s: float | None = Field(default=None, gt=0)
    """Seconds after which a request without an answer is sent a second time, both paid for; unset never does."""
    send_seeds: bool = True
    """Whether every call's own seed is sent; some servers are slower with it, or fail."""
    max_calls: int | None = Field(default=None, ge=1)
    """Calls to send in this start at the most."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens in and out to take in this start at the most; calls in flight come on top."""
    max_cost: float | None = Field(default=None, gt=0)
    """Dollars to spend in this start at the most; calls in flight come on top."""
    max_time_s: float | None = Field(default=None, gt=0)
    """Seconds this start may take; calls in flight come on top."""
    price_in: float | None = Field(default=None, ge=0)
    """Dollars a million prompt tokens, where the price map does not know the model."""
    price_out: float | None = Field(default=None, ge=0)
    """Dollars a million completion tokens."""
    ray: str | None = None
    """Address of a Ray cluster to spread calls over; empty starts one on this machine, unset uses none."""
    ray_workers: int | None = Field(default=None, ge=1)
    """Workers on the cluster; unset is one a GPU for vllm: and one a machine else."""
    data_parallel: int = Field(default=1, ge=1)
    """Copies of the model that an in-process vLLM spreads over the GPUs of this machine."""
    plots: bool = True
    """Whether the card comes with plots, about two seconds' work."""
    keep_prompts: bool = False
    """Whether prompts are journaled in full, not only as hashes."""
    trace_share: float = Field(default=0.0, ge=0, le=1)
    """Share of calls traced with OpenTelemetry to OTEL_EXPORTER_OTLP_ENDPOINT (extra `trace`)."""


class Config(Section):
    """A whole run."""

    recipe: str = "tiny"
    """Name of the recipe this came from."""
    n: int = Field(default=200, ge=1)
    """Rows to keep."""
    seed: int = Field(default=0, ge=0)
    """Seed of every choice the library makes."""
    embedder: str = "tfidf"
    """`tfidf` (hashed n-grams, TF-IDF and SVD, no model) or `sentence-transformers:PATH` (extra `embed`)."""
    lm: LMConfig = LMConfig()
    population: PopulationConfig = PopulationConfig()
    simulation: SimulationConfig = SimulationConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    curation: CurationConfig = CurationConfig()
    selection: SelectionConfig = SelectionConfig()
    sampling: dict[str, SamplingConfig] = {}
    """Sampling per program, where it differs from what is shipped."""
    operation: OperationConfig = OperationConfig()

    def sampling_of(self, program: str) -> SamplingConfig:
        """Return how `program`'s completions are drawn."""
        shipped, own = SAMPLING.get(program, SamplingConfig()), self.sampling.get(program)
        if own is None:
            return shipped
        return shipped.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    @field_validator("sampling")
    @classmethod
    def _check_programs(cls, sampling: dict[str, SamplingConfig]) -> dict[str, SamplingConfig]:
        return check_programs(sampling)

    @field_validator("embedder")
    @classmethod
    def _check_embedder(cls, embedder: str) -> str:
        kind, _, path = embedder.partition(":")
        if embedder != "tfidf" and not (kind == "sentence-transformers" and path):
            raise ValueError("write 'tfidf' or 'sentence-transformers:PATH'")
        return embedder


class RequirementChoice(Section):
    """One value a requirement can take, and the words that ask for it."""

    name: Words
    """Short name, kept in the table."""
    text: Words
    """What the instruction writer is told."""
    weight: float = Field(default=1.0, gt=0)
    """How often it is drawn, against the others."""
    is_lookalike: bool = False
    """Whether it is harmless and only sounds harmful; drawn with the look-alikes' share."""


class KindConfig(Section):
    """One kind of data: what is asked of the instruction writer, how it is answered, what is checked."""

    name: str = Field(pattern=KIND_NAME)
    """Name of the kind, kept in the tables; small letters, digits, - and _."""
    describe: str
    """One sentence for people."""
    requirement: Words
    """The first line of every requirement."""
    shape: Shape = "single"
    """`single`, `pair` (two models answer), `dialogue` (the agent asks on), `thinking` (kept with the answer)."""
    checks: tuple[KindCheck, ...] = ()
    """Checks beyond those of every kind: `code` and `safety`."""
    type: InstructionType = "simple"
    """The instruction type where none is asked for."""
    language: str = "English"
    """The language where none is asked for."""
    n: int | None = Field(default=None, ge=1)
    """Rows to keep where the command does not say; it goes before the recipe's."""
    judge_threshold: float | None = Field(default=None, ge=1, le=5)
    """Least score of a response by the judge; unset judges none."""
    turns: int = Field(default=3, ge=2, le=5)
    """User's turns in a dialogue."""
    lookalike_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of categories marked `is_lookalike`."""
    most_alike: float = Field(default=0.95, gt=0, le=1)
    """Edit similarity up to which the two sides of a pair differ enough."""
    thinking_tokens: tuple[int, int] = (256, 8192)
    """Fewest and most tokens of thinking that are kept."""
    lengths: dict[InstructionType, Words]
    """What is said of length and shape, per instruction type."""
    categories: tuple[RequirementChoice, ...] = Field(min_length=1)
    """Task categories."""
    complexities: dict[InstructionType, tuple[RequirementChoice, ...]]
    """Levels of complexity, per instruction type."""
    styles: tuple[RequirementChoice, ...] = Field(min_length=1)
    """Ways of asking."""
    sampling: dict[str, SamplingConfig] = {}
    """Sampling per program where the kind needs another; a recipe's own wins."""
    programs: dict[str, str] = {}
    """Variant or state file per program where it is not `default`."""

    @field_validator("sampling", "programs")
    @classmethod
    def _check_programs(cls, named: dict[str, Any]) -> dict[str, Any]:
        return check_programs(named)

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if all(choice.is_lookalike for choice in self.categories):
            raise ValueError("every category is a look-alike; give one that is not")
        if self.lookalike_share and not any(choice.is_lookalike for choice in self.categories):
            raise ValueError("lookalike_share is set and no category is marked is_lookalike")
        for what, choices in (("categories", self.categories), ("styles", self.styles), *self.complexities.items()):
            names = [choice.name for choice in choices]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two of the {what} are called {twice[0]!r}; give each a name of its own")
        least, most = self.thinking_tokens
        if not 0 <= least <= most:
            raise ValueError(f"thinking_tokens = {least}, {most} will not do; write the fewest, then the most")
        return self

    def list_choices(self, type_: InstructionType) -> tuple[str, tuple[RequirementChoice, ...]]:
        """Return what is said of length and the levels of complexity for a type.

        Raises:
            ConfigError: the kind has none for it.
        """
        if type_ not in self.lengths or not self.complexities.get(type_):
            raise ConfigError(f"the kind {self.name!r} has no lengths or complexities for type {type_!r}; add them")
        return self.lengths[type_], self.complexities[type_]


def check_programs(named: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that are no program's."""
    for name in named:
        if name not in SAMPLING:
            raise ValueError(f"no program {name!r}; {did_you_mean(name, list(SAMPLING))}")
    return named


def apply_kind(config: Config, kind: KindConfig) -> Config:
    """Return the config with what the kind says put in wherever nothing was set."""
    own = config.synthesis.model_fields_set
    said: dict[str, Any] = {
        "type": kind.type,
        "language": kind.language,
        "turns": kind.turns if kind.shape == "dialogue" else None,
        "lookalike_share": kind.lookalike_share,
    }
    kept = {name: getattr(config.synthesis, name) for name in said if name in own}
    synthesis = config.synthesis.model_copy(
        update=said | {name: value for name, value in kept.items() if value is not None}
    )
    curation = config.curation
    if "judge_threshold" not in curation.model_fields_set:
        curation = curation.model_copy(update={"judge_threshold": kind.judge_threshold})
    sampling = {name: config.sampling[name] for name in config.sampling}
    for name, drawn in kind.sampling.items():
        given = {key: getattr(drawn, key) for key in drawn.model_fields_set}
        if name in sampling:
            given |= {key: getattr(sampling[name], key) for key in sampling[name].model_fields_set}
        sampling[name] = SamplingConfig(**given)
    kind.list_choices(synthesis.type)
    return config.model_copy(update={"synthesis": synthesis, "curation": curation, "sampling": sampling})


def load_recipe(name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """Load a recipe by name or path and apply changes given as `section.key` to value.

    Raises:
        ConfigError: no such recipe, unknown key, or a value out of bounds.
    """
    path = _find_toml(name, RECIPES, "recipe")
    values = _read_toml(path)
    if "stages" in values:
        raise ConfigError(
            f"recipe {path.stem!r} is a chain of others; name one of them: {', '.join(load_stages(name))}"
        )
    values["recipe"] = path.stem
    for key, value in (changes or {}).items():
        _put(values, key, value)
    return _validate(Config, values, path)


def change_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a config with changes given as `section.key` to value.

    Raises:
        ConfigError: unknown key, or a value out of bounds.
    """
    values = config.model_dump(exclude_unset=True)
    for key, value in changes.items():
        _put(values, key, value)
    return _validate(Config, values, Path(config.recipe))


def load_kind(name: str) -> KindConfig:
    """Load a kind of data by name or path.

    Raises:
        ConfigError: no such kind, or a broken file.
    """
    path = _find_toml(name, RECIPES / "kinds", "kind")
    return _validate(KindConfig, _read_toml(path), path)


def load_section(kind: type[S], name: str, folder: Path, noun: str, changes: Mapping[str, Any] | None = None) -> S:
    """Load a section of one's own from the TOML file `name`, in `folder` or at a path, with changes applied.

    Raises:
        ConfigError: no such file, unknown key, or a value out of bounds; `noun` is what the sentence calls the file.
    """
    path = _find_toml(name, folder, noun)
    values = _read_toml(path)
    for key, value in (changes or {}).items():
        _put(values, key, value)
    return _validate(kind, values, path, noun)


def load_stages(name: str) -> list[str]:
    """Return the stages of a recipe that is a chain of others, as METHOD 3.2 has them; a plain recipe is its own.

    Raises:
        ConfigError: no such recipe, or its stages are no list of names.
    """
    path = _find_toml(name, RECIPES, "recipe")
    values = _read_toml(path)
    if "stages" not in values:
        return [name]
    stages = values["stages"]
    if not (values.keys() == {"stages"} and isinstance(stages, list) and stages and all(map(_is_name, stages))):
        raise ConfigError(
            f"the stages of recipe {path.stem!r} are no list of recipes; write stages = ['type1-sft', ...]"
        )
    return stages


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, chains left out."""
    return sorted(path.stem for path in RECIPES.glob("*.toml") if "+" not in path.stem)


def list_chains() -> list[str]:
    """Return the names of the shipped recipes that are chains of others."""
    return sorted(path.stem for path in RECIPES.glob("*+*.toml"))


def list_kinds() -> list[str]:
    """Return the names of the shipped kinds."""
    return sorted(path.stem for path in (RECIPES / "kinds").glob("*.toml"))


def list_unset(config: BaseModel, before: str = "") -> list[str]:
    """Return the keys that have no value, as `section.key`."""
    keys: list[str] = []
    for name, value in config:
        if isinstance(value, BaseModel):
            keys += list_unset(value, f"{before}{name}.")
        elif value is None:
            keys.append(before + name)
    return keys


def parse_setting(text: str) -> tuple[str, Any]:
    """Read `section.key=value`; the value is TOML, or else a string.

    Raises:
        ConfigError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"cannot read --set {text!r}; write --set section.key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _find_toml(name: str, folder: Path, noun: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no {noun} file {name!r}; check the path")
        return path
    path = folder / f"{name}.toml"
    known = sorted(found.stem for found in folder.glob("*.toml"))
    if name not in known:
        raise ConfigError(f"no {noun} {name!r}; {did_you_mean(name, known)}")
    return path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"could not read {str(path)!r}: {describe_os_error(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not TOML: {error}") from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{section!r} is not a section; cannot set {key!r}")
    values[last] = value


def _validate(kind: type[S], values: dict[str, Any], path: Path, noun: str = "kind") -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_say_invalid(kind, error, path, noun)) from error


def _say_invalid(kind: type[Section], error: ValidationError, path: Path, noun: str) -> str:
    """Put the first fault into one sentence."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    where = f"recipe {path.stem!r}" if kind is Config else f"the {noun} file {str(path)!r}"
    within = "" if kind is Config else f" in {where}"
    if fault["type"] == "extra_forbidden":
        known = _list_keys(kind)
        near = did_you_mean(key, known)
        shown = {"kind": "see 'kinds sft' for all of them"}.get(noun, f"there are {', '.join(known)}")
        shown = "see 'generate --dry-run' for all of them" if kind is Config else shown
        advice = near if near.startswith("did") else shown
        return f"unknown key {key!r} in {where}; {advice}"
    if fault["type"] == "missing":
        return f"{str(path)!r} lacks the key {key!r}; add it"
    words = _FAULTS.get(fault["type"]) or _PATTERNS.get(fault.get("ctx", {}).get("pattern", ""), fault["msg"])
    words = words.removeprefix("Value error, ")
    shown = repr(fault["input"])
    shown = shown if len(shown) < 80 else shown[:77] + "..."
    said = f"{key} = {shown}{within}" if key else where
    return f"{said} does not do: {words[0].lower()}{words[1:]}"


_FAULTS = {"tuple_type": "write a list, as in ['...']", "list_type": "write a list, as in ['...']"}
_PATTERNS = {
    r"\S": "write some words",
    KIND_NAME: "write small letters, digits, - and _, beginning with a letter or a digit, at most 64 of them",
}
"""What pydantic would say of types and patterns, for people."""


def _list_keys(kind: type[BaseModel], before: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _list_keys(inner, f"{before}{name}.")
        else:
            keys.append(before + name)
    return keys
