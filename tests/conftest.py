"""What several test modules share: the data folder, a small finished run, a rehearsal server of its own process."""

import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import starter
from tests.starter import ROOT

# before anything imports torch: its threads on busy cores make a tiny model eight times slower
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

SMALL = ["--n", "40", "--set", "population.n_agents=15"]
"""Flags of a run of a few seconds."""


@pytest.fixture(autouse=True)
def no_keys_or_addresses_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own keys and servers out of the tests."""
    for name in ("MATRIX_DSPY_API_KEY", "OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real material, or a skip."""
    folder = os.environ.get("MATRIX_DSPY_DATA")
    if not folder:
        pytest.skip("MATRIX_DSPY_DATA is not set")
    return Path(folder)


def run_cli(*arguments: str | Path, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, whose imports were done before."""
    return starter.run(*spare_plots(arguments), folder=cwd or ROOT, timeout=timeout)


def run_cold_cli(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh Python, where it matters how that starts."""
    command = [sys.executable, str(ROOT / "cli.py"), *spare_plots(arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False)


def start_cli(*arguments: str | Path, cwd: Path | None = None) -> starter.Command:
    """Start the command line and do not wait."""
    return starter.start(*spare_plots(arguments), folder=cwd or ROOT)


def spare_plots(arguments: Sequence[str | Path]) -> list[str]:
    """Leave the card's plots out of runs that are not about them and do not set them: two seconds each."""
    given = list(map(str, arguments))
    if given[:1] not in (["generate"], ["simulate"]) or any("operation.plots" in each for each in given):
        return given
    return [*given, "--set", "operation.plots=false"]


def read_outputs(run: Path) -> dict[str, bytes]:
    """Return every table and data set of a run, byte for byte."""
    files = [path for part in ("tables", "dataset") for path in sorted((run / part).iterdir())]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


@dataclass(frozen=True)
class Server:
    """A rehearsal server in another process."""

    port: int
    process: subprocess.Popen[str] | starter.Command

    @property
    def url(self) -> str:
        """What goes behind --lm."""
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, int]:
        """Return the page of counters."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats") as reply:
            return json.load(reply)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start rehearsal servers; they end with the test."""
    servers: list[Server] = []

    def start(spec: str = "rehearsal", port: int = 0) -> Server:
        process = start_cli("rehearse", "--port", str(port), spec)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = int(line.rsplit(":", 1)[1].split("/")[0])
        server = Server(found, process)
        servers.append(server)
        _wait_until_ready(server)
        return server

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


def _wait_until_ready(server: Server) -> None:
    for _ in range(100):
        try:
            server.stats()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 rows on the rehearsal in process."""
    run = tmp_path_factory.mktemp("finished") / "run"
    done = run_cli("generate", "-q", *SMALL, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


def run_outside(*command: str | Path, cwd: Path) -> str:
    """Run a command that must not see this project or its environment; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run_outside(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, ROOT, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "source", filter="data")
    (source,) = (out / "source").iterdir()
    run_outside(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that holds nothing but the wheel."""
    place = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(place, with_pip=True)
    install_outside(place / "bin", wheel)
    return place / "bin"


def install_outside(binaries: Path, wanted: str | Path) -> None:
    """Install into another environment, and leave it to the imports to compile what they need of it."""
    flags = ["-q", "--no-compile", "--disable-pip-version-check"]
    run_outside(binaries / "pip", "install", *flags, wanted, cwd=binaries)
