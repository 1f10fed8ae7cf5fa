"""Middleware for Django, sync and async. In the settings:

    SESSIOND_GUARD = {"url": "http://sessiond:8080", "project": "shop", "server_key": os.environ["SESSIOND_VERIFIER_KEY"]}
    MIDDLEWARE = ["sessiond_guard.django.SessiondMiddleware", …]

A view reads `request.principal`. `@requires(acr=["aal2"], max_age=300)` on a view asks for more. Every process has one guard, which
connects with the first request, so after a server has forked its workers."""

from __future__ import annotations

import functools
import threading
from typing import Any, Awaitable, Callable, Optional, Sequence, Union

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from .check import Route, check, check_async, trace_of
from .guard import Guard
from .refusal import Refusal

_lock = threading.Lock()
_guard: Optional[Guard] = None


def guard() -> Guard:
    """The guard of this process, with the options in `settings.SESSIOND_GUARD`."""
    global _guard
    if _guard is None:
        with _lock:
            if _guard is None:
                _guard = Guard.connect(**settings.SESSIOND_GUARD)
    return _guard


class SessiondMiddleware:
    """Passes on requests with a valid `Authorization: Bearer <access token>`, with `request.principal`. Refuses all others, unless
    `settings.SESSIOND_GUARD_OPTIONAL` lets those without a token through."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._route = Route(optional=getattr(settings, "SESSIOND_GUARD_OPTIONAL", False))
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Union[HttpResponse, Awaitable[HttpResponse]]:
        if iscoroutinefunction(self):
            return self._call_async(request)
        try:
            values = _values(request)
            request.principal = check(guard(), values("authorization"), self._route, trace_of(values))  # type: ignore[attr-defined]
        except Refusal as refusal:
            return refused(refusal)
        return self._get_response(request)

    async def _call_async(self, request: HttpRequest) -> HttpResponse:
        try:
            one, values = _guard or await sync_to_async(guard)(), _values(request)
            principal = await check_async(one, values("authorization"), self._route, trace_of(values))
            request.principal = principal  # type: ignore[attr-defined]
        except Refusal as refusal:
            return refused(refusal)
        return await self._get_response(request)  # type: ignore[no-any-return]

    def process_exception(self, request: HttpRequest, exception: Exception) -> Optional[HttpResponse]:
        """A view has refused the request."""
        return refused(exception) if isinstance(exception, Refusal) else None


def requires(acr: Sequence[str] = (), max_age: Optional[int] = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for a view that asks more of the principal that the middleware has found."""

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            guard().require(request.principal, acr, max_age)  # type: ignore[attr-defined]
            return view(request, *args, **kwargs)

        return markcoroutinefunction(wrapped) if iscoroutinefunction(view) else wrapped

    return decorate


def refused(refusal: Refusal) -> HttpResponse:
    """The response to a refusal."""
    response = refusal.response()
    return HttpResponse(response.body, status=response.status, headers=dict(response.headers))


def _values(request: HttpRequest) -> Callable[[str], Sequence[str]]:
    def values(header: str) -> Sequence[str]:
        # Servers join several headers by commas, which no token has, and no traceparent.
        value = request.headers.get(header)
        return [] if value is None else [value]

    return values
