"""Find, load and save programs: a class from `matrix_dspy.programs`, and a compiled state from `optimized/`.

A state is DSPy's own JSON with one more block, `metadata.matrix_dspy` (the card). Only JSON is read, no LM is stored
or restored, and a state that does not fit its class is refused with both shapes named.
"""

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import dspy

from matrix_dspy.errors import (
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
    "responder": "response.Responder",
    "response_judge": "judge.ResponseJudge",
    "critic": "critique.Critic",
    "reviser": "critique.Reviser",
}
"""Program name to its class in `matrix_dspy.programs`, in the order of the path."""

LARGEST_STATE_BYTES = 8 * 2**20


def list_programs() -> list[str]:
    """Return the names `load_program` knows, in the order of the path."""
    return list(PROGRAMS)


def list_variants(name: str) -> list[str]:
    """Return the compiled variants of a program, those in `./optimized` and the package's own."""
    build_program(name)
    return sorted({path.stem for folder in search_path() for path in (folder / name).glob("*.json")})


def search_path() -> list[Path]:
    """Return where states are looked for: `./optimized` first, then the package's own."""
    return [Path("optimized"), Path(__file__).parent / "optimized"]


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
    for folder in search_path():
        path = folder / name / f"{variant}.json"
        if variant.replace("-", "").replace("_", "").replace(".", "").isalnum() and path.is_file():
            return _load_state(program, name, path)
    if variant == "default":
        return program
    known = ["default", *list_variants(name)]
    raise ProgramNotFoundError(f"program {name!r} has no variant {variant!r}; {did_you_mean(variant, known)}")


def save_program(program: dspy.Module, path: str | Path, *, card: dict[str, Any] | None = None) -> None:
    """Save a program's state and card as JSON, without its LM.

    `card` adds what is known of how the state came about (optimizer, scores).

    Raises:
        ProgramNotFoundError: the program is none of this package's.
    """
    name = name_program(program)
    copy = program.deepcopy()
    copy.set_lm(None)  # pyright: ignore[reportArgumentType]
    state = copy.dump_state()
    full = {"program": name, "fields": describe_fields(program), **(card or {}), "dspy": dspy.__version__}
    full["prompt_sha256"] = hash_prompt(program)
    state["metadata"] = {"dependency_versions": _dspy_versions(), "matrix_dspy": full}
    path = Path(path)
    with boundary(RunError, f"save the state {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
    """Return the fields in order as `input name: type`, the shape a state must fit."""
    signature = read_signature(program)
    inputs = [f"input {name}: {_name_type(field.annotation)}" for name, field in signature.input_fields.items()]
    return inputs + [
        f"output {name}: {_name_type(field.annotation)}" for name, field in signature.output_fields.items()
    ]


def hash_prompt(program: dspy.Module) -> str:
    """Hash the messages the program would send for inputs that are their own names."""
    predictor, signature = program.predictors()[0], read_signature(program)
    adapter = getattr(program, "adapter", None) or dspy.ChatAdapter(use_json_adapter_fallback=False)
    inputs = {name: f"<{name}>" for name in signature.input_fields}
    messages = adapter.format(signature, predictor.demos, inputs)
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode()).hexdigest()


def _name_type(annotation: Any) -> str:
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )


def _dspy_versions() -> dict[str, str]:
    from dspy.utils.saving import get_dependency_versions

    return get_dependency_versions()


def _load_file(path: Path) -> dspy.Module:
    if not path.is_file():
        raise ProgramNotFoundError(f"no state file {str(path)!r}; check the path")
    name = _read_state(path)["metadata"]["matrix_dspy"].get("program")
    if not isinstance(name, str):
        raise StateMismatchError(f"{str(path)!r} does not name its program")
    return _load_state(build_program(name), name, path)


def _load_state(program: dspy.Module, name: str, path: Path) -> dspy.Module:
    state = _read_state(path)
    card = state["metadata"]["matrix_dspy"]
    wanted, found = describe_fields(program), card.get("fields")
    if card.get("program") != name or found != wanted:
        raise StateMismatchError(
            f"{str(path)!r} does not fit program {name!r}: it was saved for {card.get('program')!r} "
            f"with fields {found}, the program has {wanted}; compile it again"
        )
    predictors = [key for key in state if key != "metadata"]
    own = [key for key, _ in program.named_predictors()]
    if predictors != own:
        raise StateMismatchError(
            f"{str(path)!r} holds predictors {predictors}, the program has {own}; compile it again"
        )
    try:
        for predictor in own:
            state[predictor]["lm"] = None
        program.load_state(state)
    except Exception as error:
        raise StateMismatchError(f"{str(path)!r} is no state of program {name!r}: {error}; compile it again") from error
    program.set_lm(None)  # pyright: ignore[reportArgumentType]
    return program


def _read_state(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_STATE_BYTES:
            raise StateMismatchError(f"{str(path)!r} is larger than any state ({LARGEST_STATE_BYTES:,} bytes)")
        state = json.loads(path.read_text(encoding="utf-8"))
    except StateMismatchError:
        raise
    except OSError as error:
        raise StateMismatchError(f"could not read {str(path)!r}: {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise StateMismatchError(f"{str(path)!r} is not JSON; a state is written by save_program") from error
    metadata = state.get("metadata") if isinstance(state, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("matrix_dspy"), dict):
        raise StateMismatchError(f"{str(path)!r} is no state saved by matrix_dspy; it has no card")
    return state
