"""Verifies sessiond's access tokens where they are used, without a call per request, and refuses the tokens of a revoked session
within milliseconds of the revocation.

    guard = Guard.connect(url="http://sessiond:8080", project="shop", issuer="https://sessions.example.org", server_key=key)
    principal = guard.verify(token)

Middleware: `sessiond_guard.asgi` (FastAPI, Starlette), `sessiond_guard.django`, `sessiond_guard.wsgi` (Flask).
"""

from .guard import ConfigurationError, Guard, Stats
from .refusal import Refusal, Requirement, bearer
from .token import Principal
from .upstream import Trace

__all__ = ["ConfigurationError", "Guard", "Principal", "Refusal", "Requirement", "Stats", "Trace", "bearer"]
