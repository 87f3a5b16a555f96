"""Find, load and save programs: a class from `matrix_dspy.programs`, and a compiled state from `optimized/`.

A state is DSPy's own JSON with one more block, `metadata.matrix_dspy` (the card). Only JSON is read, no LM is stored
or restored, and a state that does not fit its class, or is not what was saved, is refused with both sides named.
"""

import errno
import hashlib
import json
import os
import re
import stat
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import dspy
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from matrix_dspy.errors import (
    ConfigError,
    ProgramNotFoundError,
    RunError,
    StateMismatchError,
    boundary,
    describe_os_error,
    did_you_mean,
)

PROGRAMS: dict[str, str] = {
    "anonymiser": "profile.Anonymiser",
    "privacy_checker": "profile.PrivacyChecker",
    "goal_setter": "agent.GoalSetter",
    "planner": "agent.Planner",
    "actor": "agent.Actor",
    "memory_keeper": "agent.MemoryKeeper",
    "intra_router": "modulator.IntraRouter",
    "inter_router": "modulator.InterRouter",
    "reception_router": "modulator.ReceptionRouter",
    "scenario_writer": "scenario.ScenarioWriter",
    "instruction_writer": "instruction.InstructionWriter",
    "instruction_rater": "instruction.InstructionRater",
    "follow_up_writer": "instruction.FollowUpWriter",
    "responder": "response.Responder",
    "converser": "response.Converser",
    "response_judge": "judge.ResponseJudge",
    "pair_judge": "judge.PairJudge",
    "output_judge": "judge.OutputJudge",
    "safety_judge": "judge.SafetyJudge",
    "arena_judge": "judge.ArenaJudge",
    "rating_judge": "judge.RatingJudge",
    "attack_judge": "judge.AttackJudge",
    "critic": "critique.Critic",
    "reviser": "critique.Reviser",
}
"""Program name to its class in `matrix_dspy.programs`, in the order of the path."""

LARGEST_STATE_BYTES = 8 * 2**20
MOST_DEMOS = 64
_MOST_VALUES = 50_000
"""Texts, numbers, lists and objects; in 8 MiB stand four million, and what pydantic says of them fills 6 GiB."""
_MOST_LEVELS = 50
_LONGEST_SHOWN = 1_000
"""Characters of a wrong value that an error shows."""
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
_CONTENT_MARK = "<<CUSTOM-TYPE-"
"""DSPy turns text after it into content blocks, such as an image to fetch."""


class _FieldState(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prefix: str
    description: str


class _SignatureState(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    instructions: str
    fields: list[_FieldState]


class _PredictorState(BaseModel):
    """What DSPy saves of a predictor, as far as it is let in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    demos: list[dict[str, Any]]
    signature: _SignatureState
    traces: list[Any] = []
    train: list[Any] = []
    lm: Any = None


def list_programs() -> list[str]:
    """Return the names `load_program` knows, in the order of the path."""
    return list(PROGRAMS)


def list_variants(name: str) -> list[str]:
    """Return the compiled variants of a program, those in `./optimized` and the package's own."""
    build_program(name)
    found = {path.stem for folder in search_path() for path in (folder / name).glob("*.json")}
    return sorted(filter(_VARIANT.fullmatch, found))


def search_path() -> list[Path]:
    """Return where states are looked for: `./optimized` first, then the package's own."""
    return [Path("optimized"), Path(__file__).parent / "optimized"]


def find_variant(name: str, variant: str) -> Path | None:
    """Return where the state of a variant stands, whatever it is; None where there is nothing of that name.

    Raises:
        StateMismatchError: its place cannot be looked at.
    """
    if not _VARIANT.fullmatch(variant):
        return None
    places = (folder / name / f"{variant}.json" for folder in search_path())
    return next(filter(_is_there, places), None)


def build_program(name: str) -> dspy.Module:
    """Return a program as written, not compiled.

    Raises:
        ProgramNotFoundError: there is no such program.
    """
    if name not in PROGRAMS:
        raise ProgramNotFoundError(f"no program {name!r}; {did_you_mean(name, list(PROGRAMS))}")
    module, _, kind = PROGRAMS[name].partition(".")
    return getattr(import_module(f"matrix_dspy.programs.{module}"), kind)()


def load_program(name_or_path: str | Path, variant: str = "default") -> dspy.Module:
    """Return a program with its compiled state, ready to run; without a default state, the program as written.

    `name_or_path` is a program's name, or the path of a state file that `save_program` wrote.

    Raises:
        ProgramNotFoundError: no such program, variant or file.
        StateMismatchError: the state does not fit the program.
    """
    if isinstance(name_or_path, Path) or str(name_or_path).endswith(".json"):
        return _load_file(Path(name_or_path))
    name = str(name_or_path)
    program = build_program(name)
    if path := find_variant(name, variant):
        return _load_state(program, name, path)
    if variant == "default":
        return program
    known = sorted({"default", *list_variants(name)})
    raise ProgramNotFoundError(f"program {name!r} has no variant {variant!r}; {did_you_mean(variant, known)}")


def save_program(program: dspy.Module, path: str | Path, *, card: dict[str, Any] | None = None) -> None:
    """Save a program's state and card as JSON, without its LM; the file is whole or not there.

    `card` adds what is known of how the state came about (optimizer, scores).

    Raises:
        ProgramNotFoundError: the program is none of this package's.
        RunError: the file cannot be written.
    """
    name = name_program(program)
    state = _dump_state(program)
    full = {"program": name, "fields": describe_fields(program), **(card or {}), "dspy": dspy.__version__}
    full["prompt_sha256"], full["state_sha256"] = hash_prompt(program), _hash_state(state)
    whole = {**state, "metadata": {"dependency_versions": _dspy_versions(), "matrix_dspy": full}}
    path = Path(path)
    with boundary(RunError, f"save the state {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        beside.write_bytes(f"{json.dumps(whole, indent=2, ensure_ascii=False)}\n".encode())
        beside.replace(path)


def state_path(folder: Path, name: str, variant: str) -> Path:
    """Return where a variant of a program is saved in a folder of states.

    Raises:
        ConfigError: the variant's name will not do as a file name.
    """
    if not _VARIANT.fullmatch(variant):
        raise ConfigError(f"variant {variant!r} does not do; write letters, digits, - and _")
    return folder / name / f"{variant}.json"


def hash_state(program: dspy.Module) -> str:
    """Hash what shapes a program's prompts (instructions, field texts, demos), whatever DSPy makes of it."""
    return _hash_state(_dump_state(program))


def read_card(path: Path) -> dict[str, Any]:
    """Return the card of a state file.

    Raises:
        StateMismatchError: it is no state of this package.
    """
    return _read_state(path)["metadata"]["matrix_dspy"]


def name_program(program: dspy.Module) -> str:
    """Return the registered name of a program's class."""
    kind = f"{type(program).__module__.rpartition('.')[2]}.{type(program).__name__}"
    for name, home in PROGRAMS.items():
        if home == kind:
            return name
    raise ProgramNotFoundError(f"{type(program).__name__} is none of this package's programs")


def read_signature(program: dspy.Module) -> type[dspy.Signature]:
    """Return the signature of a program's first predictor."""
    signature: Any = program.predictors()[0].signature
    return signature


def describe_fields(program: dspy.Module) -> list[str]:
    """Return the fields in order as `input name: type` with their bounds, the shape a state must fit."""
    signature = read_signature(program)
    inputs = [f"input {name}: {_name_type(field)}" for name, field in signature.input_fields.items()]
    return inputs + [f"output {name}: {_name_type(field)}" for name, field in signature.output_fields.items()]


def hash_prompt(program: dspy.Module) -> str:
    """Hash the messages the program would send for inputs that are their own names."""
    predictor, signature = program.predictors()[0], read_signature(program)
    adapter = getattr(program, "adapter", None) or dspy.ChatAdapter(use_json_adapter_fallback=False)
    inputs = {name: f"<{name}>" for name in signature.input_fields}
    messages = adapter.format(signature, predictor.demos, inputs)
    return _hash_text(json.dumps(messages, ensure_ascii=False))


def _name_type(field: Any) -> str:
    """Name a field's type with its bounds; of a model's own fields a hash of their schema."""
    annotation = field.annotation
    is_plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    words = annotation.__name__ if is_plain else str(annotation)
    schema = TypeAdapter(annotation).json_schema()
    if "$defs" in schema or "properties" in schema:
        words += f" #{_hash(schema)[:8]}"
    return words + "".join(f" [{bound}]" for bound in map(str, field.metadata))


def _dump_state(program: dspy.Module) -> dict[str, Any]:
    """Return a program's state as JSON holds it, without LM and traces."""
    copy = program.deepcopy()
    copy.set_lm(None)  # pyright: ignore[reportArgumentType]
    state = copy.dump_state()
    for predictor in state.values():
        predictor["traces"], predictor["train"] = [], []
    return json.loads(json.dumps(state, ensure_ascii=False))


def _hash(value: Any) -> str:
    return _hash_text(json.dumps(value, sort_keys=True, ensure_ascii=False))


def _hash_state(state: dict[str, Any]) -> str:
    """Hash a state; the order of keys counts within the values of demos only, since prompts show it there."""
    ordered = {
        name: {
            key: [dict(sorted(demo.items())) for demo in part] if key == "demos" else _sort_keys(part)
            for key, part in sorted(predictor.items())
        }
        for name, predictor in sorted(state.items())
    }
    return _hash_text(json.dumps(ordered, ensure_ascii=False))


def _sort_keys(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


def _hash_text(text: str) -> str:
    # halves of surrogate pairs are hashed as they are: replaced by "?", they could stand in for it
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _dspy_versions() -> dict[str, str]:
    from dspy.utils.saving import get_dependency_versions

    return get_dependency_versions()


def _load_file(path: Path) -> dspy.Module:
    if not _is_there(path):
        raise ProgramNotFoundError(f"no state file {str(path)!r}; check the path")
    name = _read_state(path)["metadata"]["matrix_dspy"].get("program")
    if not isinstance(name, str):
        raise StateMismatchError(f"{str(path)!r} does not name its program")
    if name not in PROGRAMS:
        words = did_you_mean(name, list(PROGRAMS))
        raise ProgramNotFoundError(f"there is no program {_show(name)}, for which {str(path)!r} was saved; {words}")
    return _load_state(build_program(name), name, path)


def _load_state(program: dspy.Module, name: str, path: Path) -> dspy.Module:
    state = _read_state(path)
    card = state["metadata"]["matrix_dspy"]
    wanted, found = describe_fields(program), card.get("fields")
    if card.get("program") != name or found != wanted:
        raise StateMismatchError(
            f"{str(path)!r} does not fit program {name!r}: it was saved for {_show(card.get('program'))} "
            f"with fields {_show(found)}, the program has {wanted}; compile it again"
        )
    predictors = [key for key in state if key != "metadata"]
    own = [key for key, _ in program.named_predictors()]
    if predictors != own:
        raise StateMismatchError(
            f"{str(path)!r} holds predictors {_show(predictors)}, the program has {own}; compile it again"
        )
    inner = {key: _check_predictor(state[key], predictor, path) for key, predictor in program.named_predictors()}
    if (own_hash := _hash_state(inner)) != (hashed := card.get("state_sha256")):
        raise StateMismatchError(
            f"{str(path)!r} is not what was saved: its instructions or demos hash to {_show(own_hash, 12)}, its card "
            f"says {_show(hashed, 12)}; compile it again, or save a change with save_program"
        )
    try:
        program.load_state(inner)
    except Exception as error:
        words = _show(str(error))
        raise StateMismatchError(f"{str(path)!r} is no state of program {name!r}: {words}; compile it again") from error
    program.set_lm(None)  # pyright: ignore[reportArgumentType]
    return program


def _check_predictor(found: Any, predictor: Any, path: Path) -> dict[str, Any]:
    """Return a predictor's state with nothing in it but what shapes its prompt, or say what is wrong with it."""
    try:
        state = _PredictorState.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "predictor"
        raise StateMismatchError(f"{str(path)!r} is no state: {_show(place)}: {first['msg'].lower()}") from error
    signature = predictor.signature
    fields = {**signature.input_fields, **signature.output_fields}
    wanted = [(field.json_schema_extra["prefix"], field.json_schema_extra["desc"]) for field in fields.values()]
    shown = [(field.prefix, field.description) for field in state.signature.fields]
    for number, (one, other) in enumerate(zip_longest(shown, wanted), 1):
        if one != other:
            raise StateMismatchError(
                f"{str(path)!r} shows field {number} as {_show(one)}, the program as {other}; compile it again"
            )
    if len(state.demos) > MOST_DEMOS:
        raise StateMismatchError(f"{str(path)!r} holds {len(state.demos):,} demos; {MOST_DEMOS} are the most")
    for number, demo in enumerate(state.demos):
        _check_demo(demo, fields, f"{str(path)!r}, demo {number}")
    if _CONTENT_MARK in state.signature.instructions:
        raise StateMismatchError(f"{str(path)!r}: the instructions hold {_CONTENT_MARK!r}, which DSPy would obey")
    return {
        "traces": [],
        "train": [],
        "demos": state.demos,
        "signature": state.signature.model_dump(),
        "lm": None,
    }


def _check_demo(demo: dict[str, Any], fields: dict[str, Any], where: str) -> None:
    if unknown := sorted(set(demo) - set(fields) - {"augmented"}):
        raise StateMismatchError(f"{where} has a field {_show(unknown[0])}; the program has {list(fields)}")
    if _CONTENT_MARK in json.dumps(demo, ensure_ascii=False):
        raise StateMismatchError(f"{where} holds {_CONTENT_MARK!r}, which DSPy would obey")
    for name, value in demo.items():
        if name in fields:
            try:
                TypeAdapter(fields[name].annotation).validate_python(value)
            except ValidationError as error:
                words = error.errors()[0]["msg"].lower()
                raise StateMismatchError(f"{where}, field {name!r}: {words}") from error


def _is_there(path: Path) -> bool:
    """Whether anything has this name: a file, and also what is none, so that it is never passed over in silence."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise _cannot_read(path, error) from error
    return True


def _cannot_read(path: Path, error: OSError) -> StateMismatchError:
    return StateMismatchError(f"could not read {str(path)!r}: {describe_os_error(error)}")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise StateMismatchError(f"{str(path)!r} is no file; a state is one, written by save_program")
        if found.st_size > LARGEST_STATE_BYTES:
            raise StateMismatchError(f"{str(path)!r} is larger than any state ({LARGEST_STATE_BYTES:,} bytes)")
        state = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_twins)
        _check_extent(state, path)
        # refuses infinities and halves of characters, which JSON's escapes and exponents let in
        json.dumps(state, ensure_ascii=False, allow_nan=False).encode()
    except StateMismatchError:
        raise
    except OSError as error:
        raise _cannot_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise StateMismatchError(f"{str(path)!r} is not JSON as save_program writes it; compile it again") from error
    metadata = state.get("metadata") if isinstance(state, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("matrix_dspy"), dict):
        raise StateMismatchError(f"{str(path)!r} is no state saved by matrix_dspy; it has no card")
    return state


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands there twice")
    return made


def _check_extent(state: Any, path: Path) -> None:
    """Refuse more values or levels than any state has, before anything is made of them."""
    level, n_values, n_levels = [state], 0, 0
    while level:
        n_values, n_levels = n_values + len(level), n_levels + 1
        if n_values > _MOST_VALUES or n_levels > _MOST_LEVELS:
            most = f"{_MOST_VALUES:,} values on {_MOST_LEVELS} levels"
            raise StateMismatchError(f"{str(path)!r} holds more than any state ({most}); compile it again")
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values]


def _show(value: Any, longest: int = _LONGEST_SHOWN) -> str:
    """Return a value of a file as an error shows it: on one line, and only its beginning where it is long."""
    if isinstance(value, str):
        return repr(value[:longest]) + ("..." if len(value) > longest else "")
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
