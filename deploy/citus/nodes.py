"""A Citus cluster that is there already, and sessiond on it.

Its nodes are named by address and data directory, which must be on this machine, the coordinator first.
"""

import base64
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ha"))
import psycopg
from cluster import PROJECT, RECOVERY_MAX, Replica, libfaketime

# A project that is cut off as a whole.
OTHER = "other"


def add_nodes_to(arguments):
    """Adds the argument that names the nodes."""
    arguments.add_argument(
        "--node",
        dest="nodes",
        type=Node,
        action="append",
        required=True,
        metavar="HOST:PORT=DATA_DIRECTORY",
        help="a node of the cluster, the coordinator first; the user postgres needs no password",
    )
    arguments.add_argument(
        "--ask",
        choices=["all", "coordinator", "workers"],
        default="all",
        help="the nodes that the replicas of sessiond ask, one each in turn (default: %(default)s)",
    )
    arguments.add_argument("--slots", type=int, metavar="COUNT", help="into how many slots the database is divided")


class Node:
    """A Postgres server of the cluster."""

    def __init__(self, text):
        address, _, data = text.partition("=")
        self.host, _, port = address.rpartition(":")
        self.port, self.data, self.ahead = int(port), Path(data), 0
        if not (self.data / "PG_VERSION").is_file():
            raise SystemExit(f"deploy/citus: {data} is not a data directory of Postgres")

    def query(self, sql, *parameters, database):
        url = f"postgresql://postgres@{self.host}:{self.port}/{database}?connect_timeout=5"
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def processes(self):
        """The postmaster and its children."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
            if "postgres" not in Path(f"/proc/{postmaster}/comm").read_text():
                return []
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        except (OSError, ValueError, IndexError):
            return []
        return [postmaster, *map(int, children)]

    def kill(self):
        """Kills every process at once, as a power failure does."""
        processes = self.processes()
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while any(Path(f"/proc/{process}").exists() for process in processes):
            time.sleep(0.05)

    def start(self):
        """Starts it, with its clock `ahead` by this many seconds."""
        # Postgres writes there how it was started: other versions may be installed beside it.
        program = (self.data / "postmaster.opts").read_text().split()[0]
        command = [str(Path(program).with_name("pg_ctl")), "-D", str(self.data), "-l", f"{self.data}.log", "-w", "-t", "120", "start"]
        owner = self.data.stat()
        # The coordinator looks there for its certificate for the workers, and fails if it may not.
        env = {**os.environ, "HOME": pwd.getpwuid(owner.st_uid).pw_dir}
        if self.ahead:
            env |= {"LD_PRELOAD": libfaketime(), "FAKETIME": f"{self.ahead:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", check=True, **user)

    def is_running(self):
        return bool(self.processes())


class Database:
    """A database on every node, with replicas of sessiond. Without workers it is one on the coordinator, not divided."""

    def __init__(self, name, nodes, sessiond, log, ask, replica_count, slots=None):
        self.name, self.nodes, self.sessiond, self.log = name, nodes, sessiond, log
        self.asked = {"all": nodes, "coordinator": nodes[:1], "workers": nodes[1:] or nodes}[ask]
        self.coordinator, self.workers, self.replica_count = nodes[0], nodes[1:], replica_count
        self.division = ["--distribute", *(["--slots", str(slots)] if slots else [])] if self.workers else []
        self.replicas, self.key, self.admin_key, self.other_key = [], None, None, None

    def url(self, node):
        return f"postgres://postgres@{node.host}:{node.port}/{self.name}?sslmode=disable"

    def start(self):
        for node in self.nodes:
            node.query(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)", database="postgres")
            node.query(f"CREATE DATABASE {self.name}", database="postgres")
            if self.workers:
                self.query("CREATE EXTENSION citus", at=node)
        if self.workers:
            self.query("SELECT citus_set_coordinator_host(%s, %s)", self.coordinator.host, self.coordinator.port)
        for worker in self.workers:
            self.query("SELECT citus_add_node(%s, %s)", worker.host, worker.port)
        env = {
            "SESSIOND_SEALING_KEY": base64.b64encode(os.urandom(32)).decode(),
            "DATABASE_URL": self.url(self.coordinator),
            # A reading of the feed asks every node, over new connections after a fault.
            "SESSIOND_DATABASE_TIMEOUT": "5s",
        }

        def command(*words):
            # The first to ask the new tables: every node reads its catalogs.
            full = {**os.environ, **env, "SESSIOND_DATABASE_TIMEOUT": "30s"}
            return subprocess.run([self.sessiond, *words], env=full, stdout=subprocess.PIPE, stderr=self.log, text=True, check=True).stdout

        def server_key(project, *words):
            printed = command("server-key", "create", "--project", project, *words)
            return next(word for word in printed.split() if word.startswith("sdsk_"))

        command("migrate", *self.division)
        for project in (PROJECT, OTHER):
            command("project", "create", project)
        self.key, self.other_key = server_key(PROJECT), server_key(OTHER)
        self.admin_key = server_key(OTHER, "--role", "admin")
        # They ring for each other at the coordinator.
        env["SESSIOND_DATABASE_LISTEN_URL"] = env["DATABASE_URL"]
        for at in range(self.replica_count):
            own = {**env, "DATABASE_URL": self.url(self.asked[at % len(self.asked)])}
            self.replicas.append(Replica(f"replica {at + 1}", self.sessiond, own, self.log))
        self.wait("sessiond is not ready", self.is_ready)

    def is_ready(self):
        for replica in self.replicas:
            if not replica.process.is_running():
                raise SystemExit(f"deploy/citus: {replica.name} of sessiond has stopped; the log is {self.log.name}")
        return all(replica.is_ready() for replica in self.replicas)

    def stop(self):
        for replica in self.replicas:
            replica.process.kill_group()
        for node in self.nodes:
            if node.ahead:
                node.kill()
                node.ahead = 0
            if not node.is_running():
                node.start()
        for node in self.nodes:
            try:
                node.query(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)", database="postgres")
            except psycopg.Error as error:
                print(f"deploy/citus: {self.name} is left on port {node.port}: {error}", file=sys.stderr)

    def wait(self, failure, holds, pause=0.2, patience=RECOVERY_MAX):
        deadline = time.monotonic() + patience
        while not (outcome := holds()):
            if time.monotonic() > deadline:
                raise SystemExit(f"deploy/citus: {failure}; the log is {self.log.name}")
            time.sleep(pause)
        return outcome

    def query(self, sql, *parameters, at=None):
        return (at or self.coordinator).query(sql, *parameters, database=self.name)

    def primary(self):
        return self

    def prepared(self):
        """How many prepared transactions there are on the workers."""
        left = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
        return sum(self.query(left, at=node)[0][0] for node in self.workers)

    def settle(self):
        """Waits until the replicas are ready, and the engine has ended every transaction that was left prepared."""
        begun = time.monotonic()
        for replica in self.replicas:
            if not replica.process.is_running():
                replica.start()
        self.wait("sessiond is not ready", self.is_ready, pause=0.5)
        self.wait("transactions stay prepared", lambda: self.prepared() == 0, pause=0.5, patience=2 * RECOVERY_MAX)
        if time.monotonic() - begun > 5:
            print(f"  ready, and nothing left prepared, after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
