"""What several test modules share: a quiet environment and real servers on loopback."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import HealthCheck, settings

settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], AbstractAsyncContextManager[str]]


@pytest.fixture(autouse=True)
def no_keys_or_addresses_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MATRIX_DSPY_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Serve:
    """Give `async with serve(handler) as url`: a real server on a free port of loopback, `url` ending in /v1."""

    @asynccontextmanager
    async def run(handler: Handler) -> AsyncIterator[str]:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    return run
