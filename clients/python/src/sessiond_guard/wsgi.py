"""Middleware for WSGI: Flask, and any other.

    app.wsgi_app = SessiondMiddleware(app.wsgi_app, guard)

    @app.get("/")
    def hello():
        return f"Hello, {request.environ['sessiond.principal'].user_id}!"

For a route that asks for more: `guard.require(request.environ["sessiond.principal"], acr=["aal2"])`, and, in Flask,
`app.register_error_handler(Refusal, refused)`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from .check import Route, check, trace_of
from .guard import Guard
from .refusal import Refusal

Start = Callable[..., Any]
App = Callable[[Dict[str, Any], Start], Iterable[bytes]]


class SessiondMiddleware:
    """Passes on requests with a valid `Authorization: Bearer <access token>`, with `environ["sessiond.principal"]`. Refuses all
    others."""

    def __init__(self, app: App, guard: Guard, optional: bool = False, acr: Sequence[str] = (), max_age: Optional[int] = None) -> None:
        self._app = app
        self._guard = guard
        self._route = Route(optional, acr, max_age)

    def __call__(self, environ: Dict[str, Any], start_response: Start) -> Iterable[bytes]:

        def values(header: str) -> List[str]:
            # Servers join several headers by commas, which no token has, and no traceparent.
            value = environ.get(f"HTTP_{header.upper()}")
            return [] if value is None else [value]

        try:
            principal = check(self._guard, values("authorization"), self._route, trace_of(values))
        except Refusal as refusal:
            body, status, headers = refused(refusal)
            start_response(f"{status} {HTTPStatus(status).phrase}", headers)
            return [body]
        environ["sessiond.principal"] = principal
        return self._app(environ, start_response)


def refused(refusal: Refusal) -> Tuple[bytes, int, List[Tuple[str, str]]]:
    """The response to a refusal: its body, status and headers, as Flask takes them."""
    response = refusal.response()
    return response.body, response.status, [*response.headers, ("content-length", str(len(response.body)))]
