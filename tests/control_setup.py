"""The control service in this process, asked without a socket."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from services.control.app import Control, create_app
from services.settings import Settings

Ask = Callable[..., httpx.Response]


@contextmanager
def asking(settings: Settings) -> Iterator[Ask]:
    """Requests to the control service (method, path, options of httpx), its threads around them."""
    app: FastAPI = create_app(Control.of(settings))

    async def asked(method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            return await client.request(method, path, **options)

    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        yield lambda method, path, **options: runner.run(asked(method, path, options))
        runner.run(lifespan.__aexit__(None, None, None))
