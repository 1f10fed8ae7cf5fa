"""The check of one request, for middleware."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Sequence

from .guard import Guard
from .refusal import Refusal, bearer
from .token import Principal
from .upstream import Trace


class Route(NamedTuple):
    """What a route asks for."""

    #: Also lets requests without a token through; they have no principal. Refuses requests with an invalid token.
    optional: bool = False
    #: One of these `acr` values. Empty: any, or none.
    acr: Sequence[str] = ()
    #: The authentication is younger than this, in seconds.
    max_age: Optional[int] = None


def token_of(guard: Guard, headers: Sequence[str], route: Route) -> Optional[str]:
    """The token in these `Authorization` headers; None only if the route does not ask for one. Raises Refusal."""
    try:
        token = bearer(headers)
        if token is None and not route.optional:
            raise Refusal.credentials_missing()
        return token
    except Refusal:
        guard.count_refusal()
        raise


def trace_of(values: Callable[[str], Sequence[str]]) -> Optional[Trace]:
    """The trace of a request, whose headers of a name `values` returns."""
    found = [values(name) for name in Trace._fields]
    return Trace(*(one[0] if len(one) == 1 else None for one in found)) if found[0] else None


def check(guard: Guard, headers: Sequence[str], route: Route, trace: Optional[Trace] = None) -> Optional[Principal]:
    """The principal of a request with these `Authorization` headers; None only if the route does not ask for one. Raises
    Refusal."""
    token = token_of(guard, headers, route)
    if token is None:
        return None
    principal = guard.verify(token, trace)
    guard.require(principal, route.acr, route.max_age)
    return principal


async def check_async(guard: Guard, headers: Sequence[str], route: Route, trace: Optional[Trace] = None) -> Optional[Principal]:
    """As `check`, without blocking the event loop."""
    token = token_of(guard, headers, route)
    if token is None:
        return None
    principal = await guard.verify_async(token, trace)
    guard.require(principal, route.acr, route.max_age)
    return principal


