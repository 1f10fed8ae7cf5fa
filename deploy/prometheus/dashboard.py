"""Shows that the dashboard has data: starts `sessiond dev` and Prometheus, sends some load, and asks Prometheus each query of
the dashboard. Fails if a query returns nothing, unless it has data only on faults; those are listed. Takes about 40 s. Needs
Prometheus.

    dashboard.py target/debug/sessiond
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests"))

from eventually import eventually
from free_port import free_port

HERE = pathlib.Path(__file__).parent
LOAD_SECONDS = 25
RATE_INTERVAL = "20s"

# Queries that have no data on a healthy server within a minute, by a part of each, with the reason. alerts.py causes most of them.
ONLY_ON_FAULTS = {
    "sessiond_store_refused_total": "operations that found no database connection",
    "sessiond_turns_refused_total": "operations that waited for others on the same session or user",
    'outcome="error"': "failed database operations",
    "sessiond_not_ready": "only conditions that hold",
    "sessiond_requests_refused_total": "requests that found no place",
    "sessiond_connections_refused_total": "connections that were refused on arrival",
    "sessiond_task_restarts_total": "tasks that ended or panicked",
    "sessiond_sweep_step_duration": "a sweep runs at the start, before the first scrape, and then every six hours",
}


class Collector(BaseHTTPRequestHandler):
    """An OTLP collector that refuses its first batch, and accepts all others, unless it accepts none."""

    protocol_version = "HTTP/1.1"
    batches = 0
    accepts = True

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        Collector.batches += 1
        self.send_response(200 if Collector.accepts and Collector.batches > 1 else 401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Client:
    def __init__(self, env):
        self.url, self.key = env["SESSIOND_URL"], env["SESSIOND_SERVER_KEY"]

    def send(self, method, path, token=None, body=None, form=None, headers=None):
        headers = dict(headers or {})
        data = None
        if body is not None:
            data, headers["content-type"] = json.dumps(body).encode(), "application/json"
        if form is not None:
            data, headers["content-type"] = urllib.parse.urlencode(form).encode(), "application/x-www-form-urlencoded"
        if token:
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            error.read()
            return None

    def refresh(self, token, agent):
        return self.send("POST", "/auth/sessions/current/refresh", headers={"x-refresh-token": token, "user-agent": agent})

    def round(self, number):
        """What users do, and what attackers try."""
        user = {"user_id": f"user-{number % 7}"}
        phone = self.send("POST", "/auth/sessions", self.key, {**user, "device_name": "phone"})
        laptop = self.send("POST", "/auth/sessions", self.key, user)
        self.send("GET", "/auth/sessions", phone["access_token"])
        self.send("POST", "/auth/tokens:introspect", self.key, {"token": phone["access_token"]})
        self.send("GET", "/projects/demo/auth/verify", phone["access_token"])
        for _ in range(8):
            self.send("GET", "/projects/demo/auth/verify", "forged")
        # Repeated within the grace, from elsewhere.
        self.refresh(laptop["refresh_token"], "one")
        self.refresh(laptop["refresh_token"], "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
        self.send("POST", "/oauth2/revoke", form={"token": laptop["refresh_token"], "client_id": "demo"})
        self.send("DELETE", "/auth/sessions/current", phone["access_token"])


def queries():
    """Each query of the dashboard with its panel, and why it has no data on a healthy server, if it has none."""
    variables = {"$__rate_interval": RATE_INTERVAL, "$job": ".*", "$instance": ".*", "$rpc": ".*", "$wire": ".*"}
    dashboard = json.loads((HERE.parent / "grafana" / "sessiond.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in variables.items():
                query = query.replace(name, value)
            yield panel["title"], query, next((reason for part, reason in ONLY_ON_FAULTS.items() if part in query), None)


def run_check(name, check):
    """Calls `check` with the server's program, a directory, and the list of processes to stop afterwards. The directory is deleted,
    unless it has a file `kept`."""
    sessiond = str(pathlib.Path(sys.argv[1]).resolve())
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"sessiond-{name}-"))
    # Postgres of root runs under another user, and stores its data below.
    directory.chmod(0o711)
    started = []
    try:
        check(sessiond, directory, started)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            process.wait()
        if not (directory / "kept").exists():
            shutil.rmtree(directory, ignore_errors=True)


def check(sessiond, directory, started):
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    data = directory / "sessiond"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SESSIOND_", "OTEL_", "DATABASE_"))}
    log = open(directory / "log", "wb")
    # Low limits on verify, and connections that are closed soon.
    server = [sessiond, "dev", "--data-dir", data, "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"]
    server += ["--verify-rate=2", "--verify-burst=2", "--idle-timeout=3s", "--backchannel-allow-private=127.0.0.0/8"]
    server += [f"--otlp-endpoint=http://127.0.0.1:{collector.server_port}"]
    started.append(subprocess.Popen(server, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    text = eventually("sessiond dev starts", lambda: (data / "dev.env").read_text())
    env = dict(re.findall(r"^(?:export )?(\w+)='?([^'\n]*)'?$", text, re.MULTILINE))
    client = Client(env)
    for kind in ["logout", "caep"]:
        # Nobody listens there, so every attempt is to be repeated.
        add = ["backchannel", "add", "--project=demo", f"--kind={kind}", f"--url=https://127.0.0.1:1/{kind}", "--audience=app"]
        add += ["--backchannel-allow-private=127.0.0.0/8"]
        database = {**clean, "DATABASE_URL": env["DATABASE_URL"]}
        subprocess.run([sessiond, *add], env=database, stdout=log, stderr=log, check=True)

    port = free_port()
    target = urllib.parse.urlsplit(env["SESSIOND_METRICS_URL"]).netloc
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str((HERE / "alerts.yaml").resolve())],
        "scrape_configs": [{"job_name": "sessiond", "static_configs": [{"targets": [target]}]}],
    }
    # JSON is YAML.
    (directory / "prometheus.yaml").write_text(json.dumps(config))
    prometheus = ["prometheus", f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/prometheus"]
    prometheus += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
    started.append(subprocess.Popen(prometheus, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def ask(path, **parameters):
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    eventually("Prometheus scrapes", lambda: ask("query", query='up{job="sessiond"} == 1')["result"])
    # A subscriber, and a connection that stays idle.
    watch = http.client.HTTPConnection(urllib.parse.urlsplit(client.url).netloc, timeout=60)
    watch.request("GET", "/auth/revocations:watch", headers={"authorization": f"Bearer {client.key}"})
    idle = http.client.HTTPConnection(urllib.parse.urlsplit(client.url).netloc)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    until, number = time.monotonic() + LOAD_SECONDS, 0
    while time.monotonic() < until:
        client.round(number)
        number += 1

    shown, failed = 0, False
    for panel, query, reason in queries():
        result = ask("query", query=query)["result"]
        has_data = any(series["value"][1] != "NaN" for series in result)
        if has_data:
            shown += 1
        elif reason:
            print(f"no data, as expected: {panel}: {reason}")
        else:
            print(f"NO DATA: {panel}: {query}")
            failed = True
    end = time.time()
    metric = "sessiond_request_duration_seconds_bucket"
    exemplars = ask("query_exemplars", query=metric, start=end - 60, end=end)
    print(f"{number} rounds of load; {shown} queries with data; series with exemplars: {len(exemplars)}")
    rules = ask("rules")["groups"]
    broken = [rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "err"]
    if broken:
        print("alert rules that cannot be evaluated:", broken)
    if failed or broken or not exemplars:
        print((directory / "log").read_text(errors="replace")[-4_000:])
        sys.exit(1)


if __name__ == "__main__":
    run_check("dashboard", check)
