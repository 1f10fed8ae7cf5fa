"""Measures the processor time of the database for each call: on a Citus cluster, and beside it on one Postgres.

The cluster is there already (see `nodes`). The one Postgres is a database on the coordinator that is not divided. A database is
created on each node, and dropped at the end. Other programs may run meanwhile; other databases of the nodes must be idle.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path

# First: it makes the modules of deploy/ha known.
from nodes import Database, add_nodes_to

from cluster import discard, home_directory, stop_on_signals

TICKS = os.sysconf("SC_CLK_TCK")
# How long to look at an idle database, in seconds.
IDLE = 10
# Name, clients, and calls for each client.
CALLS = [
    ("sign-in of a new user", "new", 16, 60),
    ("sign-in of a known user", "known", 16, 60),
    ("refresh", "refresh", 16, 60),
    ("list of a user's sessions", "list", 16, 30),
    ("sign-out, 1 client", "sign-out", 1, 300),
    ("sign-out, 16 clients", "sign-out", 16, 60),
    ("sign-out, 64 clients", "sign-out", 64, 40),
    ("sign-out of all sessions of a user", "all", 16, 30),
]


def used(process):
    """The processor time of a process and of its children that have ended, in seconds; the second apart."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0, 0.0
    return sum(map(int, fields[11:13])) / TICKS, sum(map(int, fields[13:15])) / TICKS


def used_by(node):
    """The processor time of a Postgres server so far, in seconds."""
    postmaster, *children = node.processes()
    return sum(used(postmaster)) + sum(used(child)[0] for child in children)


class Measured:
    """One database under load."""

    def __init__(self, database):
        self.database, self.replica = database, database.replicas[0]
        self.idle, self.sessions = [0.0] * len(database.nodes), []
        begun, before = time.monotonic(), self.now()
        time.sleep(IDLE)
        self.idle = [used / (time.monotonic() - begun) for used in self.since(before)]

    def now(self):
        return [used_by(node) for node in self.database.nodes]

    def since(self, before):
        return [after - then for then, after in zip(before, self.now())]

    def call(self, connection, kind, number):
        """Returns the session that the call has opened, if any."""
        own = {"authorization": f"Bearer {self.database.key}"}
        user = f"user-{number}"
        if kind in ("new", "known"):
            request = ("POST", "/auth/sessions", {"user_id": user}, own)
        elif kind == "all":
            request = ("POST", "/auth/sessions:revokeAll", {"user_id": user}, own)
        else:
            session = self.sessions[number]
            holder = {"authorization": f"Bearer {session['access_token']}"}
            if kind == "refresh":
                request = ("POST", "/auth/sessions/current/refresh", {}, {"x-refresh-token": session["refresh_token"]})
            elif kind == "list":
                request = ("GET", "/auth/sessions?user_id=me", None, holder)
            else:
                request = ("DELETE", "/auth/sessions/current", None, holder)
        method, path, body, headers = request
        body = json.dumps(body) if body is not None else None
        connection.request(method, path, body, headers | {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"cpu.py: {method} {path} was answered with {answer.status} {text[:200]}")
        return json.loads(text) if kind in ("new", "known") else None

    def load(self, kind, clients, calls):
        """The processor time of each node for a call, in milliseconds, without that of the idle database."""
        lock, opened = threading.Lock(), []

        def client(at):
            connection = http.client.HTTPConnection("127.0.0.1", self.replica.port, timeout=20)
            for number in range(at * calls, (at + 1) * calls):
                session = self.call(connection, kind, number)
                if session:
                    with lock:
                        opened.append((number, session))

        before, begun = self.now(), time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))
        took = time.monotonic() - begun
        if opened:
            self.sessions = [session for _, session in sorted(opened, key=lambda one: one[0])]
        spent = self.since(before)
        return [max(0.0, one - idle * took) / (clients * calls) * 1e3 for one, idle in zip(spent, self.idle)]

    def measure(self):
        results = {}
        for name, kind, clients, calls in CALLS:
            if kind == "sign-out":
                self.load("new", clients, calls)
            results[name] = self.load(kind, clients, calls)
            print(f"  {name}: {', '.join(f'{one:.2f}' for one in results[name])} ms", file=sys.stderr, flush=True)
        return results


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sessiond", required=True, help="the binary to run")
    add_nodes_to(arguments)
    arguments = arguments.parse_args()
    stop_on_signals()
    home, results = home_directory(), []
    with open(home / "log", "w+", encoding="utf-8") as log:
        for name, nodes in (("sessiond_cpu_one", arguments.nodes[:1]), ("sessiond_cpu_divided", arguments.nodes)):
            database = Database(name, nodes, str(Path(arguments.sessiond).resolve()), log, arguments.ask, replica_count=1, slots=arguments.slots)
            try:
                database.start()
                measured = Measured(database)
                print(f"{name}: idle {', '.join(f'{one:.3f}' for one in measured.idle)} cores", file=sys.stderr, flush=True)
                results.append((measured.idle, measured.measure()))
            finally:
                database.stop()
    (idle_one, one), (idle_divided, divided) = results
    workers = " | ".join(f"worker {at}" for at in range(1, len(arguments.nodes)))
    print(f"| call | one Postgres | Citus | ratio | coordinator | {workers} |")
    print("|" + "---|" * (len(arguments.nodes) + 4))
    for name in one:
        alone, nodes = one[name][0], divided[name]
        parts = " | ".join(f"{node:.2f}" for node in nodes)
        print(f"| {name} | {alone:.2f} ms | {sum(nodes):.2f} ms | {sum(nodes) / alone:.1f} | {parts} |")
    idle = " | ".join(f"{node:.3f}" for node in idle_divided)
    print(f"| idle, in cores | {idle_one[0]:.3f} | {sum(idle_divided):.3f} | | {idle} |")
    discard(home, with_log=True)


if __name__ == "__main__":
    main()
