"""Injects faults into sessiond on a Citus cluster under load, and checks every acknowledged sign-out.

The cluster is there already (see `nodes`). Its Postgres servers are killed and started again. A database is created on each node,
and dropped at the end.
"""

import argparse
import concurrent.futures
import random
import sys
import time

# First: it makes the modules of deploy/ha known.
from nodes import OTHER, Database, add_nodes_to

import psycopg
from cluster import home_directory, libfaketime, stop_on_signals
from faults import UNAFFECTED_MAX, Run, carry_out, conclude, parse, say

DATABASE = "sessiond_faults"
# How long writes may be refused, in seconds: Postgres must recover, and a prepared transaction be found and ended.
RESTART_MAX, MOVE_MAX, PREPARED_MAX = 40, 20, 90
# Enough that every node almost certainly has some.
USERS = 16
OURS = "application_name LIKE 'citus_internal%' AND datname = current_database() AND pid <> pg_backend_pid()"


class CitusRun(Run):
    def writes_back(self, replicas):
        """Waits until each replica accepts writes on every node."""
        for replica in replicas:
            for user in range(USERS):

                def writes():
                    session = self.sign_in(replica, f"user-{user}")
                    return session and self.sign_out(replica, session) == 200

                self.cluster.wait(f"{replica.name} accepts no writes", writes)

    def restart(self, node):
        node.kill()
        time.sleep(1)
        node.start()

    # The faults.

    def workers_killed(self):
        def strike():
            for worker in self.cluster.workers:
                self.restart(worker)
                self.writes_back(self.cluster.replicas)

        self.inject("each worker killed and started again", strike, RESTART_MAX)

    def killed_in_a_batch(self):
        """Sixty-four sign-outs are sent at once, and a worker is killed while they are carried out."""

        def strike():
            for turn in range(4):
                sessions = [self.sign_in(self.cluster.replicas[turn % 2], f"batch-{at}") for at in range(64)]
                sessions = [session for session in sessions if session]
                with concurrent.futures.ThreadPoolExecutor(64) as pool:
                    tried = [pool.submit(self.sign_out, self.cluster.replicas[turn % 2], one) for one in sessions]
                    time.sleep(0.02 * (turn + 1))
                    self.restart(self.cluster.workers[turn % len(self.cluster.workers)])
                    statuses = [one.result() for one in tried]
                say(f"  {statuses.count(200)} of {len(sessions)} acknowledged")
                # As their clients do.
                for session, status in zip(sessions, statuses):
                    if status != 200:
                        self.cluster.wait("a sign-out is refused", lambda: self.sign_out(self.cluster.replicas[0], session) == 200)

        self.inject("worker killed amid a batch of 64 sign-outs, 4 times", strike, RESTART_MAX)

    def coordinator_killed(self):
        self.inject("coordinator killed and started again", lambda: self.restart(self.cluster.coordinator), RESTART_MAX)

    def shards_moved(self):
        """The shards of a slot move to another worker while its sessions are signed out."""

        def strike():
            for mode in ("block_writes", "force_logical"):
                shards = "SELECT shardid, nodename, nodeport FROM citus_shards WHERE table_name = 'sessions'::regclass"
                shard, host, port = random.choice(self.cluster.query(shards))
                to = next(worker for worker in self.cluster.workers if (worker.host, worker.port) != (host, port))
                move = "SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, %s)"
                begun = time.monotonic()
                self.cluster.query(move, shard, host, port, to.host, to.port, mode)
                say(f"  moved ({mode}) in {time.monotonic() - begun:.1f} s")

        self.inject("a slot moved to the other worker, twice", strike, MOVE_MAX)

    def connections_ended(self):
        def strike():
            for _ in range(8):
                end = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'active' AND {OURS}"
                self.cluster.query(end, at=random.choice(self.cluster.workers))
                time.sleep(0.4)

        self.inject("active connections between the nodes ended, 8 times", strike, UNAFFECTED_MAX)

    def left_prepared(self):
        """Transactions that nobody ends hold sessions, as after a crash of the coordinator between the two phases."""

        def strike():
            replica = self.cluster.replicas[0]
            sessions = [self.sign_in(replica, f"left-{at}") for at in range(8)]
            sessions = {session["id"]: session for session in sessions if session}
            held = 0
            shards = "SELECT shardid, nodeport FROM citus_shards WHERE table_name = 'sessions'::regclass"
            for at, (shard, port) in enumerate(self.cluster.query(shards)):
                worker = next(worker for worker in self.cluster.workers if worker.port == port)
                url = f"postgresql://postgres@{worker.host}:{worker.port}/{DATABASE}"
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("BEGIN")
                    change = f"UPDATE sessions_{shard} SET last_used_at = last_used_at WHERE id = ANY (%s::uuid[])"
                    rows = connection.execute(change, [list(sessions)]).rowcount
                    # By this name the engine knows its own. It finds no record of a commit, and rolls back.
                    connection.execute(f"PREPARE TRANSACTION 'citus_0_4242_{at}_1'" if rows else "ROLLBACK")
                    held += rows
            begun = time.monotonic()
            refused = self.sign_out(replica, next(iter(sessions.values())), 4)
            say(f"  {held} sessions are held; a sign-out of one is answered with {refused or 'nothing in 4 s'}")
            for session in sessions.values():
                self.cluster.wait("a sign-out is refused", lambda: self.sign_out(replica, session, 4) == 200)
            say(f"  all of them are signed out after {time.monotonic() - begun:.0f} s")

        self.inject("transactions left prepared on the workers", strike, PREPARED_MAX)

    def clocks_apart(self):
        """One worker is a minute ahead; then the coordinator is, and the worker is not."""
        if not libfaketime():
            say("clocks a minute apart: not run, libfaketime is not installed (Debian: libfaketime)")
            return

        def set_clock(node, ahead):
            node.ahead = ahead
            self.restart(node)

        worker, coordinator = self.cluster.workers[0], self.cluster.coordinator
        self.inject("a worker restarted with its clock a minute ahead", lambda: set_clock(worker, 60), RESTART_MAX, after=5)
        self.inject("the coordinator's clock a minute ahead, too", lambda: set_clock(coordinator, 60), RESTART_MAX, after=5)
        self.inject("the worker's clock set right", lambda: set_clock(worker, 0), RESTART_MAX, after=5)
        self.inject("the coordinator's clock set right", lambda: set_clock(coordinator, 0), RESTART_MAX, after=5)

    def project_cut_off(self):
        """All sessions of another project end at once, while a worker is killed: a transaction on every node."""

        def strike():
            one, other = self.cluster.replicas
            accepted = 0
            for turn in range(3):
                sessions = []
                for at in range(USERS):
                    _, body = one.call("POST", "/auth/sessions", self.cluster.other_key, {"user_id": f"user-{at}"})
                    if "session" in body:
                        sessions.append(body)
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    restarted = pool.submit(self.restart, self.cluster.workers[turn % len(self.cluster.workers)])
                    time.sleep(0.03 * turn)
                    statuses = []

                    def cut_off():
                        path = "/auth/sessions:revokeProject"
                        statuses.append(one.call("POST", path, self.cluster.admin_key, {}, timeout=15)[0])
                        return statuses[-1] == 200

                    self.cluster.wait("the cut-off is refused", cut_off)
                    # At once where it was acknowledged, for refreshes everywhere.
                    for replica in self.cluster.replicas:
                        for session in sessions:
                            token = session["refresh_token"]
                            path = "/auth/sessions/current/refresh"
                            accepted += replica.call("POST", path, token, {}, header="x-refresh-token")[0] == 200
                    verify = f"/projects/{OTHER}/auth/verify"
                    accepted += sum(one.call("GET", verify, session["access_token"])[0] == 200 for session in sessions)
                    restarted.result()
                deadline = time.monotonic() + 10
                while any(other.call("GET", verify, session["access_token"])[0] == 200 for session in sessions):
                    if time.monotonic() > deadline:
                        accepted += 1
                        break
                    time.sleep(0.1)
                say(f"  the cut-off of {len(sessions)} sessions was refused {len(statuses) - 1} times before it was acknowledged")
                self.writes_back(self.cluster.replicas)
            return accepted

        self.inject("a project cut off while a worker is killed, 3 times", strike, RESTART_MAX)


FAULTS = {
    "worker": CitusRun.workers_killed,
    "batch": CitusRun.killed_in_a_batch,
    "coordinator": CitusRun.coordinator_killed,
    "move": CitusRun.shards_moved,
    "connections": CitusRun.connections_ended,
    "prepared": CitusRun.left_prepared,
    "cut-off": CitusRun.project_cut_off,
    "replica": CitusRun.replica_killed,
    "replica-pause": CitusRun.replica_paused,
    "clocks": CitusRun.clocks_apart,
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_nodes_to(arguments)
    arguments = parse(arguments, FAULTS)
    if len(arguments.nodes) < 3:
        sys.exit("faults.py: name the coordinator and at least two workers")
    stop_on_signals()
    home = home_directory()
    with open(home / "log", "w+", encoding="utf-8") as log:
        cluster = Database(DATABASE, arguments.nodes, arguments.sessiond, log, arguments.ask, replica_count=2, slots=arguments.slots)
        faults = arguments.faults or FAULTS
        run = carry_out(lambda *of: CitusRun(*of, 1), cluster, arguments.guarded, [FAULTS[fault] for fault in faults])
    conclude(run, arguments.json, home)


if __name__ == "__main__":
    main()
