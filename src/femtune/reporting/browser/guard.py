"""Access control: only the user who started the page may read it, not other users or sites.

The printed address contains a token. It becomes a cookie that no script and no other site can use.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, quote, urlencode

from markupsafe import escape
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")  # other names point here only in a DNS rebinding attack
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REFUSED = "Open the address that `femtune view` printed in the terminal: it has the token in it.\n"


class Headers:
    """Middleware that puts the headers on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


class Guard:
    """Middleware that admits requests with the token's cookie; a token in the address sets it."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self.app, self.token, self.cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # for example a websocket: not supported
            return
        request = Request(scope)
        query = parse_qsl(request.url.query, keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and self._is_token(given[0]):
            rest = [(name, value) for name, value in query if name != "token"]
            await self._welcome(request, rest)(scope, receive, send)
        elif not given and self._is_token(request.cookies.get(self.cookie, "")):
            await self.app(scope, receive, send)
        else:
            refusal = Response(_REFUSED, 403, media_type="text/plain")
            await refusal(scope, receive, send)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def _welcome(self, request: Request, query: list[tuple[str, str]]) -> Response:
        """Redirect to the same address without the token, with the cookie."""
        path = "/" + quote(request.url.path.lstrip("/"))  # //host would lead elsewhere
        address = path + ("?" if query else "") + urlencode(query, quote_via=quote, safe="/")
        response: Response = RedirectResponse(address, 303)
        if request.headers.get("sec-fetch-site", "none") != "none":
            # from another page, such as a notebook's terminal: a redirect would not carry the cookie
            to = escape(address)
            response = HTMLResponse(
                f'<!doctype html><html lang="en"><meta http-equiv="refresh" content="0; url={to}">'
                f'<title>femtune view</title><a href="{to}">Go on</a></html>'
            )
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
        return response
