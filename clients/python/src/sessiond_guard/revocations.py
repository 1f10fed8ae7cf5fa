"""The revocations received so far, and how recent they are."""

from __future__ import annotations

import math
from typing import Dict, NamedTuple, Optional, Tuple, Union

from .clock import Time
from .token import Principal


class Session(NamedTuple):
    """A session is revoked."""

    session: str


class User(NamedTuple):
    """All sessions of a user that were opened under a smaller epoch are revoked, but for one."""

    user: str
    epoch: int
    spared: Optional[str]


class Project(NamedTuple):
    """All sessions of the project that were opened under a smaller epoch are revoked."""

    epoch: int


class Key(NamedTuple):
    """All tokens under this signing key are revoked."""

    kid: str


class Superseded(NamedTuple):
    """The tokens that were issued before a session changed are superseded."""

    session: str
    epoch: int


class Withheld(NamedTuple):
    """Something that this version does not understand concerns this session, user or key, or the whole project."""

    #: `s`, `u` or `k` and the id; empty for the project.
    scope: str


Target = Union[Session, User, Project, Key, Superseded, Withheld]


class RevokedSet:
    """A set of revocations. Each is kept until a second on the monotonic clock. A session takes about 90 bytes.

    One thread changes it, others may read meanwhile."""

    def __init__(self) -> None:
        # By the number of the UUID: a third of the size of its text.
        self._sessions: Dict[int, int] = {}
        # The greatest epoch, the session that it spares, the greatest epoch that does not spare it, and the second.
        self._users: Dict[str, Tuple[int, Optional[str], float, int]] = {}
        self._keys: Dict[str, int] = {}
        # The epoch and the second.
        self._superseded: Dict[str, Tuple[int, int]] = {}
        self._withheld: Dict[str, int] = {}
        self._project: Optional[Tuple[int, int]] = None

    def insert(self, target: Target, second: int) -> None:
        """`second` is that of `second_after`, so that entries share it."""
        if type(target) is Session:
            number = _number(target.session)
            if second > self._sessions.get(number, 0):
                self._sessions[number] = second
        elif type(target) is User:
            cut_off = (target.epoch, target.spared, -math.inf, second)
            known = self._users.get(target.user)
            self._users[target.user] = _merged(known, cut_off) if known else cut_off
        elif type(target) is Project:
            self._project = _later(self._project, target.epoch, second)
        elif type(target) is Key:
            self._keys[target.kid] = max(second, self._keys.get(target.kid, 0))
        elif type(target) is Superseded:
            self._superseded[target.session] = _later(self._superseded.get(target.session), target.epoch, second)
        else:
            self._withheld[target.scope] = max(second, self._withheld.get(target.scope, 0))

    def has(self, principal: Principal) -> bool:
        """Whether a token is revoked."""
        if principal.kid in self._keys or (self._sessions and _number(principal.session_id) in self._sessions):
            return True
        project_epoch, user_epoch = principal.claims["epoch"]
        # Read once, because another thread may forget it.
        project = self._project
        if project is not None and project_epoch < project[0]:
            return True
        cut_off = self._users.get(principal.user_id) if self._users else None
        if cut_off is None:
            return False
        epoch, spared, epoch_for_spared, _ = cut_off
        return user_epoch < (epoch_for_spared if spared == principal.session_id else epoch)

    def has_superseded(self, principal: Principal) -> bool:
        """Whether a token was issued before its session changed."""
        known = self._superseded.get(principal.session_id) if self._superseded else None
        return known is not None and principal.claims.get("session_epoch", 0) < known[0]

    def has_withheld(self, principal: Principal) -> bool:
        """Whether something about a token is withheld."""
        if not self._withheld:
            return False
        scopes = ("s" + principal.session_id, "u" + principal.user_id, "k" + principal.kid, "")
        return any(scope in self._withheld for scope in scopes)

    def forget(self, now: float) -> None:
        """Removes entries that every token has outlived."""
        second = int(now // 1_000)
        if any(until <= second for until in self._sessions.values()):
            self._sessions = {number: until for number, until in self._sessions.items() if until > second}
        self._users = {user: cut_off for user, cut_off in self._users.items() if cut_off[3] > second}
        self._keys = {kid: until for kid, until in self._keys.items() if until > second}
        self._superseded = {session: known for session, known in self._superseded.items() if known[1] > second}
        self._withheld = {scope: until for scope, until in self._withheld.items() if until > second}
        if self._project is not None and self._project[1] <= second:
            self._project = None

    def __len__(self) -> int:
        maps = (self._sessions, self._users, self._keys, self._superseded, self._withheld)
        return sum(map(len, maps)) + (self._project is not None)


def second_after(now: float, retain_seconds: int) -> int:
    """The second until which an entry is kept, rounded up. `now` in milliseconds."""
    return math.ceil(now / 1_000) + retain_seconds


def _number(session: str) -> int:
    return int(session.replace("-", ""), 16)


def _later(known: Optional[Tuple[int, int]], epoch: int, second: int) -> Tuple[int, int]:
    return (epoch, second) if known is None else (max(known[0], epoch), max(known[1], second))


_UserCutOff = Tuple[int, Optional[str], float, int]


def _merged(one: _UserCutOff, other: _UserCutOff) -> _UserCutOff:
    """All revocations of a user's sessions, merged: only the one with the greatest epoch can spare a session."""
    greater, smaller = (one, other) if one[0] >= other[0] else (other, one)
    # The epoch of the smaller one for the session that the greater one spares.
    of_spared = smaller[2] if smaller[1] == greater[1] else smaller[0]
    return greater[0], greater[1], max(greater[2], of_spared), max(greater[3], smaller[3])


class Revocations:
    """The revocations that a guard knows, and how recent they are."""

    def __init__(self) -> None:
        self.set = RevokedSet()
        # A snapshot was received completely, so the set has every revocation up to `_current_until`.
        self.is_complete = False
        # The moment up to which the set is current: on the monotonic clock, and as the time of day. The first stops while the
        # machine sleeps, and the second may be set: the older of the two counts.
        self._current_until: Tuple[float, float] = (-math.inf, -math.inf)
        # When the set last learned something, by the monotonic clock.
        self._news_at = -math.inf

    def age(self, time: Time) -> Optional[float]:
        """The age of the set in milliseconds; None before the first complete snapshot."""
        if not self.is_complete:
            return None
        monotonic, time_of_day = self._current_until
        return max(0, time.elapsed() - monotonic, time.now() - time_of_day)

    def set_age(self, time: Time, age: float) -> None:
        """Records that the set is at most this old."""
        self._current_until = (time.elapsed() - age, time.now() - age)

    def age_of_news(self, time: Time) -> Optional[float]:
        """How old a snapshot may be that has all that the set has, in milliseconds: between two heartbeats, the set knows more than
        its age says. None before the first complete snapshot."""
        age = self.age(time)
        return None if age is None else min(age, time.elapsed() - self._news_at)

    def note_news(self, time: Time) -> None:
        """Records that the set has learned something."""
        self._news_at = time.elapsed()

    def replace(self, time: Time, revoked: RevokedSet) -> None:
        """Replaces the set by a complete snapshot."""
        self.set = revoked
        self.note_news(time)
        self.is_complete = True
