"""One run over many machines: an engine that hands its calls to workers on a Ray cluster.

A worker is a Ray actor with an engine of its own, built from the same spec, and a journal segment of its own in the
run folder. All that decides (virtual time, waves, filters) stays in the driver, so the result is that of one process.

Calls wait in one queue. A worker is given as many as it has room for, in micro-batches; the answer to a batch brings
every completion the worker has by then, not only the batch's own, so a slow call holds nobody back. One exchange of a
batch costs what one Ray call costs, about 0.5 ms of the driver's CPU; a Ray call (or a streamed item) for each
completion would cost that much each. Written for Ray 2.60.
"""

import asyncio
import itertools
import logging
import math
import os
import pickle
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson

from matrix_dspy import errors
from matrix_dspy.bulk.journal import Journal
from matrix_dspy.engine.base import Completion, Engine, Request, Sampling
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import EngineError, MatrixError, MissingExtraError, RunError, boundary, describe_os_error

T = TypeVar("T")
log = logging.getLogger("matrix_dspy")

BATCH = 32
"""Most calls in one exchange, and most that wait inside a worker beyond its share of the concurrency."""
MOST_DEATHS = 3
"""Workers that may die over one request before it is the request that fails."""
MOST_POLLS = 4
"""Exchanges of one worker that wait for completions; further ones return at once."""
GATHER_S = 0.002
"""Wait for further completions once there is one."""
CONNECT_TIMEOUT_S = 20.0
"""Longest wait for a running cluster to let this process in."""
PLACE_TIMEOUT_S = 120.0
"""Longest wait for Ray to start the workers' processes."""
OPEN_TIMEOUT_S = 1800.0
"""Longest wait for the workers' engines: a large model takes its time to load."""
HEAD_PROBE_S, HEAD_PATIENCE_S = 3.0, 30.0
"""Seconds between looks at the cluster's head, and how long it may be away: after 60 Ray would end this process."""
CLOSE_TIMEOUT_S = 15.0
_CPU_SHARES = (1.0, 0.5, 0.25, 0.1)
_LOCAL_OBJECT_STORE = 200 * 2**20
_AUTH_MODE = "RAY_AUTH_MODE"
_MISSING = "Ray is not installed; pip install 'matrix-dspy[ray]'"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a worker journals; the token tells a worker on another machine whether it sees the same folder."""

    folder: str
    token: str
    segment: str
    keep_prompts: bool


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on its way to a worker."""

    id: int
    messages: bytes
    sampling: Sampling
    entry: tuple[str, str] | None
    """Key and digest in the journal; None for a call that is not journaled there."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One completion on its way back."""

    id: int
    completion: Completion
    is_written: bool
    """Whether it stands in the worker's journal segment."""


@dataclass(frozen=True, slots=True)
class _Hello:
    """What a worker says of itself once its engine is open, or why it is not."""

    life: str
    """Differs between a worker and the one Ray started in its place."""
    pid: int
    node: str
    model: str = ""
    supports_response_schema: bool = False
    prefers_schema: bool = False
    supports_n: bool = False
    failure: tuple[str, str] | None = None
    """Class of our own error, and its words."""


class _Worker:
    """Lives in a process of the cluster: completes what it is given and keeps it until it is fetched."""

    def __init__(self, spec: str, limits: dict[str, Any]) -> None:
        self._engine = build_engine(spec, **limits)
        self._is_open = False
        self._life = secrets.token_hex(8)
        self._visit = -1
        self._finished: list[_Answer] = []
        self._polls: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._place: _Place | None = None
        self._journal: Journal | None = None

    async def open(self, visit: int) -> _Hello:
        """Open the engine, once; whoever polls for an earlier visit leaves with nothing."""
        self._visit = visit
        while self._polls:
            self._wake()
        node = import_module("ray").get_runtime_context().get_node_id()
        try:
            if not self._is_open:
                await self._engine.open()
                self._is_open = True
        except MatrixError as error:
            return _Hello(self._life, os.getpid(), node, failure=(type(error).__name__, str(error)))
        engine = self._engine
        abilities = engine.supports_response_schema, engine.prefers_schema, engine.supports_n
        return _Hello(self._life, os.getpid(), node, engine.model, *abilities)

    async def exchange(self, visit: int, packed: bytes, place: _Place | None, waits: bool) -> bytes:
        """Take calls in, and give out what is finished; with `waits`, not before something is.

        The driver no longer hears what belongs to an earlier visit, so that must take nothing away.
        """
        if visit != self._visit:
            return self._pack([])
        for call in pickle.loads(packed):
            task = asyncio.create_task(self._complete(call, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if waits and not self._finished:
            poll: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._polls.append(poll)
            await poll
            await asyncio.sleep(GATHER_S if self._tasks else 0)
        if visit != self._visit:
            return self._pack([])
        finished, self._finished = self._finished, []
        return self._pack(finished)

    def _pack(self, finished: list[_Answer]) -> bytes:
        usage = self._engine.usage
        return pickle.dumps((finished, (usage.attempts, usage.errors, usage.hedged)), protocol=5)

    async def _complete(self, call: _Call, place: _Place | None) -> None:
        request = Request(orjson.loads(call.messages), call.sampling)
        try:
            completion = await self._engine.complete(request)
        except Exception as error:
            log.exception("the engine of a Ray worker failed")
            completion = Completion(down=f"the engine of a Ray worker failed: {type(error).__name__}: {error}")
        is_written = completion.down is None and self._write(call, request, completion, place)
        self._finished.append(_Answer(call.id, completion, is_written))
        self._wake()

    def _wake(self) -> None:
        """Let the poll that waits longest go on."""
        if self._polls and not (poll := self._polls.popleft()).done():
            poll.set_result(None)

    def _write(self, call: _Call, request: Request, completion: Completion, place: _Place | None) -> bool:
        """Journal a completion here; False where it cannot be, and the driver does it."""
        if call.entry is None or place is None:
            return False
        try:
            if self._place != place:
                self._place, self._journal = place, _open_journal(place)
            if self._journal is None:
                return False
            self._journal.append(*call.entry, request, completion)
        except RunError:
            return False
        return True


def _open_journal(place: _Place) -> Journal | None:
    folder = Path(place.folder)
    if not (folder / place.token).is_file():
        return None
    return Journal(folder, place.segment, keep_prompts=place.keep_prompts, is_reader=False)


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request that somebody waits for."""

    request: Request
    entry: tuple[str, str] | None
    future: asyncio.Future[Completion]
    n_deaths: int = 0
    """Workers that were lost while they had it."""


@dataclass(slots=True, eq=False)
class _Seat:
    """The driver's side of one worker."""

    number: int
    share: int
    """Calls the worker's engine has in flight at most."""
    actor: Any
    hello: _Hello | None = None
    segment: int = 0
    is_up: bool = False
    life: int = 0
    """Counts losses; an exchange begun in an earlier life has nothing to say."""
    n_polls: int = 0
    outstanding: dict[int, _Ticket] = field(default_factory=dict)
    counted: tuple[int, int, int] = (0, 0, 0)

    def choose_width(self, n_deaths: int) -> int:
        """Return how many calls may be outstanding beside one that was with `n_deaths` workers when they died.

        One that kills its worker would take its neighbours with it, so they get fewer, and in the end none.
        """
        if n_deaths == 0:
            return self.share + min(BATCH, max(1, self.share // 2))
        return max(math.isqrt(self.share), self.share // 4) if n_deaths == 1 else 1


class RayEngine(Engine):
    """Spreads calls over workers of a Ray cluster, each with an engine built from `spec`.

    `address` is empty for a Ray of this machine that lives as long as the engine, else `auto` or `host:port` of a
    running cluster, whose nodes must have this package. `n_workers` is by default one for every GPU (or tensor-parallel
    set of GPUs) for `vllm:` specs where there are any, else one a node. `limits` are `Engine`'s; `concurrency` is that
    of all workers together, and `patience_s` also how long a lost worker is waited for.

    Keys such as MATRIX_DSPY_API_KEY are read by each worker from its own environment: a local Ray inherits this
    process's, the nodes of a running cluster have theirs. RAY_AUTH_MODE is left as it is; where a cluster wants a
    token, set it to `token`.
    """

    def __init__(self, spec: str, *, address: str = "", n_workers: int | None = None, **limits: Any) -> None:
        build_engine(spec, **limits)  # a spec that will not do is known before anything is started
        super().__init__(**limits)
        self._prefers_schema = False
        if n_workers is not None and n_workers < 1:
            raise errors.ConfigError(f"a run on Ray needs at least 1 worker, not {n_workers}")
        self.spec = spec.strip()
        self.address = address.strip()
        self.n_workers = n_workers
        self.n_lost = 0
        """Workers lost so far, restarted or not."""
        self._limits = limits
        self._ray: Any = None
        self._thread = _RayThread()
        self._is_ours = False
        self._is_stuck = False
        self._auth_mode: str | None = None
        self._seats: list[_Seat] = []
        self._queue: deque[_Ticket] = deque()
        self._numbers = itertools.count()
        self._segments = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_pumping = False
        self._gone: str | None = None
        self._folder: Path | None = None
        self._token = ""
        self._keep_prompts = False
        self._journal: Journal | None = None

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are up, each on its own node."""
        return [seat.hello.pid for seat in self._seats if seat.is_up and seat.hello is not None]

    @property
    def worker_nodes(self) -> list[str]:
        """Ray's ids of the nodes on which the workers that are up run."""
        return [seat.hello.node for seat in self._seats if seat.is_up and seat.hello is not None]

    async def open(self) -> None:
        """Connect, start the workers and have them open their engines.

        Raises:
            EngineError: there is no cluster at the address, the workers find no room, or their models differ.
            MissingExtraError: Ray is not installed.
        """
        self._auth_mode = os.environ.get(_AUTH_MODE)
        self._ray, self._gone = _import_ray(), None
        try:
            self._is_ours = not self._ray.is_initialized()
            if self._is_ours:
                await self._connect()
            await self._start_workers()
            await self._open_workers()
        except BaseException:
            await self.close()
            raise
        self._spawn(self._watch_head())

    @property
    def prefers_schema(self) -> bool:
        """As the workers' engines say."""
        return self._prefers_schema

    async def close(self) -> None:
        """End the workers, and Ray itself if this engine started or joined it."""
        self._go_down("the engine was closed")
        await self._kill([seat.actor for seat in self._seats])
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._seats.clear()
        if self._is_ours and self._ray is not None:
            await self._disconnect()
        self._forget_journal()

    def journal_into(self, folder: Path, *, keep_prompts: bool = False) -> None:
        """Have `complete_entry` journal into segments of `folder` from now on, in the workers where they see it.

        Raises:
            RunError: the folder cannot be written.
        """
        self._token = f".ray-{secrets.token_hex(8)}"
        with boundary(RunError, f"write to the journal {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".ray-*"):
                left_over.unlink(missing_ok=True)
            (folder / self._token).touch()
        self._folder, self._keep_prompts = folder.resolve(), keep_prompts
        self.keeps_journal = True

    async def complete(self, request: Request) -> Completion:
        return await self._submit(request, None)

    async def complete_entry(self, request: Request, key: str, digest: str) -> Completion:
        """Answer one request, and journal it before it is returned.

        Raises:
            RunError: neither the worker nor this process can write the journal.
        """
        return await self._submit(request, (key, digest))

    async def _submit(self, request: Request, entry: tuple[str, str] | None) -> Completion:
        self.usage.calls += 1
        if self._gone is not None:
            return Completion(down=self._gone)
        _ = request.encoded  # what cannot be sent fails here, at its caller
        ticket = _Ticket(request, entry, asyncio.get_running_loop().create_future())
        self._queue.append(ticket)
        self._pump_soon()
        return await ticket.future

    # giving out and taking in

    def _pump_soon(self) -> None:
        """Give out what waits, once everything that is ready to run has added to it."""
        if not self._is_pumping:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pumping = False
        seats = sorted(
            (seat for seat in self._seats if seat.is_up), key=lambda seat: len(seat.outstanding) / seat.share
        )
        while self._queue and seats:
            n_each = min(BATCH, math.ceil(len(self._queue) / len(seats)))
            seats = [seat for seat in seats if self._give(seat, n_each)]

    def _give(self, seat: _Seat, n_most: int) -> bool:
        """Send one batch to a worker; False when it has no room."""
        batch = self._take_batch(seat, n_most)
        if not batch:
            return False
        calls: list[_Call] = []
        for ticket in batch:
            number = next(self._numbers)
            seat.outstanding[number] = ticket
            request = ticket.request
            calls.append(_Call(number, orjson.dumps(request.encoded), request.sampling, ticket.entry))
        self._spawn(self._exchange(seat, calls))
        return True

    def _take_batch(self, seat: _Seat, n_most: int) -> list[_Ticket]:
        batch: list[_Ticket] = []
        worst = max((ticket.n_deaths for ticket in seat.outstanding.values()), default=0)
        while self._queue and len(batch) < n_most:
            ticket = self._queue[0]
            worst = max(worst, ticket.n_deaths)
            if not ticket.future.done():
                if len(seat.outstanding) + len(batch) >= seat.choose_width(worst):
                    break
                batch.append(ticket)
            self._queue.popleft()
        return batch

    async def _exchange(self, seat: _Seat, calls: list[_Call]) -> None:
        """Give a worker calls, and deliver what it has; ask again while it has calls and nobody else asks."""
        life, waits = seat.life, seat.n_polls < MOST_POLLS
        seat.n_polls += waits
        try:
            packed = pickle.dumps(calls, protocol=5)
            answers, counted = pickle.loads(
                await seat.actor.exchange.remote(life, packed, self._choose_place(seat), waits)
            )
        except self._ray.exceptions.RayTaskError as error:
            self._go_down(f"a Ray worker failed, is its matrix_dspy the same as here? {_say(error)}")
            return
        except Exception as error:  # RayError, and what a client (ray://) raises when its connection ends
            if seat.life == life:
                self._lose(seat, error)
            return
        finally:
            if seat.life == life:
                seat.n_polls -= waits
        if seat.life != life:
            return
        for answer in answers:
            if (ticket := seat.outstanding.pop(answer.id, None)) is not None:
                self._deliver(ticket, answer.completion, answer.is_written)
        self._count(seat, counted)
        if seat.outstanding and not seat.n_polls:
            self._spawn(self._exchange(seat, []))
        self._pump_soon()

    def _choose_place(self, seat: _Seat) -> _Place | None:
        if self._folder is None:
            return None
        return _Place(str(self._folder), self._token, f"ray-{seat.segment}", self._keep_prompts)

    def _deliver(self, ticket: _Ticket, completion: Completion, is_written: bool) -> None:
        """Journal what no worker has, and hand a completion to who waits for it, if anybody still does."""
        self.usage.answers += completion.is_ok
        self.usage.prompt_tokens += completion.prompt_tokens
        self.usage.completion_tokens += completion.completion_tokens
        try:
            # a lost worker may have journaled another answer; the last segment, ray-driver, holds the one that counts
            if completion.down is None and (not is_written or ticket.n_deaths):
                self._write(ticket, completion)
        except RunError as error:
            if not ticket.future.done():
                ticket.future.set_exception(error)
            return
        if not ticket.future.done():
            ticket.future.set_result(completion)

    def _write(self, ticket: _Ticket, completion: Completion) -> None:
        if ticket.entry is None or self._folder is None:
            return
        if self._journal is None:
            self._journal = Journal(self._folder, "ray-driver", keep_prompts=self._keep_prompts, is_reader=False)
        self._journal.append(*ticket.entry, ticket.request, completion)

    def _count(self, seat: _Seat, counted: tuple[int, int, int]) -> None:
        attempts, failed, hedged = (new - old for new, old in zip(counted, seat.counted, strict=True))
        self.usage.attempts += attempts
        self.usage.errors += failed
        self.usage.hedged += hedged
        seat.counted = counted

    # losing and finding workers

    def _lose(self, seat: _Seat, error: Exception) -> None:
        """Put what a worker had back to the front of the queue, and wait for Ray to start it anew."""
        seat.is_up, seat.life, seat.n_polls = False, seat.life + 1, 0
        lost = [ticket for ticket in seat.outstanding.values() if not ticket.future.done()]
        seat.outstanding.clear()
        self.n_lost += 1
        log.warning(
            "Ray worker %d was lost; its %d calls are done by others or once it is back", seat.number, len(lost)
        )
        log.debug("Ray worker %d: %s", seat.number, error)
        for ticket in reversed(lost):
            ticket.n_deaths += 1
            if ticket.n_deaths < MOST_DEATHS:
                self._queue.appendleft(ticket)
            else:
                words = f"{ticket.n_deaths} Ray workers were killed while they had this request; out of memory, perhaps"
                self._deliver(ticket, Completion(error=words), False)
        self._spawn(self._revive(seat))
        self._pump_soon()

    async def _revive(self, seat: _Seat) -> None:
        """Wait for Ray to start a worker anew, and open its engine; give the worker up when patience ends."""
        ends = time.monotonic() + self.patience_s
        words = "it was not started again"
        while (left := ends - time.monotonic()) > 0:
            try:
                hello = await asyncio.wait_for(_await(seat.actor.open.remote(seat.life)), left)
            except self._ray.exceptions.ActorDiedError:
                break
            except Exception:  # not yet, or not within what is left
                await asyncio.sleep(0.25)
                continue
            if hello.failure is None and hello.model == self.model:
                self._seat(seat, hello)
                self._pump_soon()
                return
            words = hello.failure[1] if hello.failure else f"its model is {hello.model!r} now, not {self.model!r}"
            await asyncio.sleep(1.0)
        await self._give_up(seat, words)

    async def _give_up(self, seat: _Seat, words: str) -> None:
        self._seats.remove(seat)
        await self._kill([seat.actor])
        log.warning("Ray worker %d is given up: %s", seat.number, words)
        if not self._seats:
            self._go_down(f"no Ray worker is left, the last one was given up: {words}")

    def _seat(self, seat: _Seat, hello: _Hello) -> None:
        """Take a worker into service; a new process gets a new journal segment."""
        if seat.hello is None or seat.hello.life != hello.life:
            seat.segment, seat.counted = next(self._segments), (0, 0, 0)
        seat.hello, seat.is_up = hello, True

    def _go_down(self, words: str) -> None:
        """Answer everybody, now and from now on, that the engine cannot be used."""
        if self._gone is None:
            self._gone = words
        waiting = [*self._queue, *(ticket for seat in self._seats for ticket in seat.outstanding.values())]
        self._queue.clear()
        for seat in self._seats:
            seat.is_up, seat.life = False, seat.life + 1
            seat.outstanding.clear()
        for ticket in waiting:
            self._deliver(ticket, Completion(down=self._gone), False)

    async def _watch_head(self) -> None:
        """Notice that the cluster's head is gone before Ray ends the process for it."""
        try:
            address = str(self._ray.get_runtime_context().gcs_address)
        except Exception:  # a client (ray://) has no address of the head
            return
        last_seen = time.monotonic()
        while time.monotonic() - last_seen < HEAD_PATIENCE_S:
            await asyncio.sleep(HEAD_PROBE_S)
            if await _find_fault(address) is None:
                last_seen = time.monotonic()
        self._go_down(f"the head of the Ray cluster at {address} is gone")

    # Ray itself

    async def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
        if self.address:
            await self._check_address()
            options |= {"address": self.address}
            timeout_s = CONNECT_TIMEOUT_S
        else:
            # without `address`, a note left by a cluster that was killed makes Ray join what is not there any more
            options |= {"address": "local", "num_cpus": max(2, self.n_workers or 0), "include_dashboard": False}
            options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": _LOCAL_OBJECT_STORE}
            timeout_s = PLACE_TIMEOUT_S
        what = f"the Ray cluster at {self.address!r}" if self.address else "a local Ray"
        try:
            await self._thread.call(lambda: self._ray.init(**options), timeout_s)
        except TimeoutError as error:
            self._is_stuck = True
            raise EngineError(f"{what} {_say_shut(timeout_s, self.address)}") from error
        except (Exception, SystemExit) as error:
            raise EngineError(f"cannot use {what}: {_say(error)}") from error
        _let_ray_print(False)

    async def _check_address(self) -> None:
        """Look whether anybody listens: Ray itself would try for two minutes and then end the process."""
        find: Any = import_module("ray._private.services").canonicalize_bootstrap_address
        try:
            plain = self.address.partition("://")[2] or find(self.address)
        except Exception as error:
            raise EngineError(f"no Ray cluster at {self.address!r}: {_say(error)}") from error
        if (fault := await _find_fault(plain)) is not None:
            where = f"{self.address!r}" if plain == self.address else f"{self.address!r} ({plain})"
            raise EngineError(f"no Ray cluster at {where}: {fault}")

    async def _disconnect(self) -> None:
        try:
            await self._thread.call(self._ray.shutdown, 0.1 if self._is_stuck else CLOSE_TIMEOUT_S)
        except Exception as error:
            log.debug("Ray did not shut down: %s", error)
        _let_ray_print(True)
        if self._auth_mode is None:  # a local Ray sets it, and a cluster joined next may want none
            os.environ.pop(_AUTH_MODE, None)
        self._is_ours = self._is_stuck = False
        self._thread.stop()

    async def _start_workers(self) -> None:
        nodes = await self._thread.call(lambda: _read_nodes(self._ray), PLACE_TIMEOUT_S)
        n_gpus = _read_gpus(self.spec) if any(node.n_gpus for node in nodes) else 0
        n_fit = sum(node.n_gpus // n_gpus for node in nodes) if n_gpus else len(nodes)
        n_workers = min(self.n_workers or n_fit, self.concurrency)
        if n_gpus and not 0 < n_workers <= n_fit:
            raise EngineError(
                f"{n_workers or 1} workers of {n_gpus} GPUs do not fit this Ray cluster; it has room for {n_fit}"
            )
        n_cpus = _choose_cpus(nodes, n_workers)
        kind, options = self._ray.remote(_Worker), {"num_cpus": n_cpus, "num_gpus": n_gpus}
        options |= {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": self.concurrency + 2 * BATCH}
        for number in range(n_workers):
            share = self.concurrency // n_workers + (number < self.concurrency % n_workers)
            place = "SPREAD" if n_gpus else _prefer(nodes[number % len(nodes)])
            make = kind.options(scheduling_strategy=place, **options).remote
            actor = make(self.spec, {**self._limits, "concurrency": share})
            self._seats.append(_Seat(number, share, actor))
        ready = [seat.actor.__ray_ready__.remote() for seat in self._seats]
        n_up = await self._wait_placed(ready)
        if n_up < n_workers:
            raise EngineError(
                f"only {n_up} of {n_workers} Ray workers found a place within {PLACE_TIMEOUT_S:g} s; "
                "free some of the cluster, or ask for fewer workers"
            )

    async def _wait_placed(self, ready: list[Any]) -> int:
        """Wait until every worker's process runs; return how many do when patience ends."""
        tasks = [asyncio.create_task(_await(ref)) for ref in ready]
        done, late = await asyncio.wait(tasks, timeout=PLACE_TIMEOUT_S, return_when=asyncio.FIRST_EXCEPTION)
        for task in late:
            task.cancel()
        for task in done:
            if (error := task.exception()) is not None:
                raise EngineError(f"a Ray worker cannot start: {_say(error)}") from error
        return len(done)

    async def _open_workers(self) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                hellos = await asyncio.gather(*(_await(seat.actor.open.remote(seat.life)) for seat in self._seats))
        except TimeoutError as error:
            raise EngineError(f"the Ray workers did not open {self.spec!r} within {OPEN_TIMEOUT_S:g} s") from error
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"a Ray worker cannot start: {_say(error)}") from error
        for hello in hellos:
            if hello.failure is not None:
                raise getattr(errors, hello.failure[0], EngineError)(hello.failure[1])
        models = sorted({hello.model for hello in hellos})
        if len(models) > 1:
            raise EngineError(f"the Ray workers have different models, {models[0]!r} and {models[1]!r}")
        self.model = models[0]
        self.supports_response_schema = all(hello.supports_response_schema for hello in hellos)
        self.supports_n = all(hello.supports_n for hello in hellos)
        self._prefers_schema = all(hello.prefers_schema for hello in hellos)
        for seat, hello in zip(self._seats, hellos, strict=True):
            self._seat(seat, hello)

    async def _kill(self, actors: list[Any]) -> None:
        if not actors:
            return
        try:
            await self._thread.call(lambda: [self._ray.kill(actor) for actor in actors], CLOSE_TIMEOUT_S)
        except Exception as error:
            log.debug("a Ray worker was not killed: %s", error)

    def _forget_journal(self) -> None:
        if self._folder is not None:
            (self._folder / self._token).unlink(missing_ok=True)
        if self._journal is not None:
            self._journal.close()
        self._folder, self._journal, self.keeps_journal = None, None, False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _RayThread:
    """A thread that stays: Linux kills the processes Ray has started when the thread that started them ends."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Run a function there; on TimeoutError it runs on, unheard."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="matrix-dspy-ray", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def tell(set_it: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                set_it(value)

        def job() -> None:
            try:
                say = tell, future.set_result, function()
            except BaseException as error:
                say = tell, future.set_exception, error
            if not loop.is_closed():
                loop.call_soon_threadsafe(*say)

        self._jobs.put(job)
        return await asyncio.wait_for(future, timeout_s)

    def stop(self) -> None:
        """Let the thread end after what it still has to do."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


@dataclass(frozen=True, slots=True)
class _Node:
    """What a node of the cluster has free."""

    node_id: str
    n_cpus: float
    n_gpus: int


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError(_MISSING) from error


def _let_ray_print(is_wanted: bool) -> None:
    """Keep Ray from printing paragraphs about lost workers to standard output; the engine says it in a sentence."""
    worker: Any = import_module("ray._private.worker")
    worker._worker_logs_enabled = is_wanted


def _read_nodes(ray: Any) -> list[_Node]:
    """Return the nodes that can work; a head kept free of work has no CPUs."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    try:
        free = import_module("ray._private.state").available_resources_per_node()
    except Exception:  # private, and not there for clients (ray://)
        free = {}
    found: list[_Node] = []
    for node in alive:
        total = node["Resources"]
        left = free.get(node["NodeID"], total)
        if total.get("CPU") or total.get("GPU"):
            found.append(_Node(node["NodeID"], left.get("CPU", 0.0), int(left.get("GPU", 0))))
    return found or [_Node(node["NodeID"], 0.0, 0) for node in alive]


def _prefer(node: _Node) -> Any:
    """Have a worker start on this node if it can: SPREAD alone puts two on one node now and then (2.60)."""
    prefer: Any = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    return prefer(node.node_id, soft=True, _spill_on_unavailable=True)


def _read_gpus(spec: str) -> int:
    """Return how many GPUs one engine of this spec takes."""
    options = dict(parse_qsl(spec.partition("?")[2]))
    if spec.startswith("transformers:"):
        return 0 if options.get("device") == "cpu" else 1
    if not spec.startswith("vllm:"):
        return 0
    sizes = [
        options.get(name, "1") for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    ]
    return math.prod(int(size) if size.isdecimal() else 1 for size in sizes)


def _choose_cpus(nodes: list[_Node], n_workers: int) -> float:
    """Return the CPUs to ask for a worker: one, or so little that twice as many would fit and a restart finds room."""
    for n_cpus in _CPU_SHARES:
        if sum(int(node.n_cpus / n_cpus) for node in nodes) >= 2 * n_workers:
            return n_cpus
    return 0


async def _await(ref: Any) -> Any:
    return await ref


async def _find_fault(address: str) -> str | None:
    """Return why nothing listens at host:port, or None."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return "no answer within 5 s"
    except ConnectionRefusedError:
        return "connection refused"
    except OSError as error:
        return describe_os_error(error) if error.errno and error.errno > 0 else "unknown host"
    except ValueError:
        return "write host:port"
    writer.close()
    return None


def _say_shut(timeout_s: float, address: str) -> str:
    hint = "; is it a Ray head, and does RAY_AUTH_MODE fit it (token or disabled)?" if address else ""
    return f"did not let this process in within {timeout_s:g} s{hint}"


def _say(error: BaseException) -> str:
    """Return the last line of what Ray says, its first being about itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
