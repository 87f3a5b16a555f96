"""Push a run's data set to the Hugging Face Hub: its card, Parquet, plots and report, and nothing else of the folder.

`plan_push` looks and sends nothing. `push` with `is_real` sends file by file, the card last, each in a commit of its
own; a file that is there already, by its hash, is passed over, so a push that broke off is gone on with by the same
call. The token comes from the environment (HF_TOKEN) and goes nowhere but to the Hub.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.errors import ConfigError, MatrixError, RunError, boundary
from matrix_dspy.text import drop_controls, hide_secrets, one_line

TOKEN = "HF_TOKEN"
DEFAULT_ENDPOINT = "https://huggingface.co"
CARD = "README.md"
_PATTERNS = ("dataset/*.parquet", "plots/*.png", "report.html")
_TABLES = "tables/*.parquet"
_HEAD_LINES = 24
_LONGEST_ANSWER = 300
_BLOCK = 1 << 20
_ON = {"1", "on", "yes", "true"}
_RESUME = "run the same command again, what was sent is kept"


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would send, and where to."""

    repo: str
    revision: str
    is_private: bool
    endpoint: str
    files: tuple[tuple[str, int], ...]
    """Path in the repository and size in bytes, in the order of sending."""
    card_head: str
    """The first lines of the card."""
    warnings: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """How much would be sent to an empty repository."""
        return sum(size for _, size in self.files)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did; without `is_real`, what it would do."""

    plan: PushPlan
    is_real: bool
    sent: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """Files that were there already."""
    url: str = ""


def plan_push(run: Path, repo: str, *, private: bool = True, tables: bool = False, revision: str = "main") -> PushPlan:
    """Return what `push` would send to the dataset repository `repo`; looks at nothing outside the folder.

    `tables` adds `tables/*.parquet`: agents, scenarios and what was rejected.

    Raises:
        ConfigError: the repository's or revision's name will not do.
        RunError: the folder has no card or no data set.
    """
    _check_names(repo, revision)
    run = Path(run)
    card = run / CARD
    found = [path for pattern in (*_PATTERNS, *([_TABLES] if tables else [])) for path in sorted(run.glob(pattern))]
    files = [path for path in found if _is_own(path, run)]
    if not any(path.parent.name == "dataset" for path in files):
        raise RunError(f"no dataset/*.parquet in {str(run)!r}; finish the run first")
    if not any(map(_has_rows, (path for path in files if path.parent.name == "dataset"))):
        raise RunError(f"the data set of {str(run)!r} holds no rows; there is nothing to send")
    if not _is_own(card, run):
        raise RunError(f"no card ({CARD}) in {str(run)!r}; finish the run first")
    with boundary(RunError, f"read {str(run)!r}"):
        # what names the rest comes last, so that a card in the repository says that all is there
        sizes = tuple((path.relative_to(run).as_posix(), path.stat().st_size) for path in (*files, card))
        head = card.read_text(encoding="utf-8", errors="replace").splitlines()[:_HEAD_LINES]
        warnings = _list_warnings(run, files, [path for path in found if path not in files])
    endpoint = hide_secrets(os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
    return PushPlan(repo, revision, private, endpoint, sizes, drop_controls("\n".join(head)), warnings)


def push(
    run: Path,
    repo: str,
    *,
    private: bool = True,
    is_real: bool = False,
    tables: bool = False,
    revision: str = "main",
) -> Pushed:
    """Push the run in a folder to the dataset repository `repo`; without `is_real` only say what would be sent.

    The repository is made where there is none. One that is public is not pushed to as private.

    Raises:
        ConfigError: a name will not do, there is no token, or the repository is public and `private` is asked for.
        RunError: the folder has nothing to push, or the Hub refuses or cannot be reached.
    """
    plan = plan_push(run, repo, private=private, tables=tables, revision=revision)
    if not is_real:
        return Pushed(plan, is_real=False)
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ConfigError(f"no token in the environment; set {TOKEN} to one that may write to {repo!r}")
    if any(os.environ.get(name, "").strip().lower() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing may be sent; unset it to push")
    _refuse_token(run, plan, token)
    with _hub_errors(plan, token):
        return _send(Path(run), plan, token)


def _check_names(repo: str, revision: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository; give NAME or OWNER/NAME, of letters, - _ .") from error
    if not re.fullmatch(r"[\w][\w./-]{0,199}", revision, re.ASCII) or ".." in revision or revision.endswith(("/", ".")):
        raise ConfigError(f"{revision!r} is no name of a branch; give one of letters, digits, - _ . /")


def _has_rows(path: Path) -> bool:
    with boundary(RunError, f"read {str(path)!r}"):
        return bool(pl.scan_parquet(path).select(pl.len()).collect().item()) if path.suffix == ".parquet" else False


def _is_own(path: Path, run: Path) -> bool:
    """Whether a path is a plain file of the folder itself; a link might lead to anything."""
    parts = [path, *(parent for parent in path.parents if parent != run and parent.is_relative_to(run))]
    return path.is_file() and not any(part.is_symlink() for part in parts)


def _list_warnings(run: Path, files: list[Path], links: list[Path]) -> tuple[str, ...]:
    warnings = [f"{path.relative_to(run).as_posix()} is no plain file and is left out" for path in links]
    datasets = [path for path in files if path.parent.name == "dataset"]
    if any("rehearsal" in _list_models(path) for path in datasets):
        warnings.append("rows were written by the rehearsal engine, a stand-in; they are not fit for training")
    if (run / "run.toml").is_file():
        state = RunFolder(run).read_state()
        if not state:
            warnings.append("the run is not finished; what is there now would be pushed")
        elif state.get("kept", 0) < state.get("n", 0):
            reason = one_line(str(state.get("reason", "")))
            warnings.append(f"{state['n'] - state['kept']:,} of {state['n']:,} rows are missing: {reason}")
    return tuple(warnings)


def _list_models(path: Path) -> set[str]:
    columns = [name for name in ("model", "rejected_model") if name in pl.read_parquet_schema(path)]
    frame = pl.scan_parquet(path).select(pl.col(columns).unique().implode()).collect() if columns else pl.DataFrame()
    return {model for name in frame.columns for model in frame[name][0]}


def _refuse_token(run: Path, plan: PushPlan, token: str) -> None:
    """Refuse to publish the token; what is packed in Parquet and pictures was never given it."""
    for name, _ in plan.files:
        if name.endswith((".md", ".html")) and token.encode() in (run / name).read_bytes():
            raise RunError(f"{name} holds the token of {TOKEN}; take it out, and make a new token")


def _send(run: Path, plan: PushPlan, token: str) -> Pushed:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT, token=token)
    repo = api.create_repo(plan.repo, repo_type="dataset", private=plan.is_private, exist_ok=True).repo_id
    if plan.is_private and not api.repo_info(repo, repo_type="dataset").private:
        raise ConfigError(f"the repository {repo!r} is public already; say --public to push to it, or name another")
    if plan.revision != "main":
        api.create_branch(repo, branch=plan.revision, repo_type="dataset", exist_ok=True)
    there = _read_hashes(api, repo, plan.revision)
    sent, skipped = [], []
    for name, _ in plan.files:
        if there.get(name) in _hash_file(run / name):
            skipped.append(name)
            continue
        api.create_commit(
            repo,
            [CommitOperationAdd(name, str(run / name))],
            commit_message=f"Add {name}",
            repo_type="dataset",
            revision=plan.revision,
        )
        sent.append(name)
    url = f"{plan.endpoint}/datasets/{repo}"
    return Pushed(plan, True, tuple(sent), tuple(skipped), url)


def _read_hashes(api: Any, repo: str, revision: str) -> dict[str, str]:
    """Return the hash of every file in the repository: SHA-256 of a large one, git's own of a small one."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repo, repo_type="dataset", revision=revision, recursive=True)
    files = (entry for entry in tree if isinstance(entry, RepoFile))
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in files}


def _hash_file(path: Path) -> tuple[str, str]:
    """Return SHA-256 and git's blob hash of a file."""
    large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            large.update(block)
            small.update(block)
    return large.hexdigest(), small.hexdigest()


@contextmanager
def _hub_errors(plan: PushPlan, token: str) -> Iterator[None]:
    """Say in one sentence what went wrong at the Hub, without the token whatever the server echoes."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except MatrixError:
        raise
    except HfHubHTTPError as error:
        raise _describe_answer(plan, error, token) from None
    except OfflineModeIsEnabled:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing may be sent; unset it to push") from None
    except (httpx.TransportError, OSError) as error:
        words = _hide(str(error) or type(error).__name__, token)
        raise RunError(f"could not reach {plan.endpoint}: {words}; {_RESUME}") from None
    except Exception as error:
        # what the library wraps (an upload of a large file, a card the Hub does not take) says little by itself
        inner = error.__cause__
        if isinstance(inner, HfHubHTTPError):
            raise _describe_answer(plan, inner, token) from None
        words = _hide(str(inner or error), token)
        raise RunError(f"could not push to {plan.repo!r}: {words}; {_RESUME}") from None


def _describe_answer(plan: PushPlan, error: Any, token: str) -> MatrixError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return ConfigError(f"the Hub does not take the token of {TOKEN}; set it to a valid one with write access")
    if status == 403:
        return ConfigError(f"the token of {TOKEN} may not write to {plan.repo!r}; take one with write access to it")
    if status == 404:
        return ConfigError(f"the Hub knows no {plan.repo!r} that this token may write to; check the owner's name")
    said = _hide(error.server_message or str(error), token)
    return RunError(f"the Hub answered {status} to the push to {plan.repo!r}: {said}; {_RESUME}")


def _hide(text: str, token: str) -> str:
    words = one_line(drop_controls(text.replace(token, "***"))).rstrip(".")
    return words if len(words) <= _LONGEST_ANSWER else f"{words[:_LONGEST_ANSWER]}..."


def describe_push(pushed: Pushed) -> Iterator[str]:
    """Yield what a push did, or would do, as lines for a terminal."""
    plan = pushed.plan
    seen = "private" if plan.is_private else "public"
    verb = "sent to" if pushed.is_real else "would be sent to"
    yield f"{len(plan.files)} files, {plan.n_bytes / 1e6:,.1f} MB, {verb} {plan.repo} ({seen}, branch {plan.revision})"
    for name, size in plan.files:
        state = "" if not pushed.is_real else ", sent" if name in pushed.sent else ", there already"
        yield f"  {name} ({size:,} bytes{state})"
    for warning in plan.warnings:
        yield f"warning: {warning}"
    if pushed.is_real:
        yield pushed.url
        return
    yield "the card begins:"
    yield from (f"  {line}" for line in plan.card_head.splitlines())
    yield f"nothing was sent; add --really, with {TOKEN} set, to send it"
