"""Middleware for ASGI: Starlette, FastAPI, and Django and Quart over ASGI.

    app.add_middleware(SessiondMiddleware, guard=guard)

    @app.get("/")
    def hello(request: Request):
        return f"Hello, {request.state.principal.user_id}!"

For a route that asks for more, with FastAPI: `dependencies=[Depends(requires(guard, acr=["aal2"], max_age=300))]`, and
`app.add_exception_handler(Refusal, refused)`."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, List, MutableMapping, Optional, Sequence

from .check import Route, check_async, trace_of
from .guard import Guard
from .refusal import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SessiondMiddleware:
    """Passes on requests with a valid `authorization: Bearer <access token>`, with `scope["state"]["principal"]`, which frameworks
    show as `request.state.principal`. Refuses all others, and WebSockets too."""

    def __init__(self, app: App, guard: Guard, optional: bool = False, acr: Sequence[str] = (), max_age: Optional[int] = None) -> None:
        self._app = app
        self._guard = guard
        self._route = Route(optional, acr, max_age)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)

        def values(header: str) -> List[str]:
            return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header.encode()]

        try:
            principal = await check_async(self._guard, values("authorization"), self._route, trace_of(values))
        except Refusal as refusal:
            if scope["type"] == "websocket":
                # Closed before it is accepted: the client gets a 403.
                return await send({"type": "websocket.close", "code": 1008, "reason": refusal.reason})
            response = refusal.response()
            raw = [(name.encode(), value.encode()) for name, value in response.headers]
            await send({"type": "http.response.start", "status": response.status, "headers": raw})
            return await send({"type": "http.response.body", "body": response.body})
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def requires(guard: Guard, acr: Sequence[str] = (), max_age: Optional[int] = None) -> Callable[[Any], None]:
    """A dependency for FastAPI that asks more of the principal that the middleware has found."""
    # FastAPI reads the annotation, which must be the class itself.
    from starlette.requests import Request

    def dependency(request: Request) -> None:
        guard.require(request.state.principal, acr, max_age)

    dependency.__annotations__["request"] = Request
    return dependency


def refused(request: Any, refusal: Refusal) -> Any:
    """An exception handler for Starlette and FastAPI: the response to a `Refusal`."""
    from starlette.responses import Response

    response = refusal.response()
    return Response(response.body, response.status, dict(response.headers))
