"""Two followers that every revocation must reach: a reader of the feed, and a service behind the guard.

Both are held to what they are promised. A heartbeat of the feed says that everything revoked before a moment has been sent.
A guard accepts no token for longer than its `max_staleness` after the sign-out was acknowledged.
"""

import collections
import http.client
import json
import threading
import time

# How much later than promised a revocation may arrive before it counts as missed, in seconds: the follower itself may be
# delayed on a busy machine.
LEEWAY = 1.0
# The guard's `max_staleness`, in seconds.
STALENESS_MAX = 10.0
# A stream is silent for at most a second.
SILENCE_MAX = 3.0


class Ledger:
    """The acknowledged sign-outs: when, by which replica, and of which session."""

    def __init__(self):
        self.entries, self.lock = [], threading.Lock()

    def add(self, replica, session):
        with self.lock:
            self.entries.append((time.monotonic(), replica, session))

    def __len__(self):
        return len(self.entries)


class Watcher(threading.Thread):
    """Follows `WatchRevocations` over REST, resumes with its cursor, and moves to the other replica if one falls silent."""

    def __init__(self, replicas, key, ledger):
        super().__init__(daemon=True)
        self.replicas, self.key, self.ledger = replicas, key, ledger
        self.seen, self.cursor, self.checked = set(), "", 0
        self.late, self.streams, self.snapshots, self.is_stopped = {}, 0, 0, False

    def run(self):
        at = 0
        while not self.is_stopped:
            try:
                self.follow(self.replicas[at % len(self.replicas)])
            except (OSError, ValueError, http.client.HTTPException):
                pass
            at += 1
            time.sleep(0.1)

    def follow(self, replica):
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=SILENCE_MAX)
        try:
            path = "/auth/revocations:watch" + (f"?cursor={self.cursor}" if self.cursor else "")
            headers = {"authorization": f"Bearer {self.key}", "accept": "application/x-ndjson"}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                return
            self.streams += 1
            snapshot = None
            while not self.is_stopped:
                line = answer.readline()
                arrived = time.monotonic()
                if not line:
                    return
                message = json.loads(line)
                if "error" in message:
                    return
                if "snapshot_begin" in message:
                    snapshot, self.snapshots = set(), self.snapshots + 1
                for one in message.get("revocations", {}).get("revocations", ()):
                    (self.seen if snapshot is None else snapshot).add(one.get("session_id"))
                if "snapshot_complete" in message and snapshot is not None:
                    self.seen, snapshot = snapshot, None
                self.cursor = message.get("cursor", self.cursor)
                if "heartbeat" in message and snapshot is None:
                    age = message["heartbeat"].get("age_ms", 0) / 1000
                    self.check(arrived - age)
                    if age > STALENESS_MAX / 2:
                        return
        finally:
            connection.close()

    def check(self, complete_until):
        """Everything that was acknowledged before this moment must have arrived."""
        entries = self.ledger.entries
        while self.checked < len(entries) and entries[self.checked][0] < complete_until - LEEWAY:
            acknowledged, _, session = entries[self.checked]
            if session["id"] not in self.seen:
                self.late[session["id"]] = complete_until - acknowledged
            self.checked += 1

    def missed(self, since, patience=15):
        """The sign-outs since this entry that were late, or have not arrived after a wait."""
        entries = self.ledger.entries[since:]
        deadline = time.monotonic() + patience
        while True:
            missing = {session["id"] for _, _, session in entries} - self.seen
            if not missing or time.monotonic() > deadline:
                return missing | (self.late.keys() & {session["id"] for _, _, session in entries})
            time.sleep(0.1)


class GuardedService(threading.Thread):
    """Presents the access token of each acknowledged sign-out to a service behind the guard, until it is refused."""

    def __init__(self, port, ledger):
        super().__init__(daemon=True)
        self.port, self.ledger = port, ledger
        self.connection, self.late, self.refused, self.is_stopped = None, {}, set(), False
        # The last answer to each token; 0 is none.
        self.answers = {}

    def ask(self, token):
        """The status of the service's answer; 0 without one."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            self.connection.request("GET", "/", headers={"authorization": f"Bearer {token}"})
            answer = self.connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            self.connection = None
            return 0

    def run(self):
        read, pending = 0, collections.deque()
        while not self.is_stopped:
            entries = self.ledger.entries
            pending.extend((0.0, entry) for entry in entries[read:])
            read = max(read, len(entries))
            for _ in range(len(pending)):
                due, entry = pending.popleft()
                if due > time.monotonic():
                    pending.append((due, entry))
                    continue
                acknowledged, _, session = entry
                asked = time.monotonic()
                status = self.answers[session["id"]] = self.ask(session["access_token"])
                if status == 200 and asked > acknowledged + STALENESS_MAX + LEEWAY:
                    self.late[session["id"]] = asked - acknowledged
                if status in (401, 403):
                    self.refused.add(session["id"])
                else:
                    pending.append((time.monotonic() + 0.2, entry))
            time.sleep(0.05)

    def missed(self, since, patience=20):
        """The sessions since this entry whose tokens were accepted for too long, or are still not refused after a wait, and why."""
        deadline = time.monotonic() + patience
        ids = {session["id"] for _, _, session in self.ledger.entries[since:]}
        while ids - self.refused and time.monotonic() < deadline:
            time.sleep(0.1)
        pending = {one: f"not refused: the last answer is {self.answers.get(one)}" for one in ids - self.refused}
        late = {one: f"accepted {self.late[one]:.1f} s after its end" for one in ids & self.late.keys()}
        return {**pending, **late}
