"""The guard itself: connects, verifies, counts."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import random
import re
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import List, NamedTuple, Optional, Sequence, Set, Tuple, Union
from urllib.parse import urlencode

from .clock import Clock, Time
from .follower import ACCEPTS, SILENCE_MAX_MS, Feed, Progress, StreamReader
from .jwks import Jwks, max_age, read_keys
from .refusal import Refusal, Requirement
from .revocations import Revocations
from .token import NO_KEYS, UNKNOWN_KEY, Principal, TokenVerifier, is_project
from .upstream import ConfigurationError, Replica, Trace, Unavailable, Upstream, shut

LOG = logging.getLogger("sessiond_guard")

MAX_STALENESS_MIN = 2.0
REPLICAS_MAX = 64
FAIL_MODES = ("reject", "introspect", "accept_until_expiry")

#: How often entries that every token has outlived are removed.
FORGET_INTERVAL_MS = 10_000

#: The shortest time between two reads of the keys that unknown keys cause: anyone can make up a `kid`.
READ_INTERVAL_MIN_MS = 1_000

#: How long a token under an unknown key waits for the keys to be read.
READ_TIMEOUT_MS = 3_000

#: How long to wait after the keys could not be read.
READ_RETRY_MIN_MS = 100
READ_RETRY_MAX_MS = 10_000

#: How many responses in a row with an implausible `Date` are followed by another read at once, to collect more of them.
IMPLAUSIBLE_MAX = 3

#: The most introspections at once. In an outage every request is one; more are rejected rather than queued.
INTROSPECTIONS_MAX = 256

#: How many threads ask sessiond on behalf of coroutines.
INTROSPECTION_THREADS = 32

#: How often the stream is checked for silence, in seconds.
TICK = 0.25

#: How many bytes are read at once.
CHUNK_BYTES = 65_536


class Stats(NamedTuple):
    """A guard's counters and the age of its keys and revocations, at one moment. Times are in seconds."""

    #: The age of the feed; None before the first complete snapshot.
    staleness: Optional[float]
    #: Revocations in memory.
    entries: int
    #: The time since the keys were last read; None if they never were.
    jwks_age: Optional[float]
    accepted: int
    #: Requests with no token, a malformed one, or another project's.
    refused: int
    expired: int
    #: Tokens of revoked sessions.
    revoked: int
    #: Tokens that were issued before their session changed.
    superseded: int
    #: Tokens that the guard could not decide on.
    unavailable: int
    #: Accepted tokens whose user must authenticate again.
    step_ups: int
    #: Introspection requests to sessiond.
    introspections: int
    #: Streams of revocations that were opened.
    connections: int
    #: Complete snapshots received.
    snapshots: int
    #: Revocations of kinds that this version does not understand.
    withheld: int


#: The decision on a token without asking sessiond: UNKNOWN_KEY; or why it is uncertain, with the principal if the signature is good.
Decision = Union[Principal, Refusal, str, Tuple[str, Optional[Principal]]]


class GuardState:
    """The state that a guard's threads and requests share."""

    def __init__(
        self,
        project: str,
        issuer: str,
        max_staleness: float = 10.0,
        fail_mode: str = "reject",
        max_entries: int = 1_000_000,
        replicas: int = 1,
        clock: Optional[Clock] = None,
    ) -> None:
        if not re.match(r"https?://.", issuer):
            raise ConfigurationError(f"invalid issuer `{issuer}`: expected sessiond's base URL, as in its tokens' `iss`")
        if not is_project(project):
            raise ConfigurationError(f"invalid project `{project}`: expected 1 to 64 of `A-Z a-z 0-9 - _`")
        if not max_staleness >= MAX_STALENESS_MIN:
            raise ConfigurationError(f"max_staleness must be at least {MAX_STALENESS_MIN} s")
        if fail_mode not in FAIL_MODES:
            raise ConfigurationError(f"invalid fail_mode `{fail_mode}`: expected one of {', '.join(FAIL_MODES)}")
        self.project = project
        self.issuer = f"{issuer.rstrip('/')}/projects/{project}"
        self.fail_mode = fail_mode
        self.time = Time(clock or Clock())
        self.jwks = Jwks()
        self.revocations = Revocations()
        self.verifier = TokenVerifier(project, self.issuer)
        self.max_staleness = max_staleness * 1_000
        self.feed = Feed(self.time, self.revocations, self.max_staleness, max_entries, replicas)

    def decide(self, token: str) -> Decision:
        """Decides from the cached keys and revocations."""
        verified = self.verifier.verify(token, self.jwks)
        if verified == NO_KEYS:
            return "no_keys", None
        if not isinstance(verified, Principal):
            return verified
        if verified.expires_at_ms <= self.time.now():
            return _expired(verified)
        # Before the set: the one that is asked must not be older than what is believed of it.
        because = self._doubt(verified)
        revoked = self.revocations.set
        if revoked.has(verified):
            return Refusal.revoked()
        if revoked.has_superseded(verified):
            return Refusal.superseded()
        return (because, verified) if because else verified

    def _doubt(self, principal: Principal) -> Optional[str]:
        age = self.revocations.age(self.time)
        if age is None:
            return "no_feed"
        if age > self.max_staleness:
            return "stale_feed"
        if self.revocations.set.has_withheld(principal):
            return "withheld"
        return None if self.jwks.is_usable(self.time.elapsed()) else "no_keys"

    def decide_by_fail_mode(self, because: str, principal: Optional[Principal]) -> Union[Principal, Refusal]:
        """Applies the fail mode without asking sessiond."""
        accepts = self.fail_mode == "accept_until_expiry" and self.revocations.is_complete
        return principal if principal is not None and accepts else Refusal.unavailable(because)


def _expired(principal: Principal) -> Refusal:
    return Refusal.expired(principal.expires_at_ms, principal.project_id, principal.user_id, principal.session_id)


class Guard:
    """Verifies the access tokens of one project. Safe to use from several threads, and from coroutines.

    Three threads follow the feed, watch for its silence, and read the keys. After a fork, the child has its own."""

    def __init__(
        self,
        url: Union[str, Sequence[str]],
        project: str,
        server_key: Optional[str] = None,
        issuer: Optional[str] = None,
        *,
        max_staleness: float = 10.0,
        fail_mode: str = "reject",
        max_entries: int = 1_000_000,
        tls: Optional[ssl.SSLContext] = None,
        clock: Optional[Clock] = None,
    ) -> None:
        """Prefer `connect`, which also waits until the guard is ready.

        url: the base URL of sessiond, or those of its replicas: `http://` or `https://`, a host, and optionally a port.
        project: the project whose tokens are accepted.
        server_key: a server key of the project with the role `verifier`. May be omitted with a client certificate in `tls`.
        issuer: the base URL in the tokens' `iss`, equal to sessiond's `--issuer`. Default: the first `url`.
        max_staleness: how old the feed of revocations may be for a token to be accepted, in seconds. At least 2.
        fail_mode: what happens to a token when the guard cannot know whether its session is revoked. `reject`: rejects it, and
            tells the client to try again. `introspect`: asks sessiond about it each time. `accept_until_expiry`: accepts it until
            it expires, unless it is known to be revoked; not before the first complete snapshot.
        max_entries: the most revocations that are held. Beyond it the feed grows old.
        tls: for `https://`: the certificates to trust, and a client certificate. Default: the system's certificates.
        """
        urls = [url] if isinstance(url, str) else list(url)
        if not 1 <= len(urls) <= REPLICAS_MAX:
            raise ConfigurationError(f"a guard needs 1 to {REPLICAS_MAX} urls")
        for one in urls:
            if not re.fullmatch(r"https?://[^/?#]+/?", one):
                raise ConfigurationError(f"invalid url `{one}`: expected http:// or https://, a host, and optionally a port")
        # Checked before it is sent: the operator may have configured another secret by mistake.
        if server_key is not None and not re.fullmatch(r"sdsk_[A-Za-z0-9_-]{64}", server_key):
            raise ConfigurationError("malformed server key: expected `sdsk_` followed by 64 characters")
        if server_key is None and tls is None:
            raise ConfigurationError("a guard needs a server key or a client certificate")
        self._state = state = GuardState(
            project, issuer or urls[0], max_staleness, fail_mode, max_entries, len(urls), clock
        )
        self._upstream = Upstream(urls, project, state.issuer, server_key, tls)
        self._counts = dict.fromkeys(Stats._fields[3:], 0)
        self._withheld_kinds: List[str] = []
        self._has_warned_of_role = False
        state.feed.on_fresh = self._on_fresh
        state.feed.on_snapshot = lambda: self._add("snapshots")
        state.feed.on_withheld = self._on_withheld
        self._start()
        _GUARDS.add(self)

    def _start(self) -> None:
        """Starts the threads; again in the child of a fork, where none of the parent's threads and locks is usable."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._has_snapshot = self._has_keys = False
        self._error: Optional[ConfigurationError] = None
        self._reads = _Reads()
        self._introspections = threading.Semaphore(INTROSPECTIONS_MAX)
        self._executor: Optional[ThreadPoolExecutor] = None
        self._socket: Optional[socket.socket] = None
        for run in (_follow, _read_keys):
            threading.Thread(target=run, args=(self,), name=f"sessiond-guard{run.__name__}", daemon=True).start()

    @classmethod
    def connect(cls, url: Union[str, Sequence[str]], project: str, server_key: Optional[str] = None,
                issuer: Optional[str] = None, *, startup_timeout: float = 5.0, **options: object) -> Guard:
        """Connects to sessiond, and waits until the keys and the first complete snapshot of the revocations have arrived. In an
        outage, returns after `startup_timeout` seconds; the fail mode then decides until they arrive.

        The options are those of `Guard`. Raises ConfigurationError for invalid ones, a server key that is not the project's, or a
        server that does not issue the project's tokens. Does not raise in an outage."""
        guard = cls(url, project, server_key, issuer, **options)  # type: ignore[arg-type]
        try:
            if not guard.ready(startup_timeout):
                LOG.warning("sessiond is unavailable: the fail mode decides until it answers")
        except ConfigurationError:
            guard.close()
            raise
        return guard

    def ready(self, timeout: Optional[float] = None) -> bool:
        """Waits until the keys and the first complete snapshot have arrived. Returns whether they have, within `timeout`
        seconds. Raises as `connect`."""

        def is_over() -> bool:
            return self._error is not None or (self._has_snapshot and self._has_keys)

        with self._changed:
            self._changed.wait_for(is_over, timeout)
            is_ready = self._has_snapshot and self._has_keys
            if not is_ready and self._error is not None:
                raise self._error
            return is_ready

    def close(self) -> None:
        """Stops following the feed. The guard decides nothing after that but by its fail mode."""
        _GUARDS.discard(self)
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._reads.wake()
        shut(self._socket)
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def verify(self, token: str, trace: Optional[Trace] = None) -> Principal:
        """Verifies a token. Usually without waiting; asks sessiond only in the fail mode `introspect` and about unknown keys. That
        call carries the request's `trace`.

        Raises Refusal: why the token is refused."""
        decision = self._state.decide(token)
        if decision == UNKNOWN_KEY:
            decision = self._after_read(token, self._reads.read_now(READ_TIMEOUT_MS / 1_000))
        return self._count(self._resolve(token, decision, trace))

    async def verify_async(self, token: str, trace: Optional[Trace] = None) -> Principal:
        """As `verify`, for coroutines: does not block the event loop."""
        decision = self._state.decide(token)
        if decision == UNKNOWN_KEY:
            decision = self._after_read(token, await self._reads.read_now_async(READ_TIMEOUT_MS / 1_000))
        if isinstance(decision, tuple) and self._state.fail_mode == "introspect":
            self._read_stale_keys(decision[0])
            return self._count(await self._introspect_async(token, decision[1], trace))
        return self._count(self._resolve(token, decision, trace))

    def verify_now(self, token: str) -> Principal:
        """Verifies a token without waiting: unavailable where `verify` would ask sessiond.

        Raises Refusal: why the token is refused."""
        decision = self._state.decide(token)
        if decision == UNKNOWN_KEY:
            decision = ("no_keys", None)
        if isinstance(decision, tuple):
            self._read_stale_keys(decision[0])
            decision = self._state.decide_by_fail_mode(*decision)
        return self._count(decision)

    def require(self, principal: Optional[Principal], acr: Sequence[str] = (), max_age: Optional[int] = None) -> None:
        """Checks that the user has authenticated recently and strongly enough (RFC 9470). Raises Refusal
        (INSUFFICIENT_USER_AUTHENTICATION; CREDENTIALS_MISSING without a principal, behind `optional`)."""
        if principal is None:
            self._add("refused")
            raise Refusal.credentials_missing()
        requirement = Requirement(acr, max_age)
        if not meets(principal, requirement, self._state.time.now()):
            self._add("step_ups")
            raise Refusal.insufficient_authentication(requirement)

    def count_refusal(self) -> None:
        """Counts a request that carries no token to verify."""
        self._add("refused")

    def stats(self) -> Stats:
        """The guard's counters, and the age of its keys and revocations."""
        state = self._state
        age, jwks_age = state.revocations.age(state.time), state.jwks.age(state.time.elapsed())
        seconds = [None if one is None else one / 1_000 for one in (age, jwks_age)]
        return Stats(seconds[0], len(state.revocations.set), seconds[1], **self._counts)

    def metrics(self) -> str:
        """The counters in Prometheus' text exposition format."""
        stats = self.stats()

        def metric(name: str, kind: str, text: str, *values: Tuple[str, object]) -> List[str]:
            name = f"sessiond_guard_{name}"
            shown = [f"{name}{labels} {'+Inf' if value is None else value}" for labels, value in values]
            return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *shown]

        outcomes = [(f'{{outcome="{name}"}}', getattr(stats, name)) for name in Stats._fields[3:9]]
        lines = [
            metric("staleness_seconds", "gauge", "Age of the feed of revocations", ("", stats.staleness)),
            metric("entries", "gauge", "Revocations in memory", ("", stats.entries)),
            metric("jwks_age_seconds", "gauge", "Time since the keys were last read", ("", stats.jwks_age)),
            metric("verifications_total", "counter", "Verified tokens, by outcome", *outcomes),
            metric("step_ups_total", "counter", "Accepted tokens whose user must authenticate again", ("", stats.step_ups)),
            metric("introspections_total", "counter", "Introspection requests to sessiond", ("", stats.introspections)),
            metric("connections_total", "counter", "Streams of revocations that were opened", ("", stats.connections)),
            metric("snapshots_total", "counter", "Complete snapshots received", ("", stats.snapshots)),
            metric("withheld_total", "counter", "Revocations of kinds that this version does not understand", ("", stats.withheld)),
        ]
        return "\n".join(line for group in lines for line in group) + "\n"

    def _after_read(self, token: str, is_current: bool) -> Decision:
        decision = self._state.decide(token) if is_current else ("no_keys", None)
        # The keys were just read, and this is none of them.
        return Refusal.unparsable() if decision == UNKNOWN_KEY else decision

    def _resolve(self, token: str, decision: Decision, trace: Optional[Trace]) -> Union[Principal, Refusal]:
        if not isinstance(decision, tuple):
            assert isinstance(decision, (Principal, Refusal))
            return decision
        because, principal = decision
        self._read_stale_keys(because)
        if self._state.fail_mode == "introspect":
            return self._introspect(token, principal, trace)
        return self._state.decide_by_fail_mode(because, principal)

    def _read_stale_keys(self, because: str) -> None:
        """Has the keys read if they are missing or too old: the machine may have slept, and the next read not be due yet."""
        if because == "no_keys":
            self._reads.request()

    def _introspect(self, token: str, principal: Optional[Principal], trace: Optional[Trace]) -> Union[Principal, Refusal]:
        """Asks sessiond about one token. The response is not cached."""
        if not self._introspections.acquire(blocking=False):
            return Refusal.unavailable("no_answer")
        try:
            return self._ask(token, principal, trace)
        finally:
            self._introspections.release()

    async def _introspect_async(self, token: str, principal: Optional[Principal], trace: Optional[Trace]) -> Union[Principal, Refusal]:
        """The same on a thread. Refused before it is queued: the queue of the threads has no bound."""
        if not self._introspections.acquire(blocking=False):
            return Refusal.unavailable("no_answer")
        try:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(INTROSPECTION_THREADS, "sessiond-guard")
            asking = self._executor.submit(self._ask, token, principal, trace)
        except RuntimeError:
            # The guard is closed.
            self._introspections.release()
            return Refusal.unavailable("no_answer")
        # Also if the request is cancelled before a thread is free.
        asking.add_done_callback(lambda _: self._introspections.release())
        return await asyncio.wrap_future(asking)

    def _ask(self, token: str, principal: Optional[Principal], trace: Optional[Trace]) -> Union[Principal, Refusal]:
        try:
            self._add("introspections")
            is_active = self._upstream.introspect(token, trace)
        except (Unavailable, ConfigurationError):
            return Refusal.unavailable("no_answer")
        if not is_active:
            # The signature and the expiry were checked here, so it is the session that has ended.
            return Refusal.unparsable() if principal is None else Refusal.revoked()
        read = self._state.verifier.parse_unverified(token) if principal is None else principal
        is_expired = isinstance(read, Principal) and read.expires_at_ms <= self._state.time.now()
        return _expired(read) if is_expired else read  # type: ignore[arg-type]

    def _count(self, outcome: Union[Principal, Refusal, str]) -> Principal:
        if isinstance(outcome, Principal):
            self._add("accepted")
            return outcome
        assert isinstance(outcome, Refusal)
        self._add(_OUTCOMES.get(outcome.reason, "refused"))
        raise outcome

    def _add(self, name: str) -> None:
        # Without a lock: counters may lose a count when two threads meet.
        self._counts[name] += 1

    def _on_fresh(self) -> None:
        if not self._has_snapshot:
            with self._changed:
                self._has_snapshot = True
                self._changed.notify_all()

    def _on_withheld(self, kind: str) -> None:
        self._add("withheld")
        # Bounded, because a server could make up names.
        if kind not in self._withheld_kinds and len(self._withheld_kinds) < 32:
            self._withheld_kinds.append(kind)
            LOG.warning("received a revocation of the unknown kind %r: the fail mode decides on what it concerns; upgrade this guard", kind)

    def _on_role(self, role: Optional[str]) -> None:
        if role not in (None, "verifier") and not self._has_warned_of_role:
            self._has_warned_of_role = True
            advice = "`verifier` is enough for a guard (`sessiond server-key narrow KEY --role verifier`)"
            LOG.warning("the server key has the role `%s`; %s", role, advice)

    def _failed(self, error: Exception) -> None:
        """Keeps an error that only an operator can correct, for `ready`."""
        if isinstance(error, ConfigurationError):
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _read_keys_once(self) -> Tuple[float, bool]:
        """Reads the keys. Returns their max-age in milliseconds, and whether the response's `Date` agrees with the clock."""
        state = self._state
        requested_at = state.time.elapsed()
        response = self._upstream.jwks()
        keys = read_keys(response.body)
        if keys is None:
            raise Unavailable("the document is not a JWK Set")
        date = _date(response.headers.get("date"))
        is_plausible = date is None or state.time.observe(date)
        age = max_age(response.headers.get("cache-control"))
        state.jwks.store(keys, requested_at, age)
        return age, is_plausible

    def _begun(self) -> None:
        """The keys have arrived, for `ready`."""
        with self._changed:
            self._has_keys = True
            self._changed.notify_all()

    def _stream(self, replica: Replica, progress: Progress) -> str:
        """Follows one replica. Returns why the stream ended."""
        self._upstream.check(replica)
        feed, elapsed = self._state.feed, self._state.time.elapsed
        query = [("cursor", progress.cursor)] if progress.cursor else []
        query += [("accepts", kind) for kind in ACCEPTS] + [("max_entries", str(feed.max_entries))]
        reader = StreamReader(feed, progress, elapsed())
        connection = replica.connection(SILENCE_MAX_MS / 1_000)
        is_over = threading.Event()

        def end_if_silent() -> None:
            # The timeout of a socket is for each read: what arrives a byte at a time would take longer.
            while not is_over.wait(TICK):
                if reader.is_silent(elapsed()):
                    return shut(connection.opened)

        threading.Thread(target=end_if_silent, name="sessiond-guard_silence", daemon=True).start()
        try:
            connection.connect()
            self._socket = connection.opened
            headers = {**self._upstream.authorization, "accept": "application/x-ndjson"}
            connection.request("GET", f"/auth/revocations:watch?{urlencode(query)}", headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                return _refused(response.status, response.read(CHUNK_BYTES).decode(errors="replace"), progress)
            self._add("connections")
            self._on_role(response.getheader("x-sessiond-key-role"))
            reader.open(elapsed())
            return self._read(response, reader)
        except (OSError, http.client.HTTPException):
            if reader.is_silent(elapsed()):
                return "silence"
            raise
        finally:
            is_over.set()
            self._socket = None
            connection.close()

    def _read(self, response: http.client.HTTPResponse, reader: StreamReader) -> str:
        elapsed = self._state.time.elapsed
        forget_at = elapsed() + FORGET_INTERVAL_MS
        while not self._closed.is_set():
            chunk = response.read1(CHUNK_BYTES)
            now = elapsed()
            end = reader.read(chunk, now)
            if end is not None:
                return end
            if not chunk:
                return "closed"
            if reader.is_silent(now):
                return "silence"
            if now >= forget_at:
                forget_at = now + FORGET_INTERVAL_MS
                self._state.revocations.set.forget(now)
        return "closed"


_OUTCOMES = {
    "ACCESS_TOKEN_EXPIRED": "expired",
    "SESSION_REVOKED": "revoked",
    "ACCESS_TOKEN_SUPERSEDED": "superseded",
    "VERIFICATION_UNAVAILABLE": "unavailable",
}


def meets(principal: Principal, requirement: Requirement, now: float) -> bool:
    """Whether an authentication is sufficient. An unknown value does not meet a requirement. `now` in milliseconds."""
    if isinstance(requirement.acr, str):
        raise TypeError("acr must be a list of values: `in` would find parts of a text")
    auth_time, acr = principal.claims.get("auth_time"), principal.claims.get("acr")
    limit = requirement.max_age
    is_recent = limit is None or (auth_time is not None and now < (auth_time + limit) * 1_000)
    return is_recent and (not requirement.acr or acr in requirement.acr)


class _Reads:
    """The reads of the keys, which tokens under unknown keys request and wait for. Times are in seconds."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requested = threading.Event()
        self._begun = self._done = 0
        self._begun_at = float("-inf")
        self._has_succeeded = False

    def begin(self, now: float) -> None:
        with self._changed:
            self._begun += 1
            self._begun_at = now

    def end(self, has_succeeded: bool) -> None:
        with self._changed:
            self._done, self._has_succeeded = self._begun, has_succeeded
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Waits for so long, or until a read is requested."""
        self._requested.wait(max(0.0, seconds))
        self._requested.clear()

    def wake(self) -> None:
        self._requested.set()

    def request(self) -> None:
        """Requests a read without waiting for it."""
        if _monotonic() - self._begun_at >= READ_INTERVAL_MIN_MS / 1_000:
            self._requested.set()

    def read_now(self, timeout: float) -> bool:
        """Requests a read and waits for it, unless the keys were read a moment ago. Returns whether the cached keys are now the
        published ones."""
        awaited = self._await()
        with self._changed:
            return self._changed.wait_for(lambda: self._done >= awaited, timeout) and self._has_succeeded

    async def read_now_async(self, timeout: float) -> bool:
        awaited, until = self._await(), _monotonic() + timeout
        while self._done < awaited:
            if _monotonic() > until:
                return False
            await asyncio.sleep(0.01)
        return self._has_succeeded

    def _await(self) -> int:
        """The number of the read that is current enough; requests it."""
        with self._changed:
            is_recent = _monotonic() - self._begun_at < READ_INTERVAL_MIN_MS / 1_000
            if is_recent and self._begun == self._done:
                return self._done
            # A read in progress may have been sent before the key was published; by the next token it is no longer recent.
            awaited = self._begun if self._begun > self._done else self._begun + 1
            self._requested.set()
            return awaited


def _follow(guard: Guard) -> None:
    """Follows one replica at a time, and switches to the next when its stream ends."""
    progress, closed, replicas = Progress(), guard._closed, guard._upstream.replicas
    attempt = 0
    while not closed.is_set():
        replica = replicas[attempt % len(replicas)]
        attempt += 1
        try:
            end = guard._stream(replica, progress)
        except socket.timeout:
            end = "silence"
        # Whatever happens: a thread that ends would leave the feed old for good.
        except Exception as error:
            guard._failed(error)
            end = str(error) or type(error).__name__
        # Another server may respond at this address now.
        replica.is_checked = False
        wait = progress.retry_after()
        if not closed.is_set():
            LOG.warning("the stream of revocations from %s ended (%s); reconnecting in %.0f ms", replica.url, end, wait)
        closed.wait(wait / 1_000)


def _read_keys(guard: Guard) -> None:
    """Reads the keys at the start, at half of their `max-age`, and whenever a token names an unknown one."""
    failures = implausible = 0
    reads, closed = guard._reads, guard._closed
    while not closed.is_set():
        begun_at = _monotonic()
        reads.begin(begun_at)
        try:
            age, is_plausible = guard._read_keys_once()
            failures = 0
            if is_plausible or implausible >= IMPLAUSIBLE_MAX:
                implausible = 0 if is_plausible else implausible
                due = begun_at + age / 2_000
                # Not before: with a wrong clock, expired tokens would pass.
                guard._begun()
            else:
                implausible += 1
                due = _monotonic() + READ_RETRY_MIN_MS / 1_000
            has_succeeded = True
        # Whatever happens: a thread that ends would leave the keys old for good.
        except Exception as error:
            LOG.warning("failed to read the JWK Set: %s", error)
            guard._failed(error)
            retry = min(READ_RETRY_MIN_MS * 2 ** min(failures, 16), READ_RETRY_MAX_MS) / 1_000
            due = _monotonic() + retry * (0.5 + random.random() / 2)
            failures += 1
            has_succeeded = False
        reads.end(has_succeeded)
        reads.wait(due - _monotonic())
        # Unknown keys cause no more than one read a second.
        closed.wait(max(0.0, min(begun_at + READ_INTERVAL_MIN_MS / 1_000, due) - _monotonic()))


def _monotonic() -> float:
    return Clock().elapsed() / 1_000


def _date(header: Optional[str]) -> Optional[float]:
    """The issuer's time of day, in milliseconds."""
    try:
        return parsedate_to_datetime(header).timestamp() * 1_000 if header else None
    except (TypeError, ValueError):
        return None


def _refused(status: int, body: str, progress: Progress) -> str:
    if progress.refuse(status, body):
        return "sessiond does not accept the cursor"
    if status == 400 and "accepts" in body:
        return "sessiond is older than this guard: upgrade it first"
    return f"sessiond returned {status}: {body[:200]}"


#: All guards, for their children after a fork.
_GUARDS: Set[Guard] = set()


def _after_fork() -> None:
    for guard in list(_GUARDS):
        if not guard._closed.is_set():
            guard._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
