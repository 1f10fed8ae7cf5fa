"""Injects faults into a highly available sessiond under load, and checks every acknowledged sign-out.

After each fault: the sign-outs that were acknowledged and lost, by the database and by the API; those that a reader of the feed
or a service behind the guard missed, though both followed throughout; and how long no write was acknowledged.
"""

import argparse
import concurrent.futures
import json
import signal
import sys
import threading
import time
from pathlib import Path

from cluster import ISSUER, PROJECT, Cluster, Process, discard, free_port, home_directory, libfaketime, stop_on_signals
from followers import GuardedService, Ledger, Watcher

# How long writes may be refused, in seconds.
KILL_MAX, SWITCHOVER_MAX, UNAFFECTED_MAX = 25, 5, 5
# Longer than `--staleness-max`.
PAUSE = 8
CLIENTS = 8
# Answers, lost, missed twice, and the pause.
CHECKS = 5
COLUMNS = {
    "fault": "fault",
    "acknowledged": "acknowledged",
    "refused": "refused (503)",
    "lost": "lost",
    "missed_by_watch": "missed by a reader of the feed",
    "missed_by_guard": "missed by a guard",
    "pause_s": "longest time without a write",
    "pause_max_s": "allowed",
}


# How many missed sign-outs are described.
SHOWN_MAX = 5


def say(text):
    print(text, file=sys.stderr, flush=True)


class Run:
    def __init__(self, cluster, guard_port, slowness):
        self.cluster, self.slowness = cluster, slowness
        self.ledger, self.rows, self.failures = Ledger(), [], []
        self.watcher = Watcher(cluster.replicas, cluster.key, self.ledger)
        self.guard = GuardedService(guard_port, self.ledger)
        self.watcher.start()
        self.guard.start()

    def sign_in(self, replica, user="ada"):
        status, body = replica.call("POST", "/auth/sessions", self.cluster.key, {"user_id": user})
        return {"id": body["session"]["id"], **body} if status == 200 else None

    def sign_out(self, replica, session, timeout=5):
        status, _ = replica.call("DELETE", "/auth/sessions/current", session["access_token"], timeout=timeout)
        if status == 200:
            self.ledger.add(replica, session)
        return status

    def writes_back(self, replicas):
        """Waits until each replica accepts writes."""
        for replica in replicas:

            def writes():
                session = self.sign_in(replica)
                return session and self.sign_out(replica, session) == 200

            self.cluster.wait(f"{replica.name} accepts no writes", writes)

    def work(self, stop):
        """Signs in and out until told to stop; retries a sign-out until it is acknowledged, as a client would."""

        def client(at):
            replica, statuses = self.cluster.replicas[at % len(self.cluster.replicas)], []
            while not stop.is_set():
                session = self.sign_in(replica, f"user-{at}-{len(statuses) % 50}")
                while session and not stop.is_set():
                    statuses.append(self.sign_out(replica, session))
                    if statuses[-1] == 200:
                        break
                    time.sleep(0.1)
                if not session:
                    time.sleep(0.1)
            return statuses

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            return [status for statuses in pool.map(client, range(CLIENTS)) for status in statuses]

    def pause_of(self, replica, since, until):
        """The longest time in which this replica acknowledged no sign-out."""
        times = [when for when, by, _ in self.ledger.entries if by is replica and since <= when <= until]
        times = [since, *times, until]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def expect(self, holds, what):
        if not holds:
            self.failures.append(what)
            say(f"  FAILED: {what}")

    def lost(self, since):
        """How many acknowledged sign-outs, since the start, the database or the API does not know."""
        ids = [session["id"] for _, _, session in self.ledger.entries]
        query = "SELECT id::text FROM sessions WHERE id = ANY(%s::uuid[]) AND revoked_at IS NOT NULL"
        kept = {row[0] for row in self.cluster.primary().query(query, ids)}
        lost = set(ids) - kept
        for _, _, session in self.ledger.entries[since:][-50:]:
            for replica in self.cluster.replicas:
                token = session["refresh_token"]
                path = "/auth/sessions/current/refresh"
                status, _ = replica.call("POST", path, token, {}, header="x-refresh-token")
                if status == 200 or replica.verify(session) == 200:
                    lost.add(session["id"])
        return len(lost)

    def inject(self, fault, strike, pause_max, mend=None, spared=None, after=1):
        """Injects a fault while clients sign in and out, waits until writes succeed again, and checks every sign-out.

        `spared` are the replicas that the pause is measured for: all, unless the fault hits one of them. `after` is how long
        the load goes on after that.
        """
        say(f"{fault} …")
        spared = spared or self.cluster.replicas
        since, stop, extra = len(self.ledger), threading.Event(), 0
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            load = pool.submit(self.work, stop)
            time.sleep(2)
            begun = time.monotonic()
            try:
                extra = strike() or 0
                self.writes_back(spared)
                time.sleep(after)
            finally:
                stop.set()
            ended = time.monotonic()
            statuses = load.result()
        if mend:
            mend()
        self.cluster.settle()
        self.writes_back(self.cluster.replicas)
        other = sorted(set(statuses) - {200, 503, 0})
        # 0: no answer within the client's five seconds.
        self.expect(not other, f"{fault}: sign-outs were answered with {other}")
        missed = self.guard.missed(since)
        for session, why in list(missed.items())[:SHOWN_MAX]:
            say(f"  missed by the guard: {session}, {why}")
        row = {
            "fault": fault,
            "acknowledged": len(self.ledger) - since,
            "refused": sum(status == 503 for status in statuses),
            "lost": self.lost(since) + extra,
            "missed_by_watch": len(self.watcher.missed(since)),
            "missed_by_guard": len(missed),
            "pause_s": round(max(self.pause_of(replica, begun, ended) for replica in spared), 1),
            "pause_max_s": pause_max,
        }
        self.rows.append(row)
        for column in ("lost", "missed_by_watch", "missed_by_guard"):
            self.expect(row[column] == 0, f"{fault}: {row[column]} {COLUMNS[column]}")
        limit = pause_max * self.slowness
        self.expect(row["pause_s"] <= limit, f"{fault}: no write for {row['pause_s']} s, at most {limit} s are allowed")
        say("  " + ", ".join(f"{COLUMNS[name]} {value}" for name, value in row.items() if name != "fault"))

    # The faults.

    def primary_killed(self):
        self.inject("primary killed (Postgres and Patroni, as a power failure)", self.cluster.primary().kill, KILL_MAX)

    def postgres_killed(self):
        primary = self.cluster.primary()
        self.inject("Postgres killed on the primary", lambda: primary.signal_postgres(signal.SIGKILL), KILL_MAX)

    def switchover(self):
        self.inject("switchover", self.cluster.primary().switch_over, SWITCHOVER_MAX)

    def primary_paused(self):
        """The primary that the URL names first is frozen, replaced, and wakes up."""
        first = self.cluster.nodes[0]
        if not first.is_primary():
            self.cluster.primary().switch_over(to=first)
            self.cluster.settle()

        def pause():
            first.pause()
            self.cluster.primary(other_than=first)

        self.inject("primary paused, named first in the URL", pause, KILL_MAX, mend=first.resume)

    def clocks_apart(self):
        """Switches over to a node whose clock is a minute ahead, and from there to one whose clock is a minute behind it."""
        if not libfaketime():
            say("clocks a minute apart: not run, libfaketime is not installed (Debian: libfaketime)")
            return
        old = self.cluster.primary()
        standby = next(node for node in self.cluster.nodes if node is not old)
        standby.kill()
        standby.set_clock(60)
        self.cluster.settle()
        self.inject("switchover to a node whose clock is a minute ahead", lambda: old.switch_over(to=standby), SWITCHOVER_MAX)
        self.inject("switchover back to the right time", lambda: standby.switch_over(to=old), SWITCHOVER_MAX)
        standby.kill()
        standby.set_clock(0)
        self.cluster.settle()

    def standby_killed(self):
        standby = next(node for node in self.cluster.nodes if not node.is_primary())
        self.inject("standby killed", standby.kill, UNAFFECTED_MAX, after=5)

    def etcd_killed(self):
        leader = self.cluster.wait(
            "etcd has no leader", lambda: next((etcd for etcd in self.cluster.etcds if etcd.is_leader()), None)
        )
        # Longer than a lease: a primary that cannot renew it would step down.
        self.inject("leader of etcd killed", leader.process.kill, UNAFFECTED_MAX, after=25)

    def promoted_twice(self):
        """The new primary is killed as soon as it has acknowledged a write."""

        def twice():
            first = self.cluster.primary()
            first.kill()
            second = self.cluster.primary(other_than=first)
            first.start()
            self.writes_back(self.cluster.replicas)
            say(f"  {second.name} took over from {first.name}, and is killed")
            second.kill()
            # Comes back soon: with one of three, no commit has a standby.
            time.sleep(2)
            second.start()

        self.inject("standby promoted twice (two failovers in a row)", twice, KILL_MAX)

    def deposed(self):
        """Patroni dies on the primary and its Postgres stays up: no replica may keep answering from it."""
        old = self.cluster.primary()

        def depose():
            sessions = [self.sign_in(self.cluster.replicas[0]) for _ in range(5)]
            old.patroni.kill()
            self.cluster.primary(other_than=old)
            self.writes_back(self.cluster.replicas)
            for session in filter(None, sessions):
                self.cluster.wait("a sign-out is refused", lambda: self.sign_out(self.cluster.replicas[0], session) == 200)
            deadline = time.monotonic() + PAUSE
            pairs = [(replica, session) for replica in self.cluster.replicas for session in filter(None, sessions)]
            while (accepted := [pair for pair in pairs if pair[0].verify(pair[1]) == 200]) and time.monotonic() < deadline:
                time.sleep(0.1)
            return len(accepted)

        self.inject("Patroni killed on the primary, its Postgres lives on", depose, KILL_MAX, mend=old.kill)

    def wait_cancelled(self):
        """The standbys stop answering, the waiting backends are cancelled, clients retry; then the primary is lost."""
        old = self.cluster.primary()

        def cancel():
            sessions = [self.sign_in(self.cluster.replicas[0]) for _ in range(10)]
            standbys = [node for node in self.cluster.nodes if node is not old]
            for node in standbys:
                node.signal_postgres(signal.SIGSTOP)
            acknowledged, before = 0, len(self.ledger)
            with concurrent.futures.ThreadPoolExecutor(10) as pool:
                for _ in range(3):
                    tried = [pool.submit(self.sign_out, self.cluster.replicas[0], one, 4) for one in filter(None, sessions)]
                    time.sleep(0.5)
                    old.query("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
                    acknowledged += sum(one.result() == 200 for one in tried)
            say(f"  {acknowledged} of 30 acknowledged without a standby, {len(self.ledger) - before} in all")
            old.kill()
            for node in standbys:
                node.signal_postgres(signal.SIGCONT)
            return acknowledged

        # The standbys are frozen before the primary is killed, so the pause is longer.
        self.inject("wait for the standbys cancelled, then the primary killed", cancel, KILL_MAX + 10)

    def replica_killed(self):
        victim, other = self.cluster.replicas
        self.inject("replica of sessiond killed", victim.process.kill, UNAFFECTED_MAX, spared=[other], after=5)

    def replica_paused(self):
        """A replica is frozen for longer than `--staleness-max`, with commits in flight, and wakes up."""
        victim, other = self.cluster.replicas

        def pause():
            sessions = [self.sign_in(other) for _ in range(20)]
            for session in filter(None, sessions):
                # So that the frozen replica has judged it before.
                victim.verify(session)
            victim.process.signal(signal.SIGSTOP)
            time.sleep(0.5)
            for session in filter(None, sessions):
                self.cluster.wait("a sign-out is refused", lambda: self.sign_out(other, session) == 200)
            time.sleep(PAUSE)
            victim.process.signal(signal.SIGCONT)
            accepted, deadline = set(), time.monotonic() + 3
            while time.monotonic() < deadline:
                accepted |= {one["id"] for one in filter(None, sessions) if victim.verify(one) == 200}
            return len(accepted)

        self.inject(f"replica of sessiond paused for {PAUSE} s", pause, UNAFFECTED_MAX, spared=[other])

    def table(self):
        widths = [max(len(title), *(len(str(row[name])) for row in self.rows)) for name, title in COLUMNS.items()]

        def line(cells):
            return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths)) + " |"

        rows = [{**row, "pause_s": f"{row['pause_s']} s", "pause_max_s": f"{row['pause_max_s']} s"} for row in self.rows]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([line(COLUMNS.values()), rule, *(line(row[name] for name in COLUMNS) for row in rows)])


# In this order: a fault must not wait for what the one before it left behind.
FAULTS = {
    "kill": Run.primary_killed,
    "switchover": Run.switchover,
    "postgres": Run.postgres_killed,
    "clocks": Run.clocks_apart,
    "pause": Run.primary_paused,
    "standby": Run.standby_killed,
    "etcd": Run.etcd_killed,
    "twice": Run.promoted_twice,
    "deposed": Run.deposed,
    "cancelled": Run.wait_cancelled,
    "replica": Run.replica_killed,
    "replica-pause": Run.replica_paused,
}


def parse(arguments, faults):
    """Parses the command line, with the arguments that every fault run has."""
    arguments.add_argument("faults", nargs="*", metavar="FAULT", help=f"of: {', '.join(faults)} (default: all)")
    arguments.add_argument("--sessiond", required=True, help="the binary to run")
    arguments.add_argument("--guarded", required=True, help="the service behind the guard: the example of sessiond-guard")
    arguments.add_argument("--json", action="store_true", help="print the table as JSON")
    parsed = arguments.parse_args()
    unknown = set(parsed.faults) - set(faults)
    if unknown:
        sys.exit(f"faults.py: unknown: {', '.join(sorted(unknown))}")
    parsed.sessiond, parsed.guarded = (str(Path(path).resolve()) for path in (parsed.sessiond, parsed.guarded))
    return parsed


def carry_out(run_of, cluster, guarded, faults):
    """Starts the cluster and two followers, injects the faults, and stops everything. Returns the run."""
    guard, port = None, free_port()
    try:
        begun = time.monotonic()
        cluster.start()
        say(f"the cluster runs after {time.monotonic() - begun:.0f} s")
        env = {
            "SESSIOND_URL": ",".join(replica.url() for replica in cluster.replicas),
            "SESSIOND_ISSUER": ISSUER,
            "SESSIOND_PROJECT_ID": PROJECT,
            "SESSIOND_VERIFIER_KEY": cluster.key,
            "LISTEN": f"127.0.0.1:{port}",
        }
        guard = Process([guarded], cluster.log, env)
        run = run_of(cluster, port)
        cluster.wait("the guard does not start", lambda: run.guard.ask("none") == 401)
        run.guard.connection = None
        for fault in faults:
            fault(run)
        run.watcher.is_stopped = run.guard.is_stopped = True
        say(f"{len(run.ledger)} sign-outs acknowledged; the reader of the feed opened {run.watcher.streams} streams and read "
            f"{run.watcher.snapshots} snapshots; {time.monotonic() - begun:.0f} s in all")
        return run
    finally:
        cluster.stop()
        if guard:
            guard.kill_group()


def conclude(run, as_json, home):
    """Prints the table, and keeps the log if anything failed."""
    print(json.dumps(run.rows, indent=2) if as_json else run.table(), flush=True)
    say(f"{len(run.rows) * CHECKS - len(run.failures)} passed, {len(run.failures)} failed")
    if run.failures:
        sys.exit(f"faults.py: the log is {run.cluster.log.name}")
    discard(home, with_log=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--short", action="store_true", help="only kill and switchover; the pauses may be twice as long")
    arguments = parse(arguments, FAULTS)
    faults = arguments.faults or (["kill", "switchover"] if arguments.short else list(FAULTS))
    stop_on_signals()
    home = home_directory()
    with open(home / "log", "w+", encoding="utf-8") as log:
        try:
            cluster, slowness = Cluster(arguments.sessiond, home, log), 2 if arguments.short else 1
            run = carry_out(lambda *of: Run(*of, slowness), cluster, arguments.guarded, [FAULTS[fault] for fault in faults])
        finally:
            discard(home, with_log=False)
    conclude(run, arguments.json, home)


if __name__ == "__main__":
    main()
