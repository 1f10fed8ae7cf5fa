"""Why a request is refused, and the response: the same as sessiond's own."""

from __future__ import annotations

import json
from typing import Mapping, NamedTuple, Optional, Sequence, Tuple

MESSAGES = {
    "CREDENTIALS_MISSING": "No credential was presented.",
    "UNPARSABLE_ACCESS_TOKEN": "The access token is not one of ours.",
    "ACCESS_TOKEN_EXPIRED": "The access token has expired.",
    "INVALID_PROJECT_FOR_ACCESS_TOKEN": "The access token is of another project.",
    "SESSION_REVOKED": "The session has ended.",
    "ACCESS_TOKEN_SUPERSEDED": "The access token has outdated claims; refresh it.",
    "INSUFFICIENT_USER_AUTHENTICATION": "A more recent or a stronger authentication is required.",
    "VERIFICATION_UNAVAILABLE": "Whether the session has ended is not known at the moment; try again.",
}

INVALID_TOKEN = 'Bearer error="invalid_token"'


class Requirement(NamedTuple):
    """What a route asks of the user's authentication (RFC 9470)."""

    #: One of these `acr` values. Empty: any, or none.
    acr: Sequence[str] = ()
    #: The authentication is younger than this, in seconds. Half-open: exactly this age is too old.
    max_age: Optional[int] = None


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Sequence[Tuple[str, str]]
    body: bytes


class Refusal(Exception):
    """A request is refused."""

    def __init__(
        self,
        reason: str,
        metadata: Optional[Mapping[str, str]] = None,
        because: Optional[str] = None,
        challenge: str = INVALID_TOKEN,
    ) -> None:
        super().__init__(f"{reason}: {MESSAGES[reason]}")
        #: The reason on the wire: one of sessiond's.
        self.reason = reason
        #: The metadata of the reason on the wire.
        self.metadata = dict(metadata or {})
        #: Why the guard cannot decide, for VERIFICATION_UNAVAILABLE: `no_feed`, `stale_feed`, `no_keys`, `withheld` or `no_answer`.
        self.because = because
        self._challenge = challenge

    @classmethod
    def credentials_missing(cls) -> Refusal:
        # RFC 6750 §3.1: a request without a credential gets no error code.
        return cls("CREDENTIALS_MISSING", challenge="Bearer")

    @classmethod
    def unparsable(cls) -> Refusal:
        return cls("UNPARSABLE_ACCESS_TOKEN")

    @classmethod
    def revoked(cls) -> Refusal:
        return cls("SESSION_REVOKED")

    @classmethod
    def superseded(cls) -> Refusal:
        return cls("ACCESS_TOKEN_SUPERSEDED")

    @classmethod
    def unavailable(cls, because: str) -> Refusal:
        return cls("VERIFICATION_UNAVAILABLE", because=because)

    @classmethod
    def expired(cls, expired_at_ms: int, project: str, user: str, session: str) -> Refusal:
        metadata = {
            "expired_at_millis": str(expired_at_ms),
            "project_id": project,
            "user_id": user,
            "refresh_token_id": session,
        }
        return cls("ACCESS_TOKEN_EXPIRED", metadata)

    @classmethod
    def wrong_project(cls, expected: str, actual: str) -> Refusal:
        metadata = {"expected_project_id": expected, "actual_project_id": actual}
        return cls("INVALID_PROJECT_FOR_ACCESS_TOKEN", metadata)

    @classmethod
    def insufficient_authentication(cls, requirement: Requirement) -> Refusal:
        reason = "INSUFFICIENT_USER_AUTHENTICATION"
        metadata = {}
        if requirement.acr:
            metadata["acr_values"] = " ".join(requirement.acr)
        if requirement.max_age is not None:
            metadata["max_age"] = str(requirement.max_age)
        parameters = {"error": reason.lower(), "error_description": MESSAGES[reason], **metadata}
        challenge = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parameters.items())
        return cls(reason, metadata, challenge=challenge)

    @property
    def status(self) -> int:
        return 503 if self.reason == "VERIFICATION_UNAVAILABLE" else 401

    def response(self) -> Response:
        """The response, with a `google.rpc.Status` as JSON."""
        is_unavailable = self.status == 503
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.reason,
            "domain": "sessiond",
            "metadata": self.metadata,
        }
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "1s"}
        body = {
            "code": 14 if is_unavailable else 16,
            "message": MESSAGES[self.reason],
            "details": [info, retry] if is_unavailable else [info],
        }
        headers = [
            ("retry-after", "1") if is_unavailable else ("www-authenticate", self._challenge),
            ("content-type", "application/json"),
            # The response depends on the moment.
            ("cache-control", "no-store"),
        ]
        return Response(self.status, headers, json.dumps(body).encode())


def bearer(headers: Sequence[str]) -> Optional[str]:
    """The token of a bearer credential (RFC 6750 §2.1), from the values of the `Authorization` headers; None if there is none.
    Other schemes are ignored. Raises Refusal if there are several: which one counts is ambiguous."""
    if len(headers) > 1:
        raise Refusal.unparsable()
    scheme, _, token = (headers[0] if headers else "").partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else None
