"""The routes of the page; every request passes the guard first.

/                 the runs, each with its result
/draws            draws that match a filter, in pages     /export.jsonl, /export.parquet
/draw?name=       one draw                                /problem?id=    all draws of a problem,
/difference?a=&b= the difference of two draws             by iteration and run
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from femtune.reporting.browser.guard import HOSTS, Guard, Headers
from femtune.reporting.browser.index import Index
from femtune.reporting.browser.pages import Pages


def make_app(
    index: Index,
    token: str,
    cookie: str = "femtune-view",
    ready: Callable[[], None] = lambda: None,
) -> Starlette:
    """Build the application over an index, protected by a token. It closes the index at shutdown.

    `ready` is called when the application answers requests.
    """
    pages = Pages(index)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        ready()
        yield
        index.close()

    return Starlette(
        routes=[
            Route("/", pages.answer(pages.home)),
            Route("/draws", pages.answer(pages.draws)),
            Route("/draw", pages.answer(pages.draw)),
            Route("/problem", pages.answer(pages.problem)),
            Route("/difference", pages.answer(pages.difference)),
            Route("/export.jsonl", pages.answer(pages.as_lines)),
            Route("/export.parquet", pages.answer(pages.as_parquet)),
            Route("/style.css", asset("style.css", "text/css")),
            Route("/icon.svg", asset("icon.svg", "image/svg+xml")),
        ],
        middleware=[
            Middleware(Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS], www_redirect=False),
            Middleware(Guard, token=token, cookie=cookie),
        ],
        exception_handlers={HTTPException: pages.refused, Exception: pages.failed},
        lifespan=lifespan,
    )


def asset(name: str, kind: str) -> Callable[[Request], Response]:
    """Return a handler that serves a file of the package."""
    content = (files("femtune.reporting.browser") / "templates" / name).read_bytes()
    return lambda request: Response(content, media_type=kind)
