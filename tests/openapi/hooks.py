"""Bounds that no schema can say, kept in half of the requests, so that both outcomes are seen.

The proto's comments state them; `src/session/opening.rs` has them.
"""

import json

import schemathesis

# What a session is asked for: good values for fields whose schema allows others.
OPENING = {
    "user_id": "ada",
    "expires_in_millis": "3600000",
    "idle_timeout_millis": 60000,
    "is_impersonation": True,
    "impersonator_id": "root",
    "auth_time": "2020-01-01T00:00:00Z",
    "acr": "urn:mace:incommon:iap:silver",
    "amr": ["pwd", "otp"],
    "claims": {"role": "reader", "levels": [1, 2.5, None]},
    "device_name": "phone",
    "user_agent": "agent/1.0",
    "ip": "2001:db8::1",
    "labels": {"team": "blue"},
}


@schemathesis.hook
def map_body(_, body):
    if not isinstance(body, dict) or "user_id" not in body or len(json.dumps(body, default=str)) % 2:
        return body
    good = {name: OPENING[name] for name in body if name in OPENING}
    # Each needs the other.
    if "is_impersonation" in good or "impersonator_id" in good:
        good |= {name: OPENING[name] for name in ("is_impersonation", "impersonator_id")}
    return good
