"""The response for each address. The address holds all state; nothing is kept between requests."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import Send

from femtune.errors import ConfigError
from femtune.reporting.browser.database import Closed
from femtune.reporting.browser.difference import LONGEST, difference
from femtune.reporting.browser.export import TYPES, Form, export
from femtune.reporting.browser.filters import PAGE, Filter
from femtune.reporting.browser.index import Index, Stale
from femtune.reporting.browser.results import result
from femtune.reporting.browser.store import Name, Seen, Store
from femtune.reporting.browser.wording import LONG, SIDE, SORTED, chips, choices, environment, toggled

LANES = 4  # runs side by side by default
STACK = 8  # draws shown for a run and an iteration
TRIES = 3  # attempts at a page while shards vanish

log = logging.getLogger("femtune")


class Pages:
    """The responses for all addresses."""

    def __init__(self, index: Index) -> None:
        self.index, self.store = index, Store(index)
        self.templates = environment()

    def answer(self, page: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """Return a handler that refreshes the index and retries if a shard vanishes meanwhile."""

        def answered(request: Request) -> Response:
            try:
                for _ in range(TRIES):
                    try:
                        self.index.refresh()
                        return page(request)
                    except Stale as error:
                        why = error
                return self.refusal(f"The run is changing too fast: {why}. Look again.", 503)
            except ConfigError as error:
                return self.refusal(str(error), 400)
            except Closed:
                return self.refusal("femtune view has ended.", 503)
            except duckdb.Error as error:
                log.warning("view: %s", str(error).splitlines()[0])
                return self.refusal(f"DuckDB could not answer: {str(error).splitlines()[0]}", 500)

        return answered

    def refused(self, request: Request, error: Exception) -> Response:
        """Answer an unknown address or an unsupported method."""
        assert isinstance(error, HTTPException)
        said = {404: "There is no such page.", 405: "Pages are only ever read."}
        response = self.refusal(said.get(error.status_code, error.detail), error.status_code)
        response.headers.update(error.headers or {})
        return response

    def failed(self, request: Request, error: Exception) -> Response:
        """Answer an unexpected error, which is also logged."""
        log.error("view: %s", "".join(traceback.format_exception(error)))
        return self.refusal(f"This is a fault of femtune: {type(error).__name__}: {error}", 500)

    def refusal(self, why: str, status: int) -> Response:
        return self.rendered("refusal", status=status, title="Not found", why=why)

    def rendered(self, template: str, status: int = 200, **values: Any) -> Response:
        """Render a page; each one names unreadable files."""
        index = self.index
        page = self.templates.get_template(f"{template}.html.j2").render(
            num_runs=len(index.runs),
            damaged=[(self._place(path), why) for path, (_, why) in index.damaged.items()],
            **values,
        )
        return HTMLResponse(page, status)

    def _place(self, path: Any) -> str:
        """Return a damaged file as its run and relative path."""
        for run in self.index.runs.values():
            if path.is_relative_to(run.root):
                return f"{run.name}: {path.relative_to(run.root)}"
        return str(path.name)

    # --- the runs

    def home(self, request: Request) -> Response:
        """List the runs, each with its result and links to the draws of its last iteration."""
        split(request, (), only=True)
        return self.rendered(
            "home", title="Runs", results=[result(run) for run in self.index.runs.values()]
        )

    # --- the list

    def draws(self, request: Request) -> Response:
        """Show the draws that match a filter."""
        asked = Filter.read(request.query_params.multi_items())
        self.index.prepare(asked)
        num, num_kept = self.store.count(asked)
        draws = self.store.page(asked)
        return self.rendered(
            "draws",
            title="Draws",
            asked=asked,
            total=self.store.count(Filter())[0],
            num=num,
            num_kept=num_kept,
            num_pages=max(1, math.ceil(num / PAGE)),
            first=(asked.page - 1) * PAGE + 1,
            draws=draws,
            items=self.store.items(draws),
            lacks_gains=asked.sort in ("gain", "-gain") and not self.store.knows_gains(),
            facets=[*choices(asked, self.store.facets(asked))],
            chips=[*chips(asked)],
            orders=[(name, said, asked.query(sort=name)) for name, said in SORTED.items()],
        )

    # --- one draw, and those of its problem

    def draw(self, request: Request) -> Response:
        """Show one draw: its prompts, completion, score, and the other draws of its problem."""
        query, own = split(request, ("name", "whole"))
        asked, name = Filter.read(query), Name.read(own.get("name", ""))
        id = self.store.find(name)
        if id is None:
            return self.refusal(f"No draw is named {name}.", 404)
        self.index.prepare(asked)
        length = 2**31 if own.get("whole") else LONG
        whole = self.store.whole(id, length)
        before, after = self.store.neighbours(asked, id)
        others = [each for each in self.of_problem(name.problem_id, [*self.index.runs]) if each.id != id]
        return self.rendered(
            "draw",
            title=f"Draw of {name.problem_id}",
            asked=asked,
            draw=whole.seen,
            whole=whole,
            length=length,
            prompts=self.store.asked(name.run, name.kind, name.problem_id),
            before=before,
            after=after,
            others=others,
        )

    def of_problem(self, problem_id: str, runs: Sequence[str]) -> list[Seen]:
        return self.store.of_problem(problem_id, runs, SIDE)

    def problem(self, request: Request) -> Response:
        """Show all draws of a problem: runs side by side, iterations from top to bottom."""
        query, own = split(request, ("id",))
        chosen = Filter.read(query).run
        id = own.get("id", "")
        found = self.of_problem(id, [*self.index.runs])
        if not found:
            return self.refusal(f"No problem with draws is called {id}.", 404)
        there = [name for name in self.index.runs if any(draw.name.run == name for draw in found)]
        lanes = [name for name in there if name in chosen] or there[:LANES]
        rows: dict[tuple[int, str], dict[str, list[Seen]]] = {}
        for draw in sorted(found, key=lambda draw: (draw.name.iteration, draw.name.kind)):
            if draw.name.run in lanes:
                row = rows.setdefault((draw.name.iteration, draw.name.kind), {})
                row.setdefault(draw.name.run, []).append(draw)
        asked = {
            (run, kind): self.store.asked(run, kind, id)
            for run, kind in sorted({(draw.name.run, draw.name.kind) for draw in found})
        }
        prompts = {key: each for key, each in asked.items() if not each.why_not}
        return self.rendered(
            "problem",
            title=f"Problem {id}",
            id=id,
            correct=found[0].correct,
            prompts=next(iter((prompts or asked).values())),
            differ=len({each.plain and str(each.plain) for each in asked.values()}) > 1,
            lanes=lanes,
            there=[(name, toggled(lanes, name), name in lanes) for name in there],
            rows=rows,
            few=few,
        )

    def difference(self, request: Request) -> Response:
        """Show the difference of two draws."""
        _, own = split(request, ("a", "b"), only=True)
        names = [Name.read(own.get(each, "")) for each in ("a", "b")]
        ids = [self.store.find(name) for name in names]
        for name, id in zip(names, ids, strict=True):
            if id is None:
                return self.refusal(f"No draw is named {name}.", 404)
        first, second = self.store.seen([id for id in ids if id is not None], LONGEST)
        pieces = difference(first.text, second.text)
        return self.rendered(
            "difference",
            title="Difference",
            sides=[(first, "more"), (second, "less")],
            names=names,
            pieces=pieces,
            longest=LONGEST,
        )

    # --- downloads

    def as_lines(self, request: Request) -> Response:
        return self.download(request, "jsonl")

    def as_parquet(self, request: Request) -> Response:
        return self.download(request, "parquet")

    def download(self, request: Request, form: Form) -> Response:
        asked = Filter.read(request.query_params.multi_items())
        self.index.prepare(asked)
        named = {"Content-Disposition": f'attachment; filename="draws.{form}"'}
        pieces = export(self.index, asked, form)
        return Download(pieces, media_type=TYPES[form], headers=named)


class Download(StreamingResponse):
    """A stream that aborts if a shard cannot be read, so that the browser reports it."""

    async def stream_response(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        try:
            async for piece in self.body_iterator:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Closed:
            return
        except Stale as error:
            log.warning("view: the download was interrupted: %s", error)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def few(draws: Sequence[Seen]) -> tuple[Sequence[Seen], int]:
    """Return the first draws and the last one, where a scheme stops, and the number left out."""
    if len(draws) <= STACK:
        return draws, 0
    return [*draws[: STACK - 1], draws[-1]], len(draws) - STACK


def split(
    request: Request, names: Sequence[str], only: bool = False
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Split a query into the filter's part and the page's own values. Raises ConfigError."""
    items = request.query_params.multi_items()
    rest = [(name, value) for name, value in items if name not in names]
    if only and rest:
        raise ConfigError(f"{rest[0][0][:60]} is not a parameter of this page.")
    return rest, {name: value for name, value in items if name in names}
