"""Access tokens: JWTs in the profile of RFC 9068, signed with ES256."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Union

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from .refusal import Refusal

if TYPE_CHECKING:
    from .jwks import Jwks

#: The longest access token that is parsed, in bytes.
LENGTH_MAX = 16 * 1_024

#: How deeply the JSON of a token may be nested.
DEPTH_MAX = 127

#: How many verified tokens are cached, in two generations.
TOKENS_MAX = 16_384

#: The largest low `s` of P-256: half of the order.
LOW_S_MAX = 0x7FFFFFFF800000007FFFFFFFFFFFFFFFDE737D56D38BCF4279DCE5617E3192A8

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_ALGORITHM = ECDSA(SHA256())


def is_uuid(text: str) -> bool:
    """Whether a text is an id in its canonical form: other spellings are refused, so that ids can be compared as text."""
    return _UUID(text) is not None


def is_project(text: str) -> bool:
    """Whether a text is the name of a project."""
    return _PROJECT(text) is not None


def is_user(text: str) -> bool:
    """Whether a text is the id of a user: 1 to 255 bytes without control characters, and not `me`."""
    if text.isascii() and text.isprintable():
        return 1 <= len(text) <= 255 and text != "me"
    return 1 <= len(text.encode()) <= 255 and not any(unicodedata.category(character) == "Cc" for character in text)


def decode(text: str) -> Optional[bytes]:
    """Decodes base64url without padding. None for any other spelling, so that every value has one."""
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        return None
    return decoded if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() == text else None


class Principal:
    """The signed-in user of an accepted access token."""

    __slots__ = ("user_id", "session_id", "project_id", "impersonator_id", "expires_at_ms", "claims", "kid")

    def __init__(self, claims: Dict[str, Any], kid: str) -> None:
        #: The user's id, as the application chose it.
        self.user_id: str = claims["sub"]
        self.session_id: str = claims["sid"]
        self.project_id: str = claims["project_id"]
        #: Who acts as the user, in an impersonation.
        self.impersonator_id: Optional[str] = (claims.get("act") or {}).get("sub")
        #: When the token expires, in milliseconds since the Unix epoch. Half-open: at this moment exactly, it has expired.
        self.expires_at_ms: int = claims["exp"] * 1_000
        #: All claims.
        self.claims: Mapping[str, Any] = claims
        #: The key that signed it.
        self.kid = kid

    def __repr__(self) -> str:
        # Omits the user: the output may reach a log.
        return f"Principal(project_id={self.project_id!r}, session_id={self.session_id!r})"


#: A token names a key that is not cached.
UNKNOWN_KEY = "unknown key"

#: The keys were never read.
NO_KEYS = "no keys"


class TokenVerifier:
    """Verifies tokens: everything but the time and the revocations. Caches those that verified."""

    def __init__(self, project: str, issuer: str) -> None:
        """`issuer` is the `iss` of the project's tokens."""
        self._project = project
        self._issuer = issuer
        # Tokens that were used recently, and those used before. A token that is used moves to the recent ones.
        self._recent: Dict[str, Principal] = {}
        self._before: Dict[str, Principal] = {}

    def verify(self, text: str, jwks: Jwks) -> Union[Principal, Refusal, str]:
        known = self._recent.get(text) or self._before.get(text)
        if known is not None:
            # Its key may have left the set since.
            if jwks.find(known.kid) is None:
                return UNKNOWN_KEY
            self._remember(text, known)
            return known
        parts = text.split(".") if len(text) <= LENGTH_MAX and text.isascii() else []
        kid = _read_header(parts[0]) if len(parts) == 3 else None
        if kid is None:
            return Refusal.unparsable()
        if not jwks.is_there:
            return NO_KEYS
        key = jwks.find(kid)
        if key is None:
            # A token of another project, whose keys are never cached here.
            claims = _read_claims(parts[1])
            if claims is not None and self._is_foreign(claims) and is_project(claims["aud"]):
                return Refusal.wrong_project(self._project, claims["aud"])
            return UNKNOWN_KEY
        if not _is_signed(text.rpartition(".")[0], parts[2], key):
            return Refusal.unparsable()
        principal = self._read(parts[1], kid)
        if isinstance(principal, Principal):
            self._remember(text, principal)
        return principal

    def parse_unverified(self, text: str) -> Union[Principal, Refusal]:
        """Reads a token whose signature sessiond has checked."""
        parts = text.split(".")
        kid = _read_header(parts[0]) if len(parts) == 3 else None
        return Refusal.unparsable() if kid is None else self._read(parts[1], kid)

    def _read(self, payload: str, kid: str) -> Union[Principal, Refusal]:
        claims = _read_claims(payload)
        if claims is None:
            return Refusal.unparsable()
        if self._is_foreign(claims):
            return Refusal.wrong_project(self._project, claims["aud"])
        is_good = claims["iss"] == self._issuer and is_user(claims["sub"]) and is_uuid(claims["sid"])
        return Principal(claims, kid) if is_good else Refusal.unparsable()

    def _is_foreign(self, claims: Mapping[str, Any]) -> bool:
        return claims["aud"] != self._project or claims["project_id"] != self._project

    def _remember(self, text: str, principal: Principal) -> None:
        recent = self._recent
        if text in recent:
            return
        if len(recent) >= TOKENS_MAX // 2:
            # Two threads may do this at once: then some tokens are verified again.
            self._before = recent
            self._recent = recent = {}
        recent[text] = principal


def _read_header(encoded: str) -> Optional[str]:
    """The `kid` of a header with ES256, `typ: at+jwt`, a well-formed `kid` and no `crit`; None for any other."""
    header = _read_object(encoded)
    if header is None:
        return None
    typ, kid = header.get("typ"), header.get("kid")
    # RFC 7515 §4.1.9: `application/` may be omitted. §4.1.11: extensions in `crit` must be supported, and none is.
    is_typed = isinstance(typ, str) and typ.lower() in ("at+jwt", "application/at+jwt")
    is_ours = is_typed and header.get("alg") == "ES256" and header.get("crit") is None
    return kid if is_ours and isinstance(kid, str) and is_uuid(kid) else None


def _is_signed(message: str, signature: str, key: EllipticCurvePublicKey) -> bool:
    """Whether the signature is good, and its `s` low: of `(r, s)` and `(r, n - s)`, only one is accepted."""
    # Checked first, so that a long text is never decoded.
    raw = decode(signature) if len(signature) == 86 else None
    if raw is None or len(raw) != 64:
        return False
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    if s > LOW_S_MAX:
        return False
    try:
        key.verify(encode_dss_signature(r, s), message.encode(), _ALGORITHM)
    except (InvalidSignature, ValueError):
        return False
    return True


_TEXTS = ("iss", "sub", "aud", "client_id", "jti", "sid", "project_id", "refresh_token_id")


def _read_claims(payload: str) -> Optional[Dict[str, Any]]:
    """The claims of a payload; None if one of ours is missing, there twice, or of another type."""
    claims = _read_object(payload)
    if claims is None:
        return None
    epoch, act, amr = claims.get("epoch"), claims.get("act"), claims.get("amr", [])
    acr, auth_time = claims.get("acr"), claims.get("auth_time")
    is_good = (
        all(isinstance(claims.get(name), str) for name in _TEXTS)
        and _is_integer(claims.get("iat"))
        and _is_integer(claims.get("exp"))
        and isinstance(epoch, list)
        and len(epoch) == 2
        and all(map(_is_integer, epoch))
        and (auth_time is None or _is_integer(auth_time))
        and (acr is None or isinstance(acr, str))
        and isinstance(amr, list)
        and all(isinstance(method, str) for method in amr)
        and (act is None or (isinstance(act, dict) and isinstance(act.get("sub"), str)))
        and _is_integer(claims.get("session_epoch", 0))
    )
    return claims if is_good else None


def _is_integer(value: object) -> bool:
    """Whether it is an integer that is exact in every language. `type`, because a bool is an int."""
    return type(value) is int and abs(value) < 1 << 53


#: The names of which there may be only one. Of the application's own claims the last one counts, as everywhere.
_SINGLE = frozenset(
    _TEXTS + ("typ", "alg", "kid", "crit", "iat", "exp", "epoch", "auth_time", "acr", "amr", "act", "session_epoch")
)


def _read_object(encoded: str) -> Optional[Dict[str, Any]]:
    """A JSON object in base64url; None if it is no object, is nested too deeply, or has one of our names twice."""
    raw = decode(encoded)
    if raw is None:
        return None
    try:
        text = raw.decode()
        if _depth(text) > DEPTH_MAX:
            return None
        value = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_constant)
        if not isinstance(value, dict):
            return None
        pairs = json.loads(text, object_pairs_hook=list)
        if "\\u" in text:
            # Half of a surrogate pair is not Unicode.
            json.dumps(pairs, ensure_ascii=False).encode()
        names = [name for name, _ in pairs]
    except (ValueError, RecursionError):
        return None
    if len(names) != len(value) and any(names.count(name) > 1 for name in _SINGLE):
        return None
    return value


def _depth(text: str) -> int:
    """How deeply a JSON text is nested."""
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return 0
    depth = deepest = 0
    for character in re.sub(r'"(?:[^"\\]|\\.)*"', "", text):
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def _integer(text: str) -> Union[int, float]:
    if len(text) > 308:
        _float(text)
    # A negative zero is no integer.
    return int(text) if text != "-0" else -0.0


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("out of range")
    return value


def _constant(text: str) -> None:
    raise ValueError(text)
