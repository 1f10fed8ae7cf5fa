"""Follows the feed of revocations: one line of JSON after the other. All times are in milliseconds."""

from __future__ import annotations

import json
import random
from typing import Any, Callable, Dict, List, Optional, Tuple

from .clock import Time
from .revocations import Key, Project, Revocations, RevokedSet, Session, Superseded, Target, User, Withheld, second_after
from .token import is_user, is_uuid

#: A stream without a line for this long is considered dead.
SILENCE_MAX_MS = 3_000

#: The longest line: four times the longest that sessiond sends.
LINE_BYTES_MAX = 4 * 1_024 * 1_024

#: The kinds of revocations that this version understands. sessiond sends others as `withheld`.
ACCEPTS = ("session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded")

#: How often sessiond sends a heartbeat, and how late it may be.
HEARTBEAT_INTERVAL_MS = 1_000
TOLERANCE_MS = 100

#: The guard leaves a replica whose feed is older than the maximum staleness divided by this.
STALE_DIVISOR = 2

#: If every replica is stale, how long the guard stays with one before it tries the next.
STALE_STAY_MS = 5_000

#: How long to wait before reconnecting: doubled with each failure, minus a random part.
RETRY_MIN_MS = 50
RETRY_MAX_MS = 2_000


class Feed:
    """What the streams of a guard share."""

    def __init__(self, time: Time, revocations: Revocations, max_staleness: float, max_entries: int, replicas: int) -> None:
        self.time = time
        self.revocations = revocations
        self.max_staleness = max_staleness
        self.max_entries = max_entries
        self.replicas = replicas
        #: A heartbeat has confirmed the set.
        self.on_fresh: Callable[[], None] = lambda: None
        #: The set has been replaced by a snapshot.
        self.on_snapshot: Callable[[], None] = lambda: None
        #: Something of this kind was withheld, which this version does not understand.
        self.on_withheld: Callable[[str], None] = lambda kind: None


class Progress:
    """What one stream leaves to the next."""

    def __init__(self) -> None:
        #: Where to resume; empty to begin with a snapshot.
        self.cursor = ""
        self._failures = 0
        # How many replicas were left since the feed was last fresh.
        self._left = 0
        # Since when the present replica is known to be stale.
        self._stale_since: Optional[float] = None

    def begin(self) -> None:
        self._stale_since = None

    def retry_after(self) -> float:
        """How long to wait before the next stream."""
        whole = min(RETRY_MIN_MS * 2 ** min(self._failures, 16), RETRY_MAX_MS)
        self._failures += 1
        return whole / 2 + whole / 2 * random.random()

    def succeed(self) -> None:
        self._failures = 0

    def refuse(self, status: int, body: str) -> bool:
        """sessiond has refused to open the stream, with this response. Returns whether it was because of the cursor."""
        if status != 400:
            return False
        try:
            details = json.loads(body)["details"]
            violations = [violation for detail in details for violation in detail.get("field_violations", [])]
            is_cursor = any(violation["field"] == "cursor" for violation in violations)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if is_cursor:
            self.cursor = ""
        return is_cursor

    def should_leave(self, age: float, now: float, feed: Feed) -> bool:
        """Whether to leave the present replica, whose feed has this age: at once while another one has not been tried, and then
        after a while, because a single address may have several replicas behind it."""
        if age <= feed.max_staleness / STALE_DIVISOR:
            self._left, self._stale_since = 0, None
            return False
        if self._stale_since is None:
            self._stale_since = now
        if feed.replicas > 1 and self._left < feed.replicas:
            self._left += 1
            return True
        return now - self._stale_since >= STALE_STAY_MS


class StreamReader:
    """Applies what arrives on one stream. The caller says when it arrived, so the result depends on nothing else."""

    def __init__(self, feed: Feed, progress: Progress, at: float) -> None:
        """`at` is when the request was sent, on the monotonic clock: the first line may have been delayed too."""
        self._feed = feed
        self._progress = progress
        # The beginning of a line whose rest has not arrived, in one buffer: pieces may be of a byte each.
        self._part = bytearray()
        self._line_at = at
        # The snapshot that is being received, or waits for a heartbeat, which says how old it is.
        self._snapshot: Optional[RevokedSet] = None
        # Whether the snapshot is complete, and where to resume once it has replaced the set.
        self._is_whole = False
        self._cursor: Optional[str] = None
        # Whether this stream has replaced the set by a snapshot.
        self._has_new_snapshot = False
        # When the request was sent.
        self._begun_at = at
        # When the last heartbeat arrived, and how long it was delayed at least.
        self._heartbeat_at = at
        self._delay: float = 0
        progress.begin()

    def open(self, at: float) -> None:
        """The response has arrived, and lines follow."""
        self._line_at = at

    def is_silent(self, at: float) -> bool:
        """Whether there was no line for too long."""
        return at - self._line_at > SILENCE_MAX_MS

    def read(self, chunk: bytes, at: float) -> Optional[str]:
        """Reads some bytes. Returns why nothing more may be read from this stream; None if it goes on."""
        *lines, rest = chunk.split(b"\n")
        for part in lines:
            end = self._keep(part)
            if end is not None:
                return end
            line, self._part = self._part, bytearray()
            end = self._line(line, at)
            if end is not None:
                return end
        return self._keep(rest)

    def _keep(self, piece: bytes) -> Optional[str]:
        if len(self._part) + len(piece) > LINE_BYTES_MAX:
            return "line_too_long"
        self._part += piece
        return None

    def _line(self, line: bytearray, at: float) -> Optional[str]:
        # This process may have been suspended or busy: the line has waited for an unknown time.
        if self.is_silent(at):
            return "silence"
        self._line_at = at
        try:
            return self._apply(_object(json.loads(line.decode(), parse_constant=_no_constant)), at)
        except (ValueError, RecursionError):
            return "malformed"

    def _apply(self, message: Dict[str, Any], at: float) -> Optional[str]:
        revocations = self._feed.revocations
        cursor = message.get("cursor")
        if cursor is not None:
            _text(cursor)
        if "error" in message:
            return "error"
        if message.get("snapshot_begin") is not None:
            self._snapshot, self._is_whole, self._cursor = RevokedSet(), False, None
        elif message.get("revocations") is not None:
            end = self._insert(_list(_object(message["revocations"]).get("revocations")))
            if end is not None:
                return end
        elif message.get("snapshot_complete") is not None:
            self._is_whole = self._snapshot is not None
            # What it revokes counts at once if nothing else is known.
            if not revocations.is_complete:
                self._use_snapshot()
        elif message.get("heartbeat") is not None:
            heartbeat = _object(message["heartbeat"])
            age = max(0, _integer(heartbeat.get("age_ms")))
            stream_age = heartbeat.get("stream_age_ms")
            if stream_age is not None:
                stream_age = max(0, _integer(stream_age))
            # A heartbeat within a snapshot says nothing about the set that is in use.
            if self._is_whole or (revocations.is_complete and self._snapshot is None):
                if self._is_stale(age + self._delay_of(at, stream_age), at):
                    return "stale"
                self._progress.succeed()
                self._feed.on_fresh()
        # A stream cannot be resumed within a snapshot.
        if cursor is not None:
            if self._snapshot is None:
                self._progress.cursor = cursor
            elif self._is_whole:
                self._cursor = cursor
        return None

    def _is_stale(self, age: float, at: float) -> bool:
        """Records the age of the feed, and lets a snapshot that is complete replace the set. Returns whether to leave this
        replica because of the age."""
        feed = self._feed
        leaves = self._progress.should_leave(age, at, feed)
        # Not one that is older than the set in use: it may lack what is known to be revoked.
        news = feed.revocations.age_of_news(feed.time)
        if news is None or age <= news:
            self._use_snapshot()
        # The set is at least as recent as it was before this stream, unless the stream has replaced it. While a snapshot waits, the
        # age is the snapshot's.
        if self._snapshot is None and (not leaves or self._has_new_snapshot):
            feed.revocations.set_age(feed.time, age)
        return leaves

    def _use_snapshot(self) -> None:
        """Replaces the set by the snapshot, if one is complete."""
        if self._snapshot is None or not self._is_whole:
            return
        self._feed.revocations.replace(self._feed.time, self._snapshot)
        if self._cursor is not None:
            self._progress.cursor = self._cursor
        self._snapshot, self._is_whole, self._has_new_snapshot = None, False, True
        self._feed.on_snapshot()

    def _delay_of(self, at: float, stream_age: Optional[int]) -> float:
        """How long a heartbeat was delayed on the way, at most: a proxy may pass the stream on more slowly than it comes. A
        heartbeat says how old its stream was when it was sent; what is missing from the time since the request is its delay.

        Earlier servers do not say it. Their heartbeats are sent one second apart, so one that arrives earlier than that after
        the previous one was delayed less, and one that arrives later was delayed more."""
        if stream_age is not None:
            return max(0, at - self._begun_at - stream_age)
        apart = at - self._heartbeat_at
        self._heartbeat_at = at
        self._delay = min(SILENCE_MAX_MS, max(0, self._delay + apart - HEARTBEAT_INTERVAL_MS - TOLERANCE_MS))
        return self._delay

    def _insert(self, batch: List[Any]) -> Optional[str]:
        feed = self._feed
        sets = [] if self._snapshot is None else [self._snapshot]
        # What comes while a snapshot waits is news for the set in use too.
        if self._snapshot is None or self._is_whole:
            sets.append(feed.revocations.set)
        if any(len(revoked) > feed.max_entries for revoked in sets):
            return "too_many_entries"
        if self._snapshot is None:
            feed.revocations.note_news(feed.time)
        now = feed.time.elapsed()
        # Most entries of a batch are kept until the same second, and share the number.
        seconds: Dict[int, int] = {}
        for one in batch:
            revocation = _object(one)
            target = _target(revocation)
            # Ignoring it would accept revoked tokens.
            if target is None:
                return "unknown_revocation"
            if type(target) is Withheld:
                feed.on_withheld(str(revocation["withheld"].get("kind")))
            retain = max(0, _integer(revocation.get("retain_seconds")))
            if retain not in seconds:
                seconds[retain] = second_after(now, retain)
            for revoked in sets:
                revoked.insert(target, seconds[retain])
        return "too_many_entries" if any(len(revoked) > feed.max_entries for revoked in sets) else None


def _target(revocation: Dict[str, Any]) -> Optional[Target]:
    """What a revocation revokes; None if this version does not know its kind."""
    session = revocation.get("session_id")
    if session is not None:
        return Session(session) if is_uuid(_text(session)) else None
    if revocation.get("user_cut_off") is not None:
        cut_off = _object(revocation["user_cut_off"])
        user, spared = _text(cut_off.get("user_id")), cut_off.get("spared_session_id")
        is_good = is_user(user) and (spared is None or is_uuid(_text(spared)))
        return User(user, _integer(cut_off.get("epoch")), spared) if is_good else None
    if revocation.get("project_cut_off") is not None:
        return Project(_integer(_object(revocation["project_cut_off"]).get("epoch")))
    kid = revocation.get("signing_key_id")
    if kid is not None:
        return Key(kid) if is_uuid(_text(kid)) else None
    if revocation.get("superseded") is not None:
        superseded = _object(revocation["superseded"])
        session = _text(superseded.get("session_id"))
        return Superseded(session, _integer(superseded.get("session_epoch"))) if is_uuid(session) else None
    if revocation.get("withheld") is not None:
        withheld = _object(revocation["withheld"])
        for name, prefix, is_good in _SCOPES:
            concerned = withheld.get(name)
            if concerned is not None:
                return Withheld(prefix + concerned) if is_good(_text(concerned)) else None
        return Withheld("")
    return None


_SCOPES: Tuple[Tuple[str, str, Callable[[str], bool]], ...] = (
    ("session_id", "s", is_uuid),
    ("user_id", "u", is_user),
    ("signing_key_id", "k", is_uuid),
)


class Malformed(ValueError):
    """A message is not one of the feed's."""


def _object(value: object) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed
    return value


def _no_constant(name: str) -> None:
    """JSON has neither NaN nor Infinity."""
    raise Malformed


# ProtoJSON: a member that is null is absent.


def _list(value: object) -> List[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed
    return value


def _integer(value: object) -> int:
    """An integer of 64 bits, as a number or as text (ProtoJSON). An absent one is 0."""
    if value is None:
        return 0
    if isinstance(value, str):
        # `int` alone takes spaces and underscores too.
        if not value.lstrip("-").isdigit() or not value.isascii():
            raise Malformed
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise Malformed
    return value
