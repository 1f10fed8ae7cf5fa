"""Shows that each alert fires: starts servers and Prometheus, causes what the alert is about, and waits until it fires. Prints each
alert's summary. Fails if one does not fire, if one names the healthy server, or if the faults leave no trace on the dashboard. Takes
about two minutes. Needs Prometheus, psql, and prlimit and setpriv of util-linux.

    alerts.py target/debug/sessiond

The rules are those of alerts.yaml with shorter times, so that nobody waits for a quarter of an hour: `for` is 2s, a range of minutes is
20s, and one of an hour is 40s. The thresholds stay. alerts_test.yaml tests the rules with their own times, on made-up series.
"""

import asyncio
import fcntl
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket as net
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

from dashboard import HERE, ONLY_ON_FAULTS, Collector, ThreadingHTTPServer, eventually, free_port, queries, run_check

SHORTER = [
    (r"^(\s+for:) \w+$", r"\1 2s"),
    (r"\[(5|10|15)m\]", "[20s]"),
    (r"\[1h\]", "[40s]"),
    (r"offset 1h", "offset 40s"),
]

# Why queries of the dashboard have no data here either.
NOT_CAUSED = {None, ONLY_ON_FAULTS["sessiond_turns_refused_total"]}

# Runs a program as another user than root.
NOT_ROOT = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []

# How long the database of a far server takes to answer: each message waits for this long on its way.
DELAY = 0.28


class Proxy:
    """A TCP proxy to a Unix socket that delays every message, until it is cut."""

    def __init__(self, socket, delay):
        self.socket, self.delay, self.port, self.is_cut = socket, delay, free_port(), False
        self.loop = asyncio.new_event_loop()
        self.writers = set()
        ready = threading.Event()

        def run():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(asyncio.start_server(self.accept, "127.0.0.1", self.port))
            ready.set()
            self.loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        ready.wait()

    async def accept(self, reader, writer):
        if self.is_cut:
            return writer.close()
        reader_there, writer_there = await asyncio.open_unix_connection(self.socket)
        self.writers |= {writer, writer_there}
        await asyncio.gather(self.pump(reader, writer_there), self.pump(reader_there, writer))

    async def pump(self, reader, writer):
        due = asyncio.Queue()

        async def write():
            while True:
                at, data = await due.get()
                await asyncio.sleep(at - self.loop.time())
                if not data:
                    return
                writer.write(data)

        writing = asyncio.ensure_future(write())
        data = True
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            due.put_nowait((self.loop.time() + self.delay, data))
        await writing
        writer.close()

    def cut(self):
        self.is_cut = True
        self.loop.call_soon_threadsafe(lambda: [writer.close() for writer in self.writers])


class Caller:
    """Requests on a connection that stays open."""

    def __init__(self, url, key):
        self.parts, self.key, self.connection = urllib.parse.urlsplit(url), key, None

    def send(self, method, path, token=None, body=None, headers=None):
        """The answer's JSON; nothing if it is an error."""
        headers = {"authorization": f"Bearer {token or self.key}", "content-type": "application/json", **(headers or {})}
        if token == "":
            del headers["authorization"]
        try:
            if not self.connection:
                unverified = {"context": ssl._create_unverified_context()} if self.parts.scheme == "https" else {}
                make = http.client.HTTPSConnection if unverified else http.client.HTTPConnection
                self.connection = make(self.parts.netloc, timeout=30, **unverified)
            self.connection.request(method, path, json.dumps(body or {}) if method == "POST" else None, headers)
            answer = self.connection.getresponse()
            text = answer.read()
            return json.loads(text) if answer.status == 200 and text else None
        except (OSError, http.client.HTTPException):
            self.connection = None
            time.sleep(0.05)

    def sign_in(self, user="ada"):
        return self.send("POST", "/auth/sessions", body={"user_id": user})

    def sign_out(self, session):
        self.send("DELETE", "/auth/sessions/current", session["access_token"])

    def in_and_out(self):
        session = self.sign_in()
        if session:
            self.sign_out(session)

    def be_copied(self):
        """A session whose first refresh token is used again after its successor."""
        session = self.sign_in()
        token = session and session["refresh_token"]
        for _ in range(3):
            answer = token and self.send("POST", "/auth/sessions/current/refresh", "", headers={"x-refresh-token": token})
            token = answer and answer["refresh_token"]
        if session:
            self.send("POST", "/auth/sessions/current/refresh", "", headers={"x-refresh-token": session["refresh_token"]})


class Load:
    """Calls a function again and again, in threads, until it is stopped."""

    def __init__(self, threads, new, work):
        self.stopped = False

        def run():
            caller = new()
            while not self.stopped:
                work(caller)

        for _ in range(threads):
            threading.Thread(target=run, daemon=True).start()

    def stop(self):
        self.stopped = True


def certificate(directory, days):
    files = ["-keyout", directory / "key.pem", "-out", directory / "cert.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days)]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", *files]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return [f"--tls-certificate-file={directory}/cert.pem", f"--tls-key-file={directory}/key.pem"]


def check(sessiond, directory, started):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SESSIOND_", "OTEL_", "DATABASE_"))}
    log = open(directory / "log", "wb")

    def start(command, env=clean, stderr=log):
        started.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=stderr))
        return started[-1]

    # The healthy server, and the Postgres of all.
    data = directory / "sessiond"
    start([sessiond, "dev", f"--data-dir={data}", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"])
    text = eventually("sessiond dev starts", lambda: (data / "dev.env").read_text())
    env = dict(re.findall(r"^(?:export )?(\w+)='?([^'\n]*)'?$", text, re.MULTILINE))
    healthy = Caller(env["SESSIOND_URL"], env["SESSIOND_SERVER_KEY"])
    url = env["DATABASE_URL"].rsplit("/", 1)[0] + "/sick"
    socket = urllib.parse.unquote(re.search(r"@([^/]*)/", url)[1]) + "/.s.PGSQL.5432"

    def sql(text, database=url):
        return subprocess.run(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", text, database], check=True, stdout=subprocess.PIPE).stdout

    def run(*command):
        done = subprocess.run([sessiond, *command], env={**clean, "DATABASE_URL": url}, stdout=subprocess.PIPE, stderr=log, check=True)
        return done.stdout.decode()

    sql("CREATE DATABASE sick", env["DATABASE_URL"])
    sealing = clean["SESSIOND_SEALING_KEY_FILE"] = str(data / "sealing-key")
    run("migrate")
    run("project", "create", "shop", "--refresh-grace=0s")
    key = re.search(r"sdsk_\S+", run("server-key", "create", "--project=shop"))[0]
    for number in range(4):
        add = ["--project=shop", "--kind=logout", f"--url=https://127.0.0.1:1/{number}", "--audience=app"]
        run("backchannel", "add", *add, "--backchannel-allow-private=127.0.0.0/8")
    # A sweep that was last done two days ago, and that meets a row which it cannot delete.
    sql("""INSERT INTO session_requests (project_id, request_id, session_id, digest, created_at)
             SELECT 'shop', gen_random_uuid(), gen_random_uuid(), sha256('a'), now() - interval '30 days' + n * interval '1 second'
             FROM generate_series(1, 5000) AS n;
           CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'kept by a test'; END $$;
           CREATE TRIGGER refuse BEFORE DELETE ON session_requests FOR EACH ROW
             WHEN (OLD.created_at > now() - interval '29 days 23 hours') EXECUTE FUNCTION refuse();
           UPDATE sweeps SET completed_at = now() - interval '2 days'""")

    # A server far from its database, with one connection for requests.
    proxy = Proxy(socket, DELAY)
    far = {**clean, "DATABASE_URL": f"postgres://postgres@127.0.0.1:{proxy.port}/sick?sslmode=disable"}
    serve = [sessiond, "serve", "--allow-unsafe-durability", "--backchannel-allow-private=127.0.0.0/8", "--drain-delay=0s"]
    far_port, far_metrics, tight_port, tight_metrics = (free_port() for _ in range(4))
    patient = ["--database-connections-max=7", "--database-connect-timeout=20s", "--database-timeout=20s", "--request-timeout=30s"]
    unlimited = ["--address-rate=0", "--user-rate=0", "--project-rate=0", "--server-key-rate=0"]
    start([*serve, f"--listen=127.0.0.1:{far_port}", f"--metrics-listen=127.0.0.1:{far_metrics}", *patient, *unlimited], far)

    # A server that will be allowed no further thread, and then has to look up its database's address. Nothing limits root's threads.
    crowded_proxy, crowded_port, crowded_metrics = Proxy(socket, 0), free_port(), free_port()
    program = shutil.copy(sessiond, directory / "sessiond-crowded")
    crowded = {**clean, "DATABASE_URL": f"postgres://postgres@localhost:{crowded_proxy.port}/sick?sslmode=disable"}
    crowded["SESSIOND_SEALING_KEY"] = pathlib.Path(crowded.pop("SESSIOND_SEALING_KEY_FILE")).read_text().strip()
    addresses = [f"--listen=127.0.0.1:{crowded_port}", f"--metrics-listen=127.0.0.1:{crowded_metrics}"]
    crowded_server = start([*NOT_ROOT, program, *serve[1:], *addresses], crowded)

    # A server with little room, a certificate that expires in three days, and a log that nobody reads.
    unread, stderr = os.pipe()
    fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(stderr, False)
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Collector.accepts = False
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    tight = [*serve, f"--listen=127.0.0.1:{tight_port}", f"--metrics-listen=127.0.0.1:{tight_metrics}", *unlimited]
    tight += ["--requests-max=8", "--address-requests-max=8", "--verify-rate=2", "--verify-burst=2", "--log-requests", *certificate(directory, 3)]
    tight += [f"--otlp-endpoint=http://127.0.0.1:{collector.server_port}", "--otlp-protocol=http/protobuf"]
    tight_server = start(tight, {**clean, "DATABASE_URL": url}, stderr)

    rules = (HERE / "alerts.yaml").read_text()
    names = re.findall(r"- alert: (\w+)", rules)
    for pattern, shorter in SHORTER:
        rules = re.sub(pattern, shorter, rules, flags=re.MULTILINE)
    (directory / "alerts.yaml").write_text(rules)
    targets = {"healthy": urllib.parse.urlsplit(env["SESSIOND_METRICS_URL"]).netloc}
    targets |= {"far": f"127.0.0.1:{far_metrics}", "tight": f"127.0.0.1:{tight_metrics}", "crowded": f"127.0.0.1:{crowded_metrics}"}
    jobs = [
        {
            "job_name": name,
            "scheme": "https" if name == "tight" else "http",
            "tls_config": {"insecure_skip_verify": True},
            "static_configs": [{"targets": [target], "labels": {"job": "sessiond", "instance": name}}],
        }
        for name, target in targets.items()
    ]
    # It has another database, and sweeps there.
    jobs[0]["metric_relabel_configs"] = [{"source_labels": ["__name__"], "regex": "sessiond_sweep_.*", "action": "drop"}]
    times = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config = {"global": times, "rule_files": [str(directory / "alerts.yaml")], "scrape_configs": jobs}
    # JSON is YAML.
    (directory / "prometheus.yaml").write_text(json.dumps(config))
    port = free_port()
    prometheus = ["prometheus", f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/prometheus"]
    prometheus_server = start([*prometheus, f"--web.listen-address=127.0.0.1:{port}"])

    missing = []
    # The values of all labels of each alert that fired, and its summaries.
    began, began_at, fired = time.monotonic(), time.time(), {}

    def firing():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/alerts", timeout=10) as answer:
            alerts = json.loads(answer.read())["data"]["alerts"]
        for alert in alerts:
            labels = alert["labels"]
            if alert["state"] != "firing":
                continue
            if labels.get("instance") == "healthy":
                sys.exit(f"fires for the healthy server: {alert}")
            name, values = labels["alertname"], fired.setdefault(labels["alertname"], set())
            summary = alert["annotations"]["summary"]
            if not values >= {*labels.values()}:
                print(f"{time.monotonic() - began:4.0f} s  {name}: {summary}", flush=True)
            values |= {*labels.values(), summary}

    def has_fired(expected):
        name, _, value = expected.partition(" ")
        return name in fired and (not value or value in fired[name])

    def fires(seconds, *expected):
        """Waits for alerts, each given by its name, or by its name and the value of a label, or its summary, if it fired before by
        another cause."""
        until = time.monotonic() + seconds
        while not all(map(has_fired, expected)) and time.monotonic() < until:
            time.sleep(1)
            firing()
            healthy.in_and_out()
        missing.extend(one for one in expected if not has_fired(one))

    def ask(path, **parameters):
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    eventually("Prometheus scrapes all", lambda: len(ask("query", query="up == 1")["result"]) == 4)
    at_far, at_tight = (lambda: Caller(f"http://127.0.0.1:{far_port}", key)), (lambda: Caller(f"https://localhost:{tight_port}", key))
    at_tight().in_and_out()

    def forge(caller):
        caller.send("GET", "/projects/shop/auth/verify", "forged")
        caller.send("POST", "/auth/sessions", f"{key[:-1]}{'a' if key[-1] != 'a' else 'b'}", {"user_id": "ada"})
        # Without TLS.
        with net.create_connection(("127.0.0.1", tight_port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.02)

    loads = [
        Load(24, at_far, Caller.in_and_out),
        Load(2, at_tight, forge),
        Load(1, at_tight, Caller.be_copied),
        Load(3, at_tight, Caller.in_and_out),
    ]
    # Each of these has a cause of its own by now.
    fires(
        150,
        *["SessiondForgedCredentials", "SessiondRateLimited", "SessiondRefreshTokensStolen", "SessiondLogLinesDropped"],
        *["SessiondCertificateExpires", "SessiondSpansDropped", "SessiondSweepLate", "SessiondBackchannelBehind"],
        *["SessiondSlow", "SessiondClockUncertain", "SessiondSignOutSlow", "SessiondDatabaseOverloaded"],
    )
    for load in loads:
        load.stop()
    # As if their receiver had been down for two days.
    sql("UPDATE backchannel_deliveries SET queued_at = queued_at - interval '2 days', due_at = now() WHERE due_at IS NOT NULL")
    fires(60, "SessiondBackchannelDead")

    # Nothing can be read from the table for a while.
    token = eventually("a sign-in", lambda: at_tight().sign_in())["access_token"]
    locking = start(["psql", "-qAtX", "-c", "BEGIN; LOCK TABLE sessions; SELECT pg_sleep(30)", url])
    # One that is refused comes again, but not at once. Nobody has listed sessions before.
    waiting = Load(24, at_tight, lambda caller: caller.send("GET", "/auth/sessions", token) or time.sleep(0.3))
    fires(60, "SessiondOverloaded", "SessiondErrors sessiond.v1.SessionService/ListSessions")
    locking.terminate()
    waiting.stop()

    (directory / "cert.pem").write_text("rubbish")
    fires(60, "SessiondTlsFilesRejected")
    tight_server.kill()
    fires(60, "SessiondDown tight")
    crowded_proxy.cut()
    fires(60, "SessiondNotReady crowded", "SessiondFeedOld crowded")
    crowded_proxy.is_cut = False
    # It keeps a thread that looked up an address for ten seconds.
    threads, fewest = pathlib.Path(f"/proc/{crowded_server.pid}/task"), len(os.sched_getaffinity(0)) + 2
    eventually("the server has no thread to spare", lambda: len(list(threads.iterdir())) <= fewest)
    subprocess.run([*NOT_ROOT, "prlimit", f"--pid={crowded_server.pid}", "--nproc=1:"], check=True)
    crowded_proxy.cut()
    fires(60, "SessiondTaskRestarts")
    with urllib.request.urlopen(f"http://127.0.0.1:{far_metrics}/metrics", timeout=10) as answer:
        page = answer.read().decode()

    # As if all replicas were gone from the configuration.
    none = [{**job, "static_configs": []} for job in jobs]
    (directory / "prometheus.yaml").write_text(json.dumps({**config, "scrape_configs": none}))
    prometheus_server.send_signal(signal.SIGHUP)
    fires(60, "SessiondDown no replica is scraped")

    # The dashboard's queries that have no data on a healthy server.
    for panel, query, reason in queries():
        if reason not in NOT_CAUSED and not ask("query_range", query=query, start=began_at, end=time.time(), step=2)["result"]:
            print(f"no data in the dashboard's {panel}: {reason}")
            missing.append(panel)

    missing += [name for name in names if name not in fired and name not in missing]
    print(f"{len(fired)} of {len(names)} alerts fired in {time.monotonic() - began:.0f} s")
    if missing:
        print(f"missing: {', '.join(missing)}; see {directory}")
        (directory / "kept").touch()
        (directory / "metrics").write_text(page)
        sys.exit(1)


if __name__ == "__main__":
    run_check("alerts", check)
