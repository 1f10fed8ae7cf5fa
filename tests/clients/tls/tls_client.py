"""mTLS with grpcio and stubs that grpcio-tools makes from our proto, against a running `sessiond serve`; ./run starts it."""

import os
from importlib.metadata import version
from pathlib import Path

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from sessiond.v1 import session_service_pb2 as pb
from sessiond.v1.session_service_pb2_grpc import SessionServiceStub

ADDRESS = f"localhost:{os.environ['PORT']}"
KEY = os.environ["SESSIOND_SERVER_KEY"]
PKI = Path(os.environ["PKI"])


def read(file):
    return (PKI / file).read_bytes()


def connect(name=None):
    """Returns a stub of a connection that presents this certificate, if any."""
    identity = (read(f"{name}.key"), read(f"{name}.pem")) if name else (None, None)
    credentials = grpc.ssl_channel_credentials(read("ca.pem"), *identity)
    return SessionServiceStub(grpc.secure_channel(ADDRESS, credentials))


def create(stub, metadata=()):
    return stub.CreateSession(pb.CreateSessionRequest(user_id="ada"), metadata=metadata, timeout=10)


def refused(call, code, reason):
    try:
        call()
    except grpc.RpcError as error:
        (info,) = [detail for detail in rpc_status.from_call(error).details if detail.Is(ErrorInfo.DESCRIPTOR)]
        assert (error.code(), ErrorInfo.FromString(info.value).reason) == (code, reason), error
        return
    raise AssertionError("it did not fail")


def report(what):
    print(f"grpcio {version('grpcio')}, TLS: {what}", flush=True)


anonymous, login, stranger = connect(), connect("login"), connect("stranger")
session = create(anonymous, (("authorization", f"Bearer {KEY}"),))
report("created a session over TLS with a server key")
mine = create(login)
assert mine.session.project_id == session.session.project_id == os.environ["SESSIOND_PROJECT_ID"]
assert login.IntrospectToken(pb.IntrospectTokenRequest(token=session.access_token), timeout=10).active
report("created a session with a client certificate in place of a server key")
refused(lambda: create(anonymous), grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
refused(lambda: create(stranger), grpc.StatusCode.UNAUTHENTICATED, "INVALID_SERVER_KEY")
refused(
    lambda: login.EraseUser(pb.EraseUserRequest(user_id="ada"), timeout=10),
    grpc.StatusCode.PERMISSION_DENIED,
    "INSUFFICIENT_ACCESS_TYPE",
)
report("refused what the certificate's name does not allow")

# An authority that the client does not trust: no request is made.
try:
    untrusting = grpc.secure_channel(ADDRESS, grpc.ssl_channel_credentials(read("stranger.pem")))
    create(SessionServiceStub(untrusting), (("authorization", f"Bearer {KEY}"),))
    raise AssertionError("it trusted a certificate of another authority")
except grpc.RpcError as error:
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
report("refused a certificate of an authority that it does not trust")
