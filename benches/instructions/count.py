"""Counts the instructions of a request: see `run`. One client, one request at a time, a database of its own.

Valgrind counts a copy by `rep movsb` byte by byte, so the copies of large values weigh more than on a processor; and it
has no instructions for SHA-256.
"""

import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter

REQUESTS = 300
# Until caches are warm.
FIRST = 50
START_MAX_SECONDS = 300

GROUPS = {
    "ES256": re.compile(r"nistz256|p256|bn_mul|beeu_|bignum|ecdsa|EC_|ec_"),
    "SHA-256": re.compile(r"sha256"),
    "allocator": re.compile(r"malloc|calloc|realloc|free|unlink_chunk|rdl_|RawVec|raw_vec"),
    "copies": re.compile(r"memcpy|memmove|memset"),
}


class Server:
    """`sessiond dev` under valgrind."""

    def __init__(self, binary: str, directory: pathlib.Path, port: int) -> None:
        self.counts = directory / "counts"
        data = directory / "data"
        command = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={self.counts}.%p"]
        command += [binary, "dev", "--listen", f"127.0.0.1:{port}", "--data-dir", str(data), "--log", "error"]
        # That of an earlier server.
        ready = data / "dev.env"
        ready.unlink(missing_ok=True)
        # Valgrind knows not all system calls and says so; the server does without those.
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        until = time.monotonic() + START_MAX_SECONDS
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{binary} did not start: {self.log.read_text()}")
            time.sleep(0.1)
        found = dict(re.findall(r"^(?:export )?(\w+)='?([^'\n]*)", ready.read_text(), re.M))
        self.key = found["SESSIOND_SERVER_KEY"]
        self.connection = http.client.HTTPConnection(found["SESSIOND_URL"].removeprefix("http://"))

    def ask(self, method: str, path: str, credential: str, body: object = None, headers: dict[str, str] = {}) -> object:
        sent = {"authorization": f"Bearer {credential}"} if credential else {}
        text = None
        if body is not None:
            sent["content-type"] = "application/json"
            text = json.dumps(body)
        self.connection.request(method, path, text, {**sent, **headers})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} {path}: {answer.status} {content!r}")
        return json.loads(content) if content else None

    def create(self, user: str) -> dict:
        return self.ask("POST", "/auth/sessions", self.key, {"user_id": user})

    def control(self, *arguments: str) -> None:
        subprocess.run(["callgrind_control", *arguments, str(self.process.pid)], check=True, capture_output=True)

    def count(self, request) -> Counter:
        """The instructions of a request, by function."""
        for _ in range(FIRST):
            request()
        known = set(self.counts.parent.glob("counts.*"))
        self.control("-z")
        for _ in range(REQUESTS):
            request()
        self.control("-d")
        until = time.monotonic() + 60
        while True:
            new = set(self.counts.parent.glob("counts.*")) - known
            # Written whole once its last line is there.
            if new and all("\ntotals:" in file.read_text() for file in new):
                break
            if time.monotonic() > until:
                raise SystemExit("valgrind wrote no counts")
            time.sleep(0.1)
        total = sum((by_function(file) for file in new), Counter())
        return Counter({name: count / REQUESTS for name, count in total.items()})

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def by_function(file: pathlib.Path) -> Counter:
    """The instructions of each function itself, in callgrind's format."""
    names, counts = {}, Counter()
    current, is_callee = "", False
    for line in file.read_text().splitlines():
        if match := re.match(r"(c?)fn=\((\d+)\)(?: (.*))?", line):
            callee, number, name = match.groups()
            if name:
                names[number] = name
            if not callee:
                current = number
        elif line.startswith("calls="):
            is_callee = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if is_callee:
                is_callee = False
            else:
                counts[current] += int(line.split()[1])
    return Counter({names.get(number, ""): count for number, count in counts.items()})


def measure(binary: str) -> dict[str, Counter]:
    with tempfile.TemporaryDirectory(prefix="sessiond-instructions-") as name:
        directory = pathlib.Path(name)
        # Postgres of root runs as another user.
        directory.chmod(0o711)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = Server(binary, directory, port)
        try:
            known = server.create("ada")["access_token"]
            sessions = iter([server.create(f"user-{n}") for n in range(3 * (FIRST + REQUESTS))])
            users = iter(f"new-{n}" for n in range(FIRST + REQUESTS))
            header = "x-refresh-token"

            def sign_out() -> object:
                return server.ask("DELETE", "/auth/sessions/current", next(sessions)["access_token"])

            counts = {
                "verify, known token": server.count(lambda: server.ask("GET", "/projects/demo/auth/verify", known)),
                "introspect, known token": server.count(
                    lambda: server.ask("POST", "/auth/tokens:introspect", server.key, {"token": known})
                ),
                "sign-out, with a token that this server issued": server.count(sign_out),
                "refresh": server.count(
                    lambda: server.ask(
                        "POST", "/auth/sessions/current/refresh", "", None, {header: next(sessions)["refresh_token"]}
                    )
                ),
                "create": server.count(lambda: server.create(next(users))),
            }
            # Another process on the same database, as another replica is.
            server.stop()
            server = Server(binary, directory, port)
            return counts | {"sign-out, with a token of another replica": server.count(sign_out)}
        finally:
            server.stop()


def main() -> None:
    binaries = sys.argv[1:]
    results = [measure(binary) for binary in binaries]
    print("| instructions per request | in all | " + " | ".join(GROUPS) + " | rest |")
    print("|---|" + "---|" * (len(GROUPS) + 2))
    for work in results[0]:
        for binary, result in zip(binaries, results):
            counts = result[work]
            total = sum(counts.values())
            parts = Counter()
            for name, count in counts.items():
                group = next((group for group, pattern in GROUPS.items() if pattern.search(name)), "rest")
                parts[group] += count
            shares = [f"{100 * parts[group] / total:.0f} %" for group in [*GROUPS, "rest"]]
            label = work if len(binaries) == 1 else f"{work}: {binary}"
            print(f"| {label} | {total:,.0f} | " + " | ".join(shares) + " |")


main()
