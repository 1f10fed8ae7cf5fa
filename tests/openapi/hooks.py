"""Bounds that no schema can express. Half of the requests satisfy them, so that both outcomes occur.

They are in the proto's comments, and in `crates/sessiond-core/src/session/create.rs` and `listing.rs`. Ids and tokens are those of the
sessions that `run` has created.
"""

import json
import os
import zlib

import schemathesis

# Fields of a new session: valid values where the schema also allows others.
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

# Fields of an update.
CHANGE = {name: OPENING[name] for name in ("claims", "device_name", "labels")}

# Filters of a list. Page tokens are valid only for their own query, so none is offered.
LISTING = {
    "user_id": "ada",
    "state": "SESSION_STATE_ANY",
    "labels": ["team=blue"],
    "device_name": "phone",
    "page_size": 10,
}


def half(value):
    return zlib.crc32(json.dumps(value, default=str).encode()) % 2 == 0


def operation(context):
    return context.operation.definition.raw["operationId"].removeprefix("SessionService_")


def known(good, asked):
    return {name: good[name] for name in asked if name in good}


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict) or not half(body):
        return body
    match operation(context):
        case "CreateSession":
            good = known(OPENING, body)
            # Each requires the other.
            if "is_impersonation" in good or "impersonator_id" in good:
                good |= {name: OPENING[name] for name in ("is_impersonation", "impersonator_id")}
            return good
        case "UpdateSession":
            return known(CHANGE, body)
        case "RevokeAllSessions" | "EraseUser":
            return {"user_id": "ada"}
        case "IntrospectToken":
            return {"token": os.environ["KEPT_ACCESS_TOKEN"]}
        case "BatchIntrospect":
            return {"tokens": [os.environ["KEPT_ACCESS_TOKEN"], "rubbish", os.environ["KEPT_REFRESH_TOKEN"]]}
    return body


@schemathesis.hook
def map_query(context, query):
    if not query or not half(query):
        return query
    match operation(context):
        case "ListSessions":
            return known(LISTING, query)
        case "RevokeSession":
            return known({"user_id": "user of ENDED"}, query)
        case "UpdateSession":
            return known({"update_mask": "claims,labels,deviceName"}, query)
    return query


@schemathesis.hook
def map_path_parameters(context, parameters):
    if not parameters or not half(parameters):
        return parameters
    match operation(context):
        case "RevokeSession":
            return parameters | {"id": os.environ["ENDED_SESSION"]}
        case "UpdateSession":
            return parameters | {"session.id": os.environ["KEPT_SESSION"]}
    return parameters
