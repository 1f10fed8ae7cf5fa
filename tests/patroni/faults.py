"""Injects faults into a Patroni cluster under a running sessiond, and checks every acknowledged sign-out.

Three Postgres servers under Patroni (`synchronous_mode: quorum`, `synchronous_mode_strict`), one etcd, two replicas of
sessiond that know all three hosts. Everything listens on 127.0.0.1 and stops with this program.
"""

import argparse
import base64
import concurrent.futures
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import yaml

NODES = ("one", "two", "three")
# Patroni accepts no leader lease below 20 s; a lost leader is noticed when the lease expires.
LEASE_SECONDS = 20
# Longer than a lease, an election and a promotion on a slow machine.
RECOVERY_SECONDS_MAX = 90
# How long a replica may answer from stale data after it lost the primary: `--staleness-max`, with leeway for a slow
# machine.
STALENESS_SECONDS_MAX = 5 + 3


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def postgres_bin():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if not initdb:
        sys.exit("faults.py: the Postgres server programs are not installed")
    return str(Path(initdb).parent)


def unprivileged():
    """The user to run Postgres as, because it does not run as root."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Process:
    """A child in its own process group, so that a fault can hit it alone or with its children."""

    def __init__(self, command, log, env=None, **options):
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            **options,
        )

    def signal(self, number):
        if self.child.poll() is None:
            self.child.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.child.wait()

    def kill_group(self):
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()


class Node:
    def __init__(self, name, home, etcd_port, log):
        self.name, self.dir, self.log = name, home / name, log
        self.dir.mkdir()
        self.port, self.rest_port = free_port(), free_port()
        self.config = self.dir / "patroni.yml"
        login = {"username": "postgres"}
        settings = {
            "scope": "sessiond",
            "name": name,
            "etcd3": {"hosts": [f"127.0.0.1:{etcd_port}"]},
            "restapi": {"listen": f"127.0.0.1:{self.rest_port}", "connect_address": f"127.0.0.1:{self.rest_port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": LEASE_SECONDS,
                    "loop_wait": 2,
                    "retry_timeout": 3,
                    "maximum_lag_on_failover": 1048576,
                    "synchronous_mode": "quorum",
                    "synchronous_mode_strict": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 60, "wal_log_hints": "on"}},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "trust"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "bin_dir": postgres_bin(),
                "data_dir": str(self.dir / "data"),
                "pgpass": str(self.dir / "pgpass"),
                "parameters": {"unix_socket_directories": str(self.dir)},
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
                "authentication": {"superuser": login, "replication": login, "rewind": login},
            },
        }
        self.config.write_text(yaml.safe_dump(settings))
        self.patroni = None

    def start(self):
        command = [sys.executable, "-m", "patroni", str(self.config)]
        self.patroni = Process(command, self.log, cwd=self.dir, **unprivileged())

    def status(self):
        """Patroni's status of this node; empty if there is none."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=2)
            connection.request("GET", "/patroni")
            return json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException):
            return {}

    def is_primary(self):
        status = self.status()
        return status.get("role") in ("primary", "master") and status.get("state") == "running"

    def postmaster(self):
        try:
            return int((self.dir / "data" / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def signal_postgres(self, number, backends=False):
        """Signals the postmaster, and on request its children."""
        postmaster = self.postmaster()
        if postmaster is None:
            return
        pids = [postmaster]
        if backends:
            listed = Path(f"/proc/{postmaster}/task/{postmaster}/children")
            pids += [int(pid) for pid in listed.read_text().split()]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill_all(self):
        """Kills Patroni and Postgres at once, as a power failure does."""
        if self.patroni:
            self.patroni.signal(signal.SIGKILL)
        self.signal_postgres(signal.SIGKILL, backends=True)
        if self.patroni:
            self.patroni.kill_group()

    def query(self, sql, *parameters):
        url = f"postgresql://postgres@127.0.0.1:{self.port}/sessions?connect_timeout=3"
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(sql, parameters).fetchall()


class Replica:
    def __init__(self, sessiond, env, log):
        self.port = free_port()
        addresses = ["--listen", f"127.0.0.1:{self.port}", "--metrics-listen", "127.0.0.1:0"]
        self.process = Process([sessiond, "serve", *addresses, "--address-rate", "0"], log, env)

    def call(self, method, path, token, body=None, header="authorization", timeout=5):
        """Returns the status and the JSON of the response; status 0 without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        value = f"Bearer {token}" if header == "authorization" else token
        headers = {header: value, "content-type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.startswith(b"{") else {}
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def verify(self, session):
        return self.call("GET", "/projects/demo/auth/verify", session["access_token"])[0]

    def is_ready(self):
        return self.call("GET", "/readyz", "")[0] == 200


class Run:
    def __init__(self, sessiond, home, log):
        self.sessiond, self.home, self.log = sessiond, home, log
        self.acknowledged, self.lock, self.failures = [], threading.Lock(), []
        etcd_port, peer_port = free_port(), free_port()
        url, peer = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        etcd = ["etcd", "--name", "one", "--data-dir", str(home / "etcd"), "--listen-client-urls", url]
        etcd += ["--advertise-client-urls", url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        etcd += ["--initial-cluster", f"one={peer}"]
        self.etcd = Process(etcd, log, **unprivileged())
        self.nodes = [Node(name, home, etcd_port, log) for name in NODES]
        if os.getuid() == 0:
            for path in [home, *home.rglob("*")]:
                shutil.chown(path, "postgres")
        self.replicas = []

    def stop(self):
        for replica in self.replicas:
            replica.process.kill_group()
        for node in self.nodes:
            node.signal_postgres(signal.SIGCONT, backends=True)
            node.kill_all()
        self.etcd.kill_group()

    def primary(self, other_than=None):
        """Waits for a primary with a synchronous standby, and returns it."""
        deadline = time.monotonic() + RECOVERY_SECONDS_MAX
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node is not other_than and node.is_primary():
                    return node
            time.sleep(0.2)
        raise SystemExit("faults.py: the cluster has no primary; its log: " + self.log.name)

    def settle(self):
        """Waits until every node runs and the primary has both standbys."""
        deadline = time.monotonic() + RECOVERY_SECONDS_MAX
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node.patroni is None or node.patroni.child.poll() is not None:
                    node.start()
            states = [node.status() for node in self.nodes]
            streaming = sum(state.get("replication_state") == "streaming" for state in states)
            if streaming == len(NODES) - 1 and any(node.is_primary() for node in self.nodes):
                return
            time.sleep(0.5)
        raise SystemExit("faults.py: the cluster does not become healthy; its log: " + self.log.name)

    def start(self):
        for node in self.nodes:
            node.start()
        self.settle()
        primary = self.primary()
        with psycopg.connect(f"postgresql://postgres@127.0.0.1:{primary.port}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE sessions")
        hosts = [f"127.0.0.1:{node.port}" for node in self.nodes]
        sealing_key = base64.b64encode(os.urandom(32)).decode()

        def env(first):
            rotated = hosts[first:] + hosts[:first]
            url = f"postgres://postgres@{','.join(rotated)}/sessions"
            return {"DATABASE_URL": url, "SESSIOND_SEALING_KEY": sealing_key}

        for command in (["migrate"], ["project", "create", "demo"]):
            subprocess.run([self.sessiond, *command], env={**os.environ, **env(0)}, stdout=self.log, stderr=self.log, check=True)
        key = [self.sessiond, "server-key", "create", "--project", "demo"]
        key = subprocess.run(key, env={**os.environ, **env(0)}, capture_output=True, text=True, check=True).stdout
        self.key = next(word for word in key.split() if word.startswith("sdsk_"))
        # Each starts with another host.
        self.replicas = [Replica(self.sessiond, env(at), self.log) for at in range(2)]
        self.writes_back()

    def sign_in(self, replica):
        status, body = replica.call("POST", "/auth/sessions", self.key, {"user_id": "ada"})
        return {"id": body["session"]["id"], **body} if status == 200 else None

    def sign_out(self, replica, session, timeout=5):
        status, _ = replica.call("DELETE", "/auth/sessions/current", session["access_token"], timeout=timeout)
        if status == 200:
            with self.lock:
                self.acknowledged.append(session)
        return status

    def writes_back(self):
        """Waits until each replica accepts writes. Returns the seconds."""
        began = time.monotonic()
        for replica in self.replicas:
            while True:
                session = self.sign_in(replica)
                if session and self.sign_out(replica, session) == 200:
                    break
                if time.monotonic() - began > RECOVERY_SECONDS_MAX:
                    raise SystemExit("faults.py: sessiond does not recover; its log: " + self.log.name)
                time.sleep(0.2)
        return time.monotonic() - began

    def load(self, stop):
        """Signs in and out until told to stop; retries a sign-out until it is acknowledged, as a client would."""

        def work(at):
            replica, statuses = self.replicas[at % len(self.replicas)], []
            while not stop.is_set():
                session = self.sign_in(replica)
                while session and not stop.is_set():
                    statuses.append(self.sign_out(replica, session))
                    if statuses[-1] == 200:
                        break
                    time.sleep(0.1)
                if not session:
                    time.sleep(0.1)
            return statuses

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return [status for statuses in pool.map(work, range(8)) for status in statuses]

    def expect(self, holds, what):
        if not holds:
            self.failures.append(what)
            print(f"  FAILED: {what}")

    def hold_ledger(self, fault):
        """Checks every acknowledged sign-out against the database and the API."""
        primary = self.primary()
        ids = [session["id"] for session in self.acknowledged]
        alive = primary.query("SELECT id::text FROM sessions WHERE id = ANY(%s::uuid[]) AND revoked_at IS NULL", ids)
        missing = len(ids) - primary.query("SELECT count(*) FROM sessions WHERE id = ANY(%s::uuid[])", ids)[0][0]
        self.expect(not alive and not missing, f"{fault}: {len(alive) + missing} of {len(ids)} acknowledged sign-outs lost")
        for session in self.acknowledged[-50:]:
            for replica in self.replicas:
                token = session["refresh_token"]
                status, _ = replica.call("POST", "/auth/sessions/current/refresh", token, {}, header="x-refresh-token")
                self.expect(status != 200, f"{fault}: a refresh token works after the sign-out")
                self.expect(replica.verify(session) != 200, f"{fault}: an access token verifies after the sign-out")

    def under_load(self, fault, strike, mend=lambda: None):
        """Injects a fault while eight clients sign in and out, waits until writes succeed again, and checks every sign-out."""
        before, stop = len(self.acknowledged), threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            load = pool.submit(self.load, stop)
            time.sleep(2)
            strike()
            back = self.writes_back()
            time.sleep(1)
            stop.set()
            statuses = load.result()
        mend()
        self.settle()
        self.hold_ledger(fault)
        refused = sum(status == 503 for status in statuses)
        other = sorted({status for status in statuses} - {200, 503})
        # 0: no answer within the client's five seconds.
        self.expect(not set(other) - {0}, f"{fault}: sign-outs were answered with {other}")
        print(f"{fault}: {len(self.acknowledged) - before} acknowledged, {refused} refused for now, writes back after {back:.1f} s")

    def deposed(self):
        """Patroni dies on the primary and its Postgres stays up: no replica may keep answering from it."""
        fault, old = "Patroni killed, Postgres alive", self.primary()
        sessions = [self.sign_in(self.replicas[0]) for _ in range(5)]
        old.patroni.kill()
        new = self.primary(other_than=old)
        elected = time.monotonic()
        print(f"  {new.name} was elected in place of {old.name}, which still runs")
        back = self.writes_back()
        for session in sessions:
            self.expect(self.sign_out(self.replicas[0], session) == 200, f"{fault}: a sign-out was refused")
        signed_out = time.monotonic()
        while any(replica.verify(session) == 200 for replica in self.replicas for session in sessions):
            if time.monotonic() - signed_out > 60:
                break
            time.sleep(0.1)
        late = time.monotonic() - signed_out
        self.expect(late < STALENESS_SECONDS_MAX, f"{fault}: a replica accepted signed-out tokens for {late:.1f} s")
        old.signal_postgres(signal.SIGKILL, backends=True)
        self.settle()
        self.hold_ledger(fault)
        print(f"{fault}: writes back {back:.1f} s after the election ({time.monotonic() - elected:.0f} s ago), "
              f"signed-out tokens refused everywhere after {late:.2f} s")

    def cancelled_wait(self):
        """The standbys stop answering, the waiting backends are cancelled, clients retry; then the primary is lost."""
        fault, old = "wait for the standbys cancelled", self.primary()
        sessions = [self.sign_in(self.replicas[0]) for _ in range(10)]
        standbys = [node for node in self.nodes if node is not old]
        for node in standbys:
            node.signal_postgres(signal.SIGSTOP, backends=True)
        acknowledged = 0
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            for _ in range(3):
                tried = [pool.submit(self.sign_out, self.replicas[0], session, 4) for session in sessions]
                time.sleep(0.5)
                old.query("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
                acknowledged += sum(one.result() == 200 for one in tried)
        old.kill_all()
        for node in standbys:
            node.signal_postgres(signal.SIGCONT, backends=True)
        back = self.writes_back()
        self.settle()
        self.hold_ledger(fault)
        self.expect(acknowledged == 0, f"{fault}: {acknowledged} sign-outs were acknowledged that no standby had")
        print(f"{fault}: {acknowledged} of 30 acknowledged without a standby, writes back after {back:.1f} s")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sessiond", required=True, help="the binary to run")
    sessiond = str(Path(arguments.parse_args().sessiond).resolve())
    home = Path(tempfile.mkdtemp(prefix="sessiond-patroni-"))
    home.chmod(0o755)
    with open(home / "log", "w+", encoding="utf-8") as log:
        run = Run(sessiond, home, log)
        try:
            run.start()
            primary = run.primary()
            run.under_load("Postgres killed on the primary", lambda: primary.signal_postgres(signal.SIGKILL, backends=True))
            primary = run.primary()
            run.under_load("primary lost completely", primary.kill_all)
            primary = run.primary()

            def switch_over():
                connection = http.client.HTTPConnection("127.0.0.1", primary.rest_port, timeout=60)
                connection.request("POST", "/switchover", json.dumps({"leader": primary.name}))
                connection.getresponse().read()

            run.under_load("switchover", switch_over)
            run.deposed()
            run.cancelled_wait()
        finally:
            run.stop()
        print(f"{len(run.acknowledged)} sign-outs acknowledged, {len(run.failures)} checks failed")
        if run.failures:
            sys.exit(f"faults.py: the log is {log.name}")
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
