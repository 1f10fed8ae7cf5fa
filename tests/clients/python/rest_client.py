"""REST with httpx, over HTTP/1.1 and HTTP/2, against a running `sessiond dev`; ./run starts both."""

import json
import os
import re
import time

import httpx

URL = os.environ["SESSIOND_URL"]

# The bound of every wait, in seconds.
PATIENCE = 10


def bearer(token):
    return {"authorization": f"Bearer {token}"}


SERVICE = bearer(os.environ["SESSIOND_SERVER_KEY"])


def refused(response, status, reason):
    """Asserts this error response, and returns its details by type name."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    details = {one["@type"].removeprefix("type.googleapis.com/google.rpc."): one for one in response.json()["details"]}
    assert (details["ErrorInfo"]["reason"], details["ErrorInfo"]["domain"]) == (reason, "sessiond")
    return details


def good(response):
    assert response.status_code == 200, (response.status_code, response.text)
    return response.json()


def ndjson(lines):
    """The messages of a stream of lines, as they arrive."""
    for line in lines:
        yield json.loads(line)


def sse(lines):
    """The messages of a stream of server-sent events, as they arrive."""
    for line in lines:
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


def bounded(messages):
    """The same, for a bounded time. A heartbeat every second drives the check."""
    end = time.monotonic() + PATIENCE
    for message in messages:
        assert time.monotonic() < end, "timed out waiting for a message"
        yield message


def follow(client, accept, messages, sign_in):
    """Reads the feed until it sends the revocation of a session. Returns the delay in milliseconds."""
    session = sign_in("bea")
    with client.stream("GET", "/auth/revocations:watch", headers=SERVICE | {"accept": accept}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(accept), response.headers
        told = bounded(messages(response.iter_lines()))
        for message in told:
            if "snapshot_complete" in message:
                break
        begun = time.perf_counter()
        good(client.delete("/auth/sessions/current", headers=bearer(session["access_token"])))
        for message in told:
            for one in message.get("revocations", {}).get("revocations", ()):
                if one.get("session_id") == session["session"]["id"]:
                    assert (one["reason"], one["user_id"]) == ("REVOKE_REASON_SIGNED_OUT", "bea")
                    took = (time.perf_counter() - begun) * 1000
                    # The stream is still open: the next heartbeat arrives.
                    assert any("heartbeat" in message for message in told)
                    return took
    raise AssertionError("the stream ended")


def exercise(http_version, **options):
    client = httpx.Client(base_url=URL, timeout=PATIENCE, trust_env=False, **options)

    def report(what):
        print(f"httpx {httpx.__version__}, {http_version}: {what}", flush=True)

    def sign_in(user="ada"):
        response = client.post("/auth/sessions", headers=SERVICE, json={"user_id": user})
        assert response.http_version == http_version
        return good(response)

    def refresh(token):
        return client.post("/auth/sessions/current/refresh", json={"refresh_token": token})

    session = sign_in()
    access = bearer(session["access_token"])
    items = good(client.get("/auth/sessions", params={"user_id": "me"}, headers=access))["items"]
    assert [one["id"] for one in items if one["is_current_session"]] == [session["session"]["id"]]
    report("signed in, and listed sessions")
    successor = good(refresh(session["refresh_token"]))["refresh_token"]
    assert successor != session["refresh_token"]
    assert good(refresh(session["refresh_token"]))["refresh_token"] == successor
    report("refreshed, and got the same successor again")

    assert good(client.delete("/auth/sessions/current", headers=access)) == {"success": True}
    assert good(client.delete("/auth/sessions/current", headers=access)) == {"success": True, "already_revoked": True}
    report("signed out")
    for token in (session["refresh_token"], successor):
        refused(refresh(token), 401, "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED")
    report("no refresh after sign-out")
    response = client.get("/auth/sessions/current", headers=access)
    refused(response, 401, "SESSION_REVOKED")
    assert response.headers["www-authenticate"].startswith("Bearer")
    report("401 SESSION_REVOKED was decoded")

    malformed = refused(client.delete("/auth/sessions/not-an-id", headers=SERVICE), 400, "SCHEMA_ERROR")
    (violation,) = malformed["BadRequest"]["field_violations"]
    assert (violation["field"], violation["description"]) == ("id", "must be a session's id")
    report(f"400 names the field: {violation['field']} {violation['description']}")
    response = client.post("/sessiond.v1.SessionService/RevokeCurrent", headers=SERVICE, json={})
    refused(response, 404, "ROUTE_NOT_FOUND")
    report("JSON to a gRPC method is a 404")

    for accept, messages in (("application/x-ndjson", ndjson), ("text/event-stream", sse)):
        took = follow(client, accept, messages, sign_in)
        report(f"{accept} sent a sign-out {took:.1f} ms after the request, and stayed open")
    client.close()


exercise("HTTP/1.1")
# Without TLS no version is negotiated: a client without HTTP/1.1 starts with HTTP/2.
exercise("HTTP/2", http1=False, http2=True)
