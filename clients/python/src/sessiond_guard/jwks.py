"""The project's public keys, as last read from its JWK Set (RFC 7517, RFC 7518 §6.2)."""

from __future__ import annotations

import json
import re
from typing import Dict, Optional, Tuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, EllipticCurvePublicNumbers

from .token import decode, is_uuid

Keys = Dict[str, EllipticCurvePublicKey]

#: Keys remain usable for this many times their `max-age`: once as cached, and once more to survive an outage.
USABLE_MAX_AGES = 2

#: The `max-age` of a response that has none, and its bounds.
MAX_AGE_MS = 60 * 60 * 1_000
MAX_AGE_MIN_MS = 1_000
MAX_AGE_MAX_MS = 24 * 60 * 60 * 1_000


def read_keys(text: bytes) -> Optional[Keys]:
    """The keys of a JWK Set, by their `kid`. Skips what is not an ES256 signature key. None if the text is no JWK Set."""
    try:
        jwks = json.loads(text.decode())["keys"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if not isinstance(jwks, list):
        return None
    keys = {}
    for jwk in jwks:
        kid, key = _read_key(jwk) if isinstance(jwk, dict) else (None, None)
        if kid is not None and key is not None:
            keys[kid] = key
    return keys


def _read_key(jwk: dict) -> Tuple[Optional[str], Optional[EllipticCurvePublicKey]]:
    is_ours = jwk.get("kty") == "EC" and jwk.get("crv") == "P-256"
    is_ours = is_ours and jwk.get("alg") in (None, "ES256") and jwk.get("use") in (None, "sig")
    kid, x, y = (jwk.get(name) for name in ("kid", "x", "y"))
    if not (is_ours and isinstance(kid, str) and is_uuid(kid) and isinstance(x, str) and isinstance(y, str)):
        return None, None
    x_bytes, y_bytes = decode(x), decode(y)
    if x_bytes is None or y_bytes is None or len(x_bytes) != 32 or len(y_bytes) != 32:
        return None, None
    numbers = EllipticCurvePublicNumbers(int.from_bytes(x_bytes, "big"), int.from_bytes(y_bytes, "big"), SECP256R1())
    try:
        return kid, numbers.public_key()
    except ValueError:
        # The point is not on the curve.
        return None, None


def max_age(cache_control: Optional[str]) -> float:
    """The `max-age` of a `Cache-Control` header (RFC 9111 §5.2.2.1), in milliseconds, within the bounds."""
    found = re.search(r"(?:^|,)\s*max-age=(\d{1,10})\s*(?:,|$)", cache_control or "")
    age = int(found.group(1)) * 1_000 if found else MAX_AGE_MS
    return min(max(age, MAX_AGE_MIN_MS), MAX_AGE_MAX_MS)


class Jwks:
    """The cached keys."""

    def __init__(self) -> None:
        # The keys, when the request was sent on the monotonic clock, and their max-age: replaced together.
        self._cached: Optional[Tuple[Keys, float, float]] = None

    def store(self, keys: Keys, requested_at: float, max_age_ms: float) -> None:
        self._cached = (keys, requested_at, max_age_ms)

    @property
    def is_there(self) -> bool:
        """Whether the keys were ever read."""
        return self._cached is not None

    def find(self, kid: str) -> Optional[EllipticCurvePublicKey]:
        cached = self._cached
        return cached[0].get(kid) if cached else None

    def age(self, elapsed: float) -> Optional[float]:
        """The time since the keys were last read; None if they never were."""
        cached = self._cached
        return elapsed - cached[1] if cached else None

    def is_usable(self, elapsed: float) -> bool:
        """Whether the keys are recent enough to verify tokens with."""
        cached = self._cached
        return cached is not None and elapsed - cached[1] <= cached[2] * USABLE_MAX_AGES
