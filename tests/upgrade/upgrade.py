"""Upgrades a running installation under load, and counts failed requests. See `run`."""

import argparse
import collections
import http.client
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from free_port import free_port

# How long a server may take to start or to stop, in seconds.
PATIENCE = 60


def wait_for(what, is_so):
    until = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > until:
            sys.exit(f"waited {PATIENCE} s for: {what}")
        time.sleep(0.05)


def ask(port, method, path, headers=None, body=None):
    """One request on a connection of its own. Returns the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_ready(port):
    try:
        return ask(port, "GET", "/readyz")[0] == 200
    except OSError:
        return False


class Servers:
    """The replicas, and what a load balancer knows of them: it sends requests to those whose `/readyz` succeeds."""

    def __init__(self, env, log):
        self.env, self.log = env, log
        self.processes = {}
        self.ready = ()
        self.stopping = False
        threading.Thread(target=self._probe, daemon=True).start()

    def _probe(self):
        while not self.stopping:
            self.ready = tuple(port for port in list(self.processes) if is_ready(port))
            time.sleep(0.2)

    def start(self, binary):
        port = free_port()
        flags = ["--listen", f"127.0.0.1:{port}", "--metrics-listen", "127.0.0.1:0"]
        # No limit but the machine's.
        for limit in ("address", "user", "project", "server-key"):
            flags += [f"--{limit}-rate", "0"]
        command = [binary, "serve", *flags]
        self.processes[port] = subprocess.Popen(command, env=self.env, stdout=self.log, stderr=self.log)
        wait_for(f"{binary} is ready", lambda: port in self.ready)
        return port

    def stop(self, port):
        process = self.processes[port]
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        del self.processes[port]
        if code != 0:
            sys.exit(f"the server exited with {code} after SIGTERM")

    def kill(self):
        self.stopping = True
        for process in self.processes.values():
            process.kill()


class Load:
    """Clients that sign in, refresh, sign out, and check that a sign-out holds, each request on any ready replica."""

    def __init__(self, servers, key, workers):
        self.servers, self.key = servers, key
        self.phase = "before"
        self.counts = collections.Counter()
        self.failures = []
        self.slowest = collections.defaultdict(float)
        self.lock = threading.Lock()
        self.stopping = False
        self.workers = [threading.Thread(target=self._work, args=(number,)) for number in range(workers)]
        for worker in self.workers:
            worker.start()

    def _work(self, number):
        connections, turn = {}, number
        while not self.stopping:
            turn += 1
            try:
                self._session(connections, number, turn)
            except Failed:
                # Counted. The others go on.
                time.sleep(0.1)
        for connection in connections.values():
            connection.close()

    def _session(self, connections, number, turn):
        service = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        body = json.dumps({"user_id": f"user-{number}-{turn % 50}"})
        grant = self._request(connections, "POST", "/auth/sessions", service, body, 200)
        for _ in range(3):
            path = "/auth/sessions/current/refresh"
            grant |= self._request(connections, "POST", path, {"x-refresh-token": grant["refresh_token"]}, None, 200)
        token = {"Authorization": f"Bearer {grant['access_token']}"}
        body = json.dumps({"token": grant["refresh_token"]})
        if not self._request(connections, "POST", "/auth/tokens:introspect", service, body, 200)["active"]:
            self._failed("a live session is not active")
        self._request(connections, "DELETE", "/auth/sessions/current", token, None, 200)
        refused = {"x-refresh-token": grant["refresh_token"]}
        self._request(connections, "POST", "/auth/sessions/current/refresh", refused, None, 401)

    def _request(self, connections, method, path, headers, body, expected):
        ready = self.servers.ready
        if not ready:
            self._failed("no replica is ready")
        self.turn = getattr(self, "turn", 0) + 1
        port = ready[self.turn % len(ready)]
        connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=10))
        began = time.monotonic()
        try:
            # It connects again by itself after `Connection: close`.
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._failed(f"{method} {path}: {error!r}")
        took = time.monotonic() - began
        with self.lock:
            self.slowest[self.phase] = max(self.slowest[self.phase], took)
        if answer.status != expected:
            self._failed(f"{method} {path}: {answer.status} {text[:200]}")
        with self.lock:
            self.counts[self.phase] += 1
        return json.loads(text) if text else {}

    def _failed(self, why):
        with self.lock:
            self.failures.append(f"{self.phase}: {why}")
        raise Failed

    def stop(self):
        self.stopping = True
        for worker in self.workers:
            worker.join()


class Failed(Exception):
    pass


def variables(path):
    """The variables of a `dev.env`."""
    words = [shlex.split(line) for line in path.read_text().splitlines() if line.startswith("export ")]
    return dict(word[1].split("=", 1) for word in words)


def migrations(binary, env):
    done = subprocess.run([binary, "migrate"], env=env, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        sys.exit(f"the migration failed: {done.stderr}")
    return [line.removeprefix("applied ") for line in done.stdout.splitlines() if line.startswith("applied ")]


def main():
    parser = argparse.ArgumentParser()
    for name in ("--old", "--new"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--workers", type=int, required=True)
    args = parser.parse_args()

    # Postgres of root runs under another user, and stores its data below.
    home = pathlib.Path(tempfile.mkdtemp(prefix="sessiond-upgrade-"))
    home.chmod(0o711)
    log = open(home / "log", "w", encoding="utf-8")
    bare = {"PATH": os.environ["PATH"]}
    # It runs Postgres, and has made a project and its keys. Nobody calls it.
    dev = subprocess.Popen(
        [args.old, "dev", "--listen", "127.0.0.1:0", "--data-dir", home / "data"], env=bare, stdout=log, stderr=log
    )
    servers = None
    try:
        env_file = home / "data/dev.env"
        wait_for("Postgres and the old server start", lambda: env_file.exists() or dev.poll() is not None)
        wait_for("dev.env is complete", lambda: "SESSIOND_SERVER_KEY" in env_file.read_text())
        made = variables(env_file)
        key_file = home / "data/sealing-key"
        env = bare | {"DATABASE_URL": made["DATABASE_URL"], "SESSIOND_SEALING_KEY_FILE": str(key_file)}
        servers = Servers(env, log)
        old = servers.start(args.old)
        load = Load(servers, made["SESSIOND_SERVER_KEY"], args.workers)

        def phase(name):
            load.phase = name

        phase("old alone")
        time.sleep(args.seconds)
        phase("migrating")
        began = time.monotonic()
        applied = migrations(args.new, env)
        took = time.monotonic() - began
        phase("old on the new schema")
        time.sleep(args.seconds)
        phase("old and new")
        new = servers.start(args.new)
        time.sleep(args.seconds)
        servers.stop(old)
        phase("new alone")
        time.sleep(args.seconds)
        # And back.
        phase("new and old")
        old = servers.start(args.old)
        time.sleep(args.seconds)
        servers.stop(new)
        phase("old again, alone")
        time.sleep(args.seconds)
        load.stop()
    finally:
        if servers:
            servers.kill()
        dev.terminate()
        dev.wait(PATIENCE)
        log.close()

    print(f"migrations applied in {took:.1f} s: {', '.join(applied) or 'none'}")
    for name, count in load.counts.items():
        print(f"{name:24} {count:7} requests, the slowest {load.slowest[name] * 1000:.0f} ms")
    print(f"{sum(load.counts.values())} requests, {len(load.failures)} failed")
    for failure in load.failures[:20]:
        print(f"  {failure}")
    if load.failures or not applied:
        sys.exit(f"{'requests failed' if load.failures else 'there was nothing to migrate'}; the log is in {home / 'log'}")
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
