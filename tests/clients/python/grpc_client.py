"""gRPC with grpcio and stubs that grpcio-tools makes from our proto, against a running `sessiond dev`; ./run starts both.

One list of checks for both kinds of channel: blocking, and asyncio. gRPC's own packages decode errors, health and reflection;
nothing is decoded by hand.
"""

import asyncio
import json
import os
import re
import time
from importlib.metadata import version
from urllib.parse import urlsplit

import grpc
import httpx
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from sessiond.v1 import session_service_pb2 as pb
from sessiond.v1.session_service_pb2_grpc import SessionServiceStub

ADDRESS = urlsplit(os.environ["SESSIOND_URL"]).netloc
METRICS = os.environ["SESSIOND_METRICS_URL"]
PROJECT = os.environ["SESSIOND_PROJECT_ID"]

# The bound of every wait, in seconds.
PATIENCE = 10


def bearer(token):
    return {"authorization": f"Bearer {token}"}


SERVICE = bearer(os.environ["SESSIOND_SERVER_KEY"])


class Blocking:
    """The blocking channel: each wait runs on its own thread."""

    name = f"grpcio {version('grpcio')}"

    def __init__(self):
        self.channel = grpc.insecure_channel(ADDRESS)

    async def call(self, method, request, metadata, timeout):
        answer, call = await asyncio.to_thread(method.with_call, request, metadata=metadata, timeout=timeout)
        return answer, call.initial_metadata()

    async def read(self, stream):
        return await asyncio.to_thread(next, stream, None)

    async def code(self, stream):
        return await asyncio.to_thread(stream.code)

    async def close(self):
        self.channel.close()


class Asyncio:
    """The channel of `grpc.aio`."""

    name = f"grpcio {version('grpcio')} (asyncio)"

    def __init__(self):
        self.channel = grpc.aio.insecure_channel(ADDRESS)

    async def call(self, method, request, metadata, timeout):
        call = method(request, metadata=metadata, timeout=timeout)
        return await call, await call.initial_metadata()

    async def read(self, stream):
        message = await stream.read()
        return None if message is grpc.aio.EOF else message

    async def code(self, stream):
        return await stream.code()

    async def close(self):
        await self.channel.close()


async def until(what, holds):
    """Waits until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not await holds():
        assert time.monotonic() < end, f"timed out waiting for {what}"
        await asyncio.sleep(0.02)


async def subscribers():
    page = (await asyncio.to_thread(httpx.get, METRICS)).text
    return int(re.search(r"^sessiond_feed_subscribers (\d+)$", page, re.MULTILINE)[1])


class Client:
    """A client over one kind of channel."""

    def __init__(self, wire):
        self.wire = wire
        self.sessions = SessionServiceStub(wire.channel)
        self.health = HealthStub(wire.channel)

    def report(self, what):
        print(f"{self.wire.name}: {what}", flush=True)

    async def call(self, method, request, credentials, timeout=PATIENCE):
        answer, _ = await self.wire.call(method, request, tuple(credentials.items()), timeout)
        return answer

    async def sign_in(self, user="ada", **more):
        return await self.call(self.sessions.CreateSession, pb.CreateSessionRequest(user_id=user, **more), SERVICE)

    async def sign_out(self, token):
        return await self.call(self.sessions.RevokeCurrent, pb.RevokeCurrentRequest(), bearer(token))

    async def refresh(self, token):
        return await self.call(self.sessions.RefreshSession, pb.RefreshSessionRequest(refresh_token=token), {})

    async def current(self, token):
        return await self.call(self.sessions.GetCurrentSession, pb.GetCurrentSessionRequest(), bearer(token))

    async def is_active(self, token):
        request = pb.IntrospectTokenRequest(token=token)
        return (await self.call(self.sessions.IntrospectToken, request, SERVICE)).active

    async def first(self, stream, matches=lambda message: True):
        """Returns the first message of this kind; the stream stays open."""
        while (message := await self.wire.read(stream)) is not None:
            if matches(message):
                return message
        raise AssertionError("the stream ended")

    def watch(self, credentials, cursor=""):
        request = pb.WatchRevocationsRequest(cursor=cursor)
        return self.sessions.WatchRevocations(request, metadata=tuple(credentials.items()), timeout=PATIENCE)

    async def cancelled(self, stream):
        stream.cancel()
        assert await self.wire.code(stream) == StatusCode.CANCELLED


async def failed(call):
    """Returns the error that this call fails with."""
    try:
        await call
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


async def refused(call, code, reason):
    """Asserts that this call fails with this error, and returns its details by type."""
    error = await failed(call)
    assert error.code() == code, error
    details = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            if detail.Is(kind.DESCRIPTOR):
                details[kind] = kind.FromString(detail.value)
    assert (details[ErrorInfo].reason, details[ErrorInfo].domain) == (reason, "sessiond")
    return details


async def sign_out(client):
    """Sign-in, list, sign-out, and the errors afterwards."""
    session = await client.sign_in(device_name="phone")
    assert (session.session.user_id, session.session.project_id) == ("ada", PROJECT)
    client.report("signed in")

    request = pb.ListSessionsRequest(user_id="me")
    mine = await client.call(client.sessions.ListSessions, request, bearer(session.access_token))
    assert [one.id for one in mine.items if one.is_current_session] == [session.session.id]
    page = await client.call(client.sessions.ListSessions, pb.ListSessionsRequest(page_size=1), SERVICE)
    assert [one.id for one in page.items] == [session.session.id]
    client.report("listed sessions, as a user and as a service")

    successor = (await client.refresh(session.refresh_token)).refresh_token
    assert successor != session.refresh_token
    assert (await client.refresh(session.refresh_token)).refresh_token == successor
    client.report("refreshed, and got the same successor again")

    assert not (await client.sign_out(session.access_token)).HasField("already_revoked")
    assert (await client.sign_out(session.access_token)).already_revoked
    client.report("signed out")
    for token in (session.refresh_token, successor):
        await refused(client.refresh(token), StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED")
    client.report("no refresh after sign-out")
    await refused(client.current(session.access_token), StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
    client.report("UNAUTHENTICATED SESSION_REVOKED was decoded")


async def details(client):
    """Other error details, and response metadata."""
    call = client.call(client.sessions.RevokeSession, pb.RevokeSessionRequest(id="../up"), SERVICE)
    malformed = await refused(call, StatusCode.INVALID_ARGUMENT, "SCHEMA_ERROR")
    (violation,) = malformed[BadRequest].field_violations
    assert (violation.field, violation.description) == ("id", "must be a session's id")
    client.report(f"INVALID_ARGUMENT names the field: {violation.field} {violation.description}")

    short = (await client.sign_in(expires_in_millis=1000)).access_token

    async def has_expired():
        try:
            await client.current(short)
        except grpc.RpcError:
            return True
        return False

    await until("the token to expire", has_expired)
    expired = await refused(client.current(short), StatusCode.UNAUTHENTICATED, "ACCESS_TOKEN_EXPIRED")
    told = expired[ErrorInfo].metadata
    assert (told["user_id"], told["project_id"]) == ("ada", PROJECT)
    assert abs(int(told["expired_at_millis"]) / 1000 - time.time()) < PATIENCE
    client.report("ACCESS_TOKEN_EXPIRED has its metadata")

    _, headers = await client.wire.call(
        client.sessions.ListSessions, pb.ListSessionsRequest(), tuple(SERVICE.items()), PATIENCE
    )
    assert re.fullmatch("[0-9a-f]{32}", dict(headers)["x-request-id"])
    error = await failed(client.call(client.sessions.ListSessions, pb.ListSessionsRequest(), {}))
    told = dict(error.initial_metadata() or ()) | dict(error.trailing_metadata())
    assert re.fullmatch("[0-9a-f]{32}", told["x-request-id"])
    client.report("every answer has a request id")


async def bad_input(client):
    """Invalid requests."""
    heavy = SERVICE | {"x-heavy": "a" * 40_000}
    error = await failed(client.call(client.sessions.ListSessions, pb.ListSessionsRequest(), heavy))
    assert "431" in error.details(), error
    await client.call(client.sessions.ListSessions, pb.ListSessionsRequest(), SERVICE)
    client.report("metadata of 40 kB was refused by a 431, and the next call was served")

    for method in ("/sessiond.v1.SessionService/Nothing", "/sessiond.v9.SessionService/RevokeCurrent"):
        error = await failed(client.call(client.wire.channel.unary_unary(method), b"", SERVICE))
        assert error.code() == StatusCode.UNIMPLEMENTED, error
    client.report("unknown methods are UNIMPLEMENTED")

    raw = client.wire.channel.unary_unary("/sessiond.v1.SessionService/RevokeSession")
    text = json.dumps({"id": "text"}).encode()
    await refused(client.call(raw, text, SERVICE), StatusCode.INVALID_ARGUMENT, "SCHEMA_ERROR")
    client.report("JSON in place of protobuf is INVALID_ARGUMENT")


async def deadlines(client):
    """A transaction locks the session's row, so that the sign-out waits."""
    session = await client.sign_in()
    holder = await asyncio.create_subprocess_exec(
        *("psql", "--quiet", "--no-align", "--tuples-only", "--no-psqlrc", os.environ["DATABASE_URL"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    hold = f"BEGIN; SELECT 'held' FROM sessions WHERE id = '{session.session.id}' FOR UPDATE;\n"
    holder.stdin.write(hold.encode())
    assert await asyncio.wait_for(holder.stdout.readline(), PATIENCE) == b"held\n"

    credentials = bearer(session.access_token)
    request = pb.RevokeCurrentRequest()
    # The client's own deadline.
    error = await failed(client.call(client.sessions.RevokeCurrent, request, credentials, timeout=0.02))
    assert error.code() == StatusCode.DEADLINE_EXCEEDED, error
    client.report("a deadline of 20 ms passed")

    assert await client.is_active(session.access_token)
    await asyncio.wait_for(holder.communicate(b"ROLLBACK;\n"), PATIENCE)

    async def is_over():
        return not await client.is_active(session.access_token)

    await until("the sign-out", is_over)
    client.report("the call in progress at the deadline was completed")


async def feed(client):
    """The snapshot, live revocations, and no leaked subscribers."""
    before = await subscribers()
    past, following = await client.sign_in("bea"), await client.sign_in("bea")

    def tells(session):
        return lambda message: any(one.session_id == session.session.id for one in message.revocations.revocations)

    await client.sign_out(past.access_token)
    stream = client.watch(SERVICE)
    begin = await client.first(stream)
    assert begin.snapshot_begin.reason == pb.SNAPSHOT_REASON_NO_CURSOR
    await client.first(stream, tells(past))
    cursor = (await client.first(stream, lambda message: message.HasField("snapshot_complete"))).cursor
    begun = time.perf_counter()
    await client.sign_out(following.access_token)
    message = await client.first(stream, tells(following))
    took = (time.perf_counter() - begun) * 1000
    (live,) = (one for one in message.revocations.revocations if one.session_id == following.session.id)
    assert (live.reason, live.user_id) == (pb.REVOKE_REASON_SIGNED_OUT, "bea")
    client.report(f"the feed sent a sign-out {took:.1f} ms after the request")

    await client.first(stream, lambda message: message.HasField("heartbeat"))

    async def is_counted():
        return await subscribers() == before + 1

    async def is_gone():
        return await subscribers() == before

    await until("a subscriber to be counted", is_counted)
    await client.cancelled(stream)
    await until("the subscriber to be gone", is_gone)
    client.report("a cancelled stream is CANCELLED at the client, and closed at the server")

    # From the cursor: no snapshot, only later revocations.
    resumed = client.watch(SERVICE, cursor)
    message = await client.first(resumed, lambda one: one.HasField("snapshot_begin") or tells(following)(one))
    assert tells(following)(message)
    await client.cancelled(resumed)
    client.report("the feed resumed from its cursor")

    # A user's stream ends with the session.
    tab = await client.sign_in("bea")
    own = client.watch(bearer(tab.access_token))
    await client.first(own, lambda message: message.HasField("snapshot_complete"))
    await client.call(client.sessions.RevokeCurrent, pb.RevokeCurrentRequest(), {"x-refresh-token": tab.refresh_token})
    never = client.first(own, lambda message: False)
    await refused(never, StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
    client.report("a user's feed ended with the session")


async def health(client):
    """The standard gRPC health service."""
    for name in ("", "sessiond.v1.SessionService"):
        answer = await client.call(client.health.Check, HealthCheckRequest(service=name), {})
        assert answer.status == HealthCheckResponse.SERVING
    error = await failed(client.call(client.health.Check, HealthCheckRequest(service="nothing"), {}))
    assert error.code() == StatusCode.NOT_FOUND
    stream = client.health.Watch(HealthCheckRequest(), timeout=PATIENCE)
    assert (await client.first(stream)).status == HealthCheckResponse.SERVING
    await client.cancelled(stream)
    client.report("health was checked and watched")


async def reflection(client):
    """The package has a client only for blocking channels. It uses the older name of reflection."""
    known = ProtoReflectionDescriptorDatabase(client.wire.channel)
    names = known.get_services()
    assert {"sessiond.v1.SessionService", "grpc.health.v1.Health"} <= set(names), names
    pool = DescriptorPool(known)
    method = pool.FindServiceByName("sessiond.v1.SessionService").FindMethodByName("RevokeCurrent")
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    stub = client.wire.channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}", request.SerializeToString, answer.FromString
    )
    session = await client.sign_in()
    assert (await client.call(stub, request(), bearer(session.access_token))).success
    client.report("a stub made by reflection alone signed out")


async def limits(client):
    """Uses up the address's rate limit: ./run sets a hundred a second.

    Unauthenticated calls have no other cost.
    """
    nobody = [client.call(client.sessions.GetCurrentSession, pb.GetCurrentSessionRequest(), {}) for _ in range(600)]
    asked = await asyncio.gather(*nobody, return_exceptions=True)
    limited = next(error for error in asked if error.code() == StatusCode.RESOURCE_EXHAUSTED)

    async def again():
        raise limited

    told = await refused(again(), StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    delay = told[RetryInfo].retry_delay.ToTimedelta().total_seconds()
    assert 0 < delay <= 1, delay
    client.report(f"RATE_LIMITED says when to retry: in {delay * 1000:.1f} ms")


async def main():
    for wire in (Blocking(), Asyncio()):
        client = Client(wire)
        for check in (sign_out, details, bad_input, deadlines, feed, health):
            await check(client)
        if isinstance(wire, Blocking):
            await reflection(client)
        else:
            # The last test of all: it uses up the limit.
            await limits(client)
        await wire.close()


asyncio.run(main())
