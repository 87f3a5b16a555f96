"""Over 1,000 hostile states: each is refused in one sentence, or the prompt shows what was saved, and nothing else."""

import json
import os
import pickle
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import dspy
import pytest

from matrix_dspy import load_program, save_program
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.errors import ProgramNotFoundError, StateMismatchError
from matrix_dspy.loading import name_program
from tests.fuzz.states import (
    CHANGES,
    INPUTS,
    MARK,
    SPOILS,
    State,
    build_compiled,
    build_from_file,
    seal,
    write_state,
)

N_CHANGED = 120
N_SEALED = 120
N_SPOILT = 60
"""States of each program."""
LONGEST_ERROR = 3_000
"""Characters."""
SLOW_S = 30.0
"""Seconds that no state may take, on a busy machine; a good one takes a hundredth of one."""

Refusal = StateMismatchError | ProgramNotFoundError
Messages = list[dict[str, Any]]

_HARMLESS = frozenset({"os.listdir", "os.scandir", "glob.glob", "glob.glob/2", "pathlib.Path.glob", "os.fwalk"})
"""Events in which nothing but the names in a folder is read."""
_WATCHED = (
    *("open", "exec", "compile", "import", "marshal.", "pickle.", "ctypes.", "socket.", "urllib.", "http.", "ssl."),
    *("os.", "shutil.", "subprocess.", "tempfile.", "pty.", "fcntl.", "mmap.", "sqlite3.", "webbrowser.", "winreg."),
)


@dataclass
class Watch:
    """Notes what a block does to files, network and code; an audit hook cannot be taken away, so there is one."""

    thread: int = 0
    """The one that is watched; 0 is none."""
    allowed: str = ""
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self.thread or not event.startswith(_WATCHED) or event in _HARMLESS:
            return
        is_state = event == "open" and isinstance(args[0], str) and os.path.abspath(args[0]) == self.allowed  # noqa: PTH100
        if not is_state or "w" in str(args[1]):
            self.seen.append(f"{event} {args!r:.200}")

    @contextmanager
    def over(self, path: Path) -> Iterator[list[str]]:
        """Watch a block that may open this file and nothing else; give what else it does."""
        self.seen, self.allowed, self.thread = [], str(path.absolute()), threading.get_ident()
        try:
            yield self.seen
        finally:
            self.thread = 0


WATCH = Watch()


@pytest.fixture(scope="module", autouse=True)
def the_watch() -> None:
    sys.addaudithook(WATCH)


@dataclass(frozen=True)
class Saved:
    """A state as it was saved."""

    name: str
    content: bytes
    messages: Messages

    @property
    def state(self) -> State:
        """A state of one's own to be changed."""
        return json.loads(self.content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """The states as they were saved, each loaded once, so that all that is imported lately is there."""
    path = tmp_path_factory.mktemp("saved") / "state.json"
    made: dict[str, Saved] = {}
    for name in INPUTS:
        program = build_compiled(name)
        save_program(program, path)
        made[name] = Saved(name, path.read_bytes(), render(program))
        loaded = load_program(path)
        assert render(loaded) == made[name].messages
        check_plain(loaded, made[name].messages)
    path.write_bytes(b'{"predict": {"demos": 3}}')
    with pytest.raises(StateMismatchError):
        load_program(path)
    return made


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def render(program: dspy.Module) -> Messages:
    return Prompt.of(program).messages(INPUTS[name_program(program)])


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load(path: Path, *names: str) -> tuple[dspy.Module | None, Messages, str]:
    """Load a state, by its path or by names, and render; give the program and its messages, or the refusal."""
    with time_limit(SLOW_S), WATCH.over(path) as seen:
        program, messages, refusal = None, [], ""
        try:
            program = load_program(*names) if names else load_program(path)
            messages = render(program)
            check_plain(program, messages)
        except (StateMismatchError, ProgramNotFoundError) as error:
            refusal = check_refusal(error)
    assert seen == []
    return program, messages, refusal


def check_refusal(error: Refusal) -> str:
    """Return what a refusal says; it is one sentence that can be shown and written anywhere."""
    words = str(error)
    assert words and words.isprintable() and words.encode(), repr(words)
    assert len(words) < LONGEST_ERROR, words[:200]
    for sign in ("Traceback", "Exception", "object at 0x", "errors.pydantic.dev"):
        assert sign not in words, words[:200]
    return words


def check_plain(program: dspy.Module, messages: Messages) -> None:
    """Assert that a loaded program has no LM and sends nothing but text, in either form of asking."""
    assert [predictor.lm for predictor in program.predictors()] == [None]
    structured = Prompt.of(program).structured().messages(INPUTS[name_program(program)])
    for message in messages + structured:
        assert set(message) == {"role", "content"}
        assert type(message["content"]) is str and MARK not in message["content"]


def draw_change(rng: random.Random, number: int, state: State, other: State) -> tuple[State, str]:
    """Change a state in one to three ways, the first by turns; return it and the names of the ways."""
    changes = [CHANGES[number % len(CHANGES)], *rng.choices(CHANGES, k=rng.choice((0, 0, 1, 2)))]
    for place, change in enumerate(changes):
        # what a later one would change may be gone
        with suppress(*((AttributeError, IndexError, KeyError, TypeError, ValueError) if place else ())):
            change(rng, state, other)
        # the values put in are the same objects for all
        state = json.loads(json.dumps(state))
    return state, ", ".join(change.__name__ for change in changes)


def run_all(cases: Iterator[tuple[str, Callable[[], bool]]]) -> int:
    """Try all cases and tell of all that fail; return how many were loaded."""
    n_loaded, failed = 0, []
    for words, check in cases:
        try:
            n_loaded += check()
        except Exception as error:
            failed.append(f"{words}: {type(error).__name__}: {str(error)[:300]}")
    assert failed == []
    return n_loaded


def check_unsealed(path: Path, saved: Mapping[str, Saved]) -> bool:
    """Assert that a state whose card was not made anew is refused, or shows what was saved."""
    program, messages, _ = load(path)
    if program is None:
        return False
    assert messages == saved[name_program(program)].messages
    return True


def check_sealed(path: Path) -> bool:
    """Assert that a state is refused or shows what its file says."""
    program, messages, _ = load(path)
    if program is None:
        return False
    state = json.loads(path.read_text("utf-8"))
    name = name_program(program)
    assert state["metadata"]["matrix_dspy"]["program"] == name
    assert messages == render(build_from_file(name, state))
    return True


def change_all(
    saved: Mapping[str, Saved], name: str, path: Path, n: int, *, is_sealed: bool
) -> Iterator[tuple[str, Callable[[], bool]]]:
    others = [each for each in saved if each != name]
    for number in range(n):
        rng = random.Random(f"{name} {number} {is_sealed}")
        state, other = saved[name].state, saved[rng.choice(others)].state
        state, words = draw_change(rng, number, state, other)
        if is_sealed:
            seal(state)
        path.write_bytes(write_state(rng, state))
        yield f"{number} {words}", (lambda: check_sealed(path)) if is_sealed else (lambda: check_unsealed(path, saved))


def test_there_are_a_thousand_of_them():
    assert len(INPUTS) * (N_CHANGED + N_SEALED + N_SPOILT) >= 1_000
    assert len(CHANGES) * 4 <= N_CHANGED and len(SPOILS) * 4 <= N_SPOILT


@pytest.mark.parametrize("name", INPUTS)
def test_a_seal_is_the_hash_of_the_card(name: str, saved: dict[str, Saved]):
    state = saved[name].state

    seal(state)

    assert state == saved[name].state


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_state_is_refused_or_shows_what_was_saved(name: str, saved: dict[str, Saved], tmp_path: Path):
    n_loaded = run_all(change_all(saved, name, tmp_path / "state.json", N_CHANGED, is_sealed=False))

    assert N_CHANGED // 20 < n_loaded < N_CHANGED // 2


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_state_with_its_hash_made_anew_shows_what_its_file_says(
    name: str, saved: dict[str, Saved], tmp_path: Path
):
    n_loaded = run_all(change_all(saved, name, tmp_path / "state.json", N_SEALED, is_sealed=True))

    assert N_SEALED // 10 < n_loaded < N_SEALED // 2


@pytest.mark.parametrize("name", INPUTS)
def test_a_spoilt_file_is_refused_or_shows_what_was_saved(name: str, saved: dict[str, Saved], tmp_path: Path):
    path = tmp_path / "state.json"

    def spoil_all() -> Iterator[tuple[str, Callable[[], bool]]]:
        for number in range(N_SPOILT):
            spoil, rng = SPOILS[number % len(SPOILS)], random.Random(f"{name} {number}")
            path.write_bytes(spoil(rng, saved[name].content))
            yield f"{number} {spoil.__name__}", lambda: check_unsealed(path, saved)

    assert run_all(spoil_all()) < N_SPOILT // 4


OTHER_THINGS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "loop of two": lambda path: (path.symlink_to(f"{path}-"), Path(f"{path}-").symlink_to(path)),
    "link to nothing": lambda path: path.symlink_to("nothing.json"),
    "link to a folder": lambda path: path.symlink_to("/"),
    "link to a text": lambda path: path.symlink_to(__file__),
    "empty file": lambda path: path.touch(),
    "huge file": lambda path: (path.touch(), os.truncate(path, 2**40)),
}


@pytest.mark.parametrize("thing", OTHER_THINGS)
def test_what_is_no_state_is_refused_wherever_it_stands(thing: str, tmp_path: Path, saved: dict[str, Saved]):
    (tmp_path / "optimized" / "critic").mkdir(parents=True)
    for place, names in (
        ("x.json", ()),
        ("optimized/critic/default.json", ("critic",)),
        ("optimized/critic/mine.json", ("critic", "mine")),
    ):
        path = tmp_path / place
        OTHER_THINGS[thing](path)

        program, _, refusal = load(path, *names)

        assert program is None
        assert path.name in refusal


@pytest.mark.parametrize("place", ["optimized", "optimized/critic"])
@pytest.mark.parametrize("thing", ["folder", "pipe", "device", "link to nothing", "link to a text", "empty file"])
def test_what_is_no_folder_of_states_holds_none(thing: str, place: str, tmp_path: Path, saved: dict[str, Saved]):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    OTHER_THINGS[thing](path)

    program, _, refusal = load(path, "critic", "mine")

    assert program is None
    assert "no variant 'mine'" in refusal


def test_a_loop_of_links_in_the_place_of_a_folder_is_refused(tmp_path: Path, saved: dict[str, Saved]):
    (tmp_path / "optimized").symlink_to("optimized")

    assert "too many levels of symbolic links" in load(tmp_path, "critic")[2]


def test_a_link_to_a_state_is_that_state(tmp_path: Path, saved: dict[str, Saved]):
    (tmp_path / "x.json").write_bytes(saved["critic"].content)
    (tmp_path / "optimized" / "critic").mkdir(parents=True)
    (tmp_path / "optimized" / "critic" / "mine.json").symlink_to("../../x.json")

    assert render(load_program("critic", "mine")) == saved["critic"].messages


ODD_NAMES = (
    *(
        "../x",
        "../../x",
        "..",
        ".",
        "",
        "/x",
        "a/b",
        "a\\b",
        "~",
        "x.json",
        "%2e%2e",
        "..\u2215x",
        "a" * 300,
        "a" * 1000,
    ),
    *("x\n", "\nx", "a\nb", "\x00", "x\x00", "x\x1b[2J", "\ud800", "\udcff", "\u202e", "\ufeffx", "x ", " x", "\u0445"),
    *("http://127.0.0.1:9/x", "file:///x", "$HOME", "`id`", "x|id", "-x", "*", "?", "[a-z]", "x.", ".x", "con..x"),
)
STRAY = (
    "x.json",
    "optimized/x.json",
    "optimized/critic/a/b.json",
    "optimized/critic/..json",
    "optimized/critic/a\nb.json",
)
"""Where states stand that no name may lead to."""


@pytest.mark.parametrize("odd", ODD_NAMES, ids=lambda odd: ascii(odd)[:20])
def test_no_name_leads_anywhere_else(odd: str, tmp_path: Path, saved: dict[str, Saved]):
    for place in STRAY:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(saved["critic"].content)
    nothing = tmp_path / "nothing"

    for names in (("critic", odd), (odd, "default"), (f"critic/{odd}", "default"), (f"{odd}/critic", "default")):
        if names[0] != "x.json":
            assert load(nothing, *names)[0] is None
    assert load(nothing, f"{odd}/none.json")[0] is None


def test_the_watch_sees_files_code_and_network(tmp_path: Path):
    (tmp_path / "state.json").touch()
    (tmp_path / "other.json").touch()

    with WATCH.over(tmp_path / "state.json") as seen:
        (tmp_path / "state.json").read_text()
        assert seen == []
        (tmp_path / "other.json").read_text()
        (tmp_path / "state.json").write_text("")
        pickle.loads(pickle.dumps(Path("x")))
        with socket.socket() as one, suppress(OSError):
            one.connect(("127.0.0.1", 9))

    events = [each.split()[0] for each in seen]
    assert events[:3] == ["open", "open", "pickle.find_class"]
    assert "socket.connect" in events
