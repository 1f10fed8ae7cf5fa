"""A highly available sessiond on one machine: three Postgres servers under Patroni, three etcds, two replicas of sessiond.

Run by itself, it starts the cluster, says how to use it, and stops it on Ctrl-C. Everything listens on 127.0.0.1.
"""

import argparse
import base64
import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import yaml

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from free_port import free_port

NODES = ("one", "two", "three")
PROJECT = "demo"
# Clients know one name, whichever replica they reach.
ISSUER = "https://sessions.example.org"
# Longer than a lease, an election and a promotion on a slow machine, in seconds.
RECOVERY_MAX = 120


def postgres_bin():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if not initdb:
        sys.exit("deploy/ha: the Postgres server programs are not installed")
    return str(Path(initdb).parent)


def libfaketime():
    """The library that gives a program another time of day; `None` if it is not installed."""
    found = [path for lib in ("/usr/lib", "/usr/local/lib") for path in Path(lib).glob("**/faketime/libfaketime.so.1")]
    return str(found[0]) if found else None


def unprivileged():
    """The user to run Postgres, Patroni and etcd as: Postgres does not run as root."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def owned_by_postgres(directory):
    if os.getuid() == 0:
        for path in [directory, *directory.rglob("*")]:
            shutil.chown(path, "postgres")


class Process:
    """A child in its own process group, so that a signal can hit it alone or with its children."""

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

    def is_running(self):
        return self.child.poll() is None

    def signal(self, number):
        if self.is_running():
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


class Etcd:
    """One of three members."""

    def __init__(self, name, home, log):
        self.name, self.dir, self.log = name, home / f"etcd-{name}", log
        self.dir.mkdir(mode=0o700)
        self.port, self.peer_port = free_port(), free_port()
        self.process = None

    def start(self, members):
        url, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        command = ["etcd", "--name", self.name, "--data-dir", str(self.dir / "data")]
        command += ["--listen-client-urls", url, "--advertise-client-urls", url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", ",".join(f"{one.name}=http://127.0.0.1:{one.peer_port}" for one in members)]
        self.process = Process(command, self.log, **unprivileged())

    def is_leader(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            connection.request("POST", "/v3/maintenance/status", "{}")
            status = json.loads(connection.getresponse().read())
            return status["leader"] == status["header"]["member_id"]
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            return False


class Node:
    """A machine of the cluster: Patroni, and the Postgres that it runs."""

    def __init__(self, name, home, etcds, log):
        self.name, self.dir, self.log = name, home / name, log
        self.dir.mkdir(mode=0o700)
        self.port, self.rest_port = free_port(), free_port()
        self.patroni = None
        settings = yaml.safe_load(Path(__file__).with_name("patroni.yml").read_text(encoding="utf-8"))
        rest, postgres = f"127.0.0.1:{self.rest_port}", f"127.0.0.1:{self.port}"
        settings["name"] = name
        settings["etcd3"] = {"hosts": [f"127.0.0.1:{etcd.port}" for etcd in etcds]}
        settings["restapi"] = {"listen": rest, "connect_address": rest}
        settings["postgresql"] |= {
            "listen": postgres,
            "connect_address": postgres,
            "bin_dir": postgres_bin(),
            "data_dir": str(self.dir / "data"),
            "pgpass": str(self.dir / "pgpass"),
            "parameters": {"unix_socket_directories": str(self.dir)},
        }
        self.config, self.settings = self.dir / "patroni.yml", settings
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start(self):
        command = [sys.executable, "-m", "patroni", str(self.config)]
        self.patroni = Process(command, self.log, cwd=self.dir, **unprivileged())

    def set_clock(self, ahead):
        """Sets the clock of Postgres to `ahead` seconds ahead, from its next start on. Needs libfaketime."""
        programs = self.dir / "programs"
        shutil.rmtree(programs, ignore_errors=True)
        programs.mkdir()
        for program in Path(postgres_bin()).iterdir():
            (programs / program.name).symlink_to(program)
        (programs / "postgres").unlink()
        (programs / "postgres").write_text(
            f"#!/bin/sh\nexport LD_PRELOAD={libfaketime()} FAKETIME={ahead:+d}s FAKETIME_DONT_FAKE_MONOTONIC=1\n"
            f'exec {postgres_bin()}/postgres "$@"\n'
        )
        (programs / "postgres").chmod(0o755)
        self.settings["postgresql"]["bin_dir"] = str(programs)
        self.config.write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    def is_started(self):
        return self.patroni is not None and self.patroni.is_running()

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

    def signal_postgres(self, number):
        """Signals the postmaster and its children."""
        postmaster = self.postmaster()
        if postmaster is None:
            return
        pids = [postmaster]
        try:
            # A pid file may be left over, and its number taken by another program.
            if "postgres" not in Path(f"/proc/{postmaster}/comm").read_text():
                return
            pids += [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        except OSError:
            pass
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def pause(self):
        """Stops every process of the node, as a frozen machine does; `resume` continues them."""
        self.patroni.signal(signal.SIGSTOP)
        self.signal_postgres(signal.SIGSTOP)

    def resume(self):
        self.signal_postgres(signal.SIGCONT)
        self.patroni.signal(signal.SIGCONT)

    def kill(self):
        """Kills Patroni and Postgres at once, as a power failure does."""
        if self.patroni:
            self.patroni.signal(signal.SIGKILL)
        self.signal_postgres(signal.SIGKILL)
        if self.patroni:
            self.patroni.kill_group()

    def switch_over(self, to=None):
        """Asks Patroni to make another node the primary. Returns once that has happened."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=60)
        wanted = {"leader": self.name} | ({"candidate": to.name} if to else {})
        connection.request("POST", "/switchover", json.dumps(wanted))
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise SystemExit(f"deploy/ha: the switchover failed: {text}")

    def query(self, sql, *parameters, database="sessions"):
        url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}?connect_timeout=3"
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


class Replica:
    """A replica of sessiond. Restarts on the same port."""

    def __init__(self, name, sessiond, env, log):
        self.name, self.sessiond, self.env, self.log = name, sessiond, env, log
        self.port = free_port()
        self.start()

    def start(self):
        addresses = ["--listen", f"127.0.0.1:{self.port}", "--metrics-listen", "127.0.0.1:0"]
        flags = ["--issuer", ISSUER, "--address-rate", "0"]
        self.process = Process([self.sessiond, "serve", *addresses, *flags], self.log, self.env)

    def url(self):
        return f"http://127.0.0.1:{self.port}"

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
        except (OSError, ValueError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def verify(self, session):
        return self.call("GET", f"/projects/{PROJECT}/auth/verify", session["access_token"])[0]

    def is_ready(self):
        return self.call("GET", "/readyz", "")[0] == 200


class Cluster:
    def __init__(self, sessiond, home, log):
        self.sessiond, self.log = sessiond, log
        self.etcds = [Etcd(name, home, log) for name in NODES]
        self.nodes = [Node(name, home, self.etcds, log) for name in NODES]
        owned_by_postgres(home)
        self.replicas, self.key = [], None

    def database_url(self, first=0):
        """All hosts, so that sessiond finds the primary by itself."""
        hosts = [f"127.0.0.1:{node.port}" for node in self.nodes]
        return f"postgres://postgres@{','.join(hosts[first:] + hosts[:first])}/sessions"

    def start(self):
        for etcd in self.etcds:
            etcd.start(self.etcds)
        for node in self.nodes:
            node.start()
        self.settle()
        self.primary().query("CREATE DATABASE sessions", database="postgres")
        env = {"SESSIOND_SEALING_KEY": base64.b64encode(os.urandom(32)).decode()}

        def command(*words):
            full = {**os.environ, **env, "DATABASE_URL": self.database_url()}
            return subprocess.run([self.sessiond, *words], env=full, stdout=subprocess.PIPE, stderr=self.log, text=True, check=True).stdout

        command("migrate")
        command("project", "create", PROJECT)
        printed = command("server-key", "create", "--project", PROJECT)
        self.key = next(word for word in printed.split() if word.startswith("sdsk_"))
        # Each starts with another host.
        self.replicas = [
            Replica(f"replica {at + 1}", self.sessiond, {**env, "DATABASE_URL": self.database_url(at)}, self.log)
            for at in range(2)
        ]
        self.wait("sessiond is not ready", lambda: all(replica.is_ready() for replica in self.replicas))

    def stop(self):
        for replica in self.replicas:
            replica.process.kill_group()
        for node in self.nodes:
            if node.patroni:
                node.resume()
            node.kill()
        for etcd in self.etcds:
            if etcd.process:
                etcd.process.kill_group()

    def wait(self, failure, holds, pause=0.2):
        deadline = time.monotonic() + RECOVERY_MAX
        while True:
            outcome = holds()
            if outcome:
                return outcome
            if time.monotonic() > deadline:
                raise SystemExit(f"deploy/ha: {failure}; the log is {self.log.name}")
            time.sleep(pause)

    def primary(self, other_than=None):
        """Waits for a primary, and returns it."""
        others = [node for node in self.nodes if node is not other_than]
        return self.wait("the cluster has no primary", lambda: next((node for node in others if node.is_primary()), None))

    def settle(self):
        """Starts what is down, and waits until either standby may take over: it streams, and etcd says that it votes.

        Patroni promotes only a standby that etcd lists. It writes that list a few seconds after the standby streams.
        """

        def is_healthy():
            for etcd in self.etcds:
                if not etcd.process.is_running():
                    etcd.start(self.etcds)
            for node in self.nodes:
                if not node.is_started():
                    node.start()
            for replica in self.replicas:
                if not replica.process.is_running():
                    replica.start()
            states = [node.status() for node in self.nodes]
            ready = sum(
                state.get("replication_state") == "streaming" and state.get("quorum_standby", False) for state in states
            )
            return ready == len(NODES) - 1 and any(node.is_primary() for node in self.nodes)

        self.wait("the cluster does not become healthy", is_healthy, pause=0.5)


def home_directory():
    """A directory that the user of Postgres can enter."""
    home = Path(tempfile.mkdtemp(prefix="sessiond-ha-"))
    home.chmod(0o755)
    return home


def discard(home, with_log):
    """Deletes the data directories, and the log if nobody needs it."""
    for path in home.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    if with_log:
        shutil.rmtree(home)


def stop_on_signals():
    """SIGTERM and SIGHUP end the program as Ctrl-C does: the cluster is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sessiond", required=True, help="the binary to run")
    sessiond = str(Path(arguments.parse_args().sessiond).resolve())
    stop_on_signals()
    home = home_directory()
    with open(home / "log", "w+", encoding="utf-8") as log:
        cluster = Cluster(sessiond, home, log)
        try:
            cluster.start()
            print("sessiond:    ", " ".join(replica.url() for replica in cluster.replicas))
            print("server key:  ", cluster.key, f"(project {PROJECT})")
            print("DATABASE_URL:", cluster.database_url())
            print("Patroni:     ", " ".join(f"http://127.0.0.1:{node.rest_port}/cluster" for node in cluster.nodes))
            print("log:         ", log.name)
            print("Ctrl-C stops everything.", flush=True)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            print("stopping")
        finally:
            cluster.stop()
            discard(home, with_log=True)


if __name__ == "__main__":
    main()
