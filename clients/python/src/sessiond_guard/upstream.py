"""Requests to the replicas of sessiond."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, TypeVar, Union
from urllib.parse import urlsplit

#: How long a replica may take to respond, in seconds.
RESPONSE_TIMEOUT = 2.0

#: The largest response body that is read.
RESPONSE_BYTES_MAX = 1_024 * 1_024

#: The longest `traceparent` and `tracestate` that are passed on. W3C Trace Context §3.3.1.5 asks for at least 512.
TRACE_BYTES_MAX = 512

T = TypeVar("T")


class ConfigurationError(Exception):
    """An error that only an operator can correct."""


class Unavailable(Exception):
    """A replica did not respond, or not as expected. Another one may, or the same one later."""


class Response(NamedTuple):
    """A response, read completely."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Replica:
    """One address of sessiond."""

    def __init__(self, url: str, context: Optional[ssl.SSLContext]) -> None:
        self.url = url.rstrip("/")
        #: Its issuer and our server key were checked.
        self.is_checked = False
        parts = urlsplit(self.url)
        self._is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._context = context

    def connection(self, timeout: float) -> Connection:
        if self._is_secure:
            return _HttpsConnection(self._host, self._port, timeout=timeout, context=self._context)
        return _HttpConnection(self._host, self._port, timeout=timeout)

    def send(self, method: str, path: str, headers: Optional[Dict[str, str]] = None, body: Optional[bytes] = None) -> Response:
        """Sends a request, and reads the whole response."""
        connection = self.connection(RESPONSE_TIMEOUT)
        # The timeout of a socket is for each read: what arrives a byte at a time would take longer.
        timer = threading.Timer(RESPONSE_TIMEOUT, lambda: shut(connection.opened))
        timer.daemon = True
        timer.start()
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            text = response.read(RESPONSE_BYTES_MAX + 1)
            if len(text) > RESPONSE_BYTES_MAX:
                raise Unavailable(f"{self.url}{path}: the response is too long")
            found = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, found, text)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.url}: {error or type(error).__name__}") from error
        finally:
            timer.cancel()
            connection.close()


class _HttpConnection(http.client.HTTPConnection):
    #: The socket, also while a response is read that closes the connection: `sock` is None by then.
    opened: Optional[socket.socket] = None

    def connect(self) -> None:
        super().connect()
        self.opened = self.sock


class _HttpsConnection(http.client.HTTPSConnection):
    opened: Optional[socket.socket] = None

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        context: ssl.SSLContext = self._context  # type: ignore[attr-defined]
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        # Before the handshake, which may have to be ended too.
        self.opened = self.sock
        self.sock.do_handshake()


Connection = Union[_HttpConnection, _HttpsConnection]


def shut(opened: Optional[socket.socket]) -> None:
    """Ends the reads of a socket in other threads."""
    if opened is not None:
        try:
            # That of a TLS socket would take its state from under the reading thread.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)
        except OSError:
            # It was never connected, or is closed.
            pass


class Upstream:
    """The replicas of sessiond."""

    def __init__(
        self, urls: List[str], project: str, issuer: str, server_key: Optional[str], context: Optional[ssl.SSLContext]
    ) -> None:
        """`issuer` is the `iss` of the project's tokens."""
        self.replicas = [Replica(url, context) for url in urls]
        self._project = project
        self._issuer = issuer
        self._server_key = server_key
        # The index of the replica that answered last.
        self._preferred = 0

    @property
    def authorization(self) -> Dict[str, str]:
        """The bearer credential; none if a client certificate stands in for it."""
        return {} if self._server_key is None else {"authorization": f"Bearer {self._server_key}"}

    def check(self, replica: Replica) -> None:
        """Checks that a replica has the expected issuer, and accepts our server key for the project. Asks each replica once per
        connection."""
        if replica.is_checked:
            return
        path = f"/.well-known/oauth-authorization-server{urlsplit(self._issuer).path}"
        metadata = replica.send("GET", path)
        if metadata.status not in (200, 404):
            raise _unexpected(replica, path, metadata.status)
        if metadata.status == 404 or _issuer_in(replica, path, metadata.body) != self._issuer:
            hint = "is it another sessiond, or is the issuer or the project misspelt?"
            raise ConfigurationError(f"{replica.url} does not issue tokens as `{self._issuer}`: {hint}")
        # RFC 7662 with Basic, or with a certificate by RFC 8705: the request that names the project together with the credential.
        headers = {"content-type": "application/x-www-form-urlencoded"}
        form = f"token=none&client_id={self._project}"
        if self._server_key is not None:
            basic = base64.b64encode(f"{self._project}:{self._server_key}".encode()).decode()
            headers["authorization"], form = f"Basic {basic}", "token=none"
        status = replica.send("POST", "/oauth2/introspect", headers, form.encode()).status
        if status == 401:
            credential = "client certificate" if self._server_key is None else "server key"
            why = f"it is unknown, revoked, or not one of project `{self._project}`"
            raise ConfigurationError(f"{replica.url} rejects the {credential}: {why}")
        if status != 200:
            raise _unexpected(replica, "/oauth2/introspect", status)
        replica.is_checked = True

    def jwks(self) -> Response:
        """Fetches the project's JWK Set from the first replica that answers."""

        def fetch(replica: Replica) -> Response:
            self.check(replica)
            path = f"/projects/{self._project}/.well-known/jwks.json"
            response = replica.send("GET", path)
            if response.status != 200:
                raise _unexpected(replica, path, response.status)
            return response

        return self._first(fetch)

    def introspect(self, token: str, trace: Optional[Trace] = None) -> bool:
        """Asks the first replica that answers whether a token is active."""

        def ask(replica: Replica) -> bool:
            self.check(replica)
            path = "/auth/tokens:introspect"
            headers = {**self.authorization, **trace_headers(trace), "content-type": "application/json"}
            response = replica.send("POST", path, headers, json.dumps({"token": token}).encode())
            if response.status != 200:
                raise _unexpected(replica, path, response.status)
            is_active = _member(response.body, "active")
            # An answer of a proxy is no verdict.
            if not isinstance(is_active, bool):
                raise Unavailable(f"{replica.url}{path} does not say whether a token is active")
            return is_active

        return self._first(ask)

    def _first(self, send: Callable[[Replica], T]) -> T:
        last: Optional[Exception] = None
        preferred = self._preferred
        for step in range(len(self.replicas)):
            at = (preferred + step) % len(self.replicas)
            try:
                answer = send(self.replicas[at])
            except (ConfigurationError, Unavailable) as error:
                last = error
            else:
                self._preferred = at
                return answer
        assert last is not None, "there is at least one replica"
        raise last


class Trace(NamedTuple):
    """The trace of a request (W3C Trace Context): its headers, if it has one of each."""

    traceparent: Optional[str] = None
    tracestate: Optional[str] = None


def trace_headers(trace: Optional[Trace]) -> Dict[str, str]:
    """What a call to sessiond carries of a trace. sessiond checks the form."""
    if trace is None or not _is_passed_on(trace.traceparent):
        return {}
    return {name: value for name, value in trace._asdict().items() if _is_passed_on(value)}


def _is_passed_on(value: Optional[str]) -> bool:
    return value is not None and 0 < len(value) <= TRACE_BYTES_MAX and value.isascii() and value.isprintable()


def _unexpected(replica: Replica, path: str, status: int) -> Unavailable:
    return Unavailable(f"{replica.url}{path} returned {status}")


def _member(body: bytes, name: str) -> Any:
    try:
        return json.loads(body.decode())[name]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _issuer_in(replica: Replica, path: str, body: bytes) -> str:
    """The issuer in authorization server metadata. A proxy's error page is no evidence of another issuer."""
    issuer = _member(body, "issuer")
    if not isinstance(issuer, str):
        raise Unavailable(f"{replica.url}{path} is not authorization server metadata")
    return issuer
