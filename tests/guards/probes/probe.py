"""A guarded service for the fault tests and the benchmark: see README.md. One event loop, and the guard's threads."""

import asyncio
import ctypes
import json
import logging
import os
import resource
import ssl
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../../clients/python/src"))

from sessiond_guard import Guard, Refusal  # noqa: E402
from sessiond_guard.check import Route, check_async, trace_of  # noqa: E402
from sessiond_guard.clock import Clock  # noqa: E402

OPTIONS = json.loads(os.environ["PROBE"])
logging.basicConfig(level=logging.WARNING if os.environ.get("PROBE_LOG") else logging.CRITICAL)


class ProbeClock(Clock):
    ahead = 0

    def now(self):
        return super().now() + self.ahead


TLS = ssl.create_default_context(cafile=OPTIONS["caFile"]) if "caFile" in OPTIONS else None
if "certificateFile" in OPTIONS:
    TLS.load_cert_chain(OPTIONS["certificateFile"], OPTIONS["keyFile"])
CLOCK = ProbeClock()
BEGUN = time.monotonic()
GUARD = Guard.connect(
    OPTIONS.get("urls", OPTIONS["url"]),
    OPTIONS["project"],
    OPTIONS.get("serverKey"),
    OPTIONS["issuer"],
    max_staleness=OPTIONS.get("maxStalenessMs", 10_000) / 1_000,
    fail_mode=OPTIONS.get("failMode", "reject"),
    max_entries=OPTIONS.get("maxEntries", 1_000_000),
    tls=TLS,
    clock=CLOCK,
    startup_timeout=OPTIONS.get("startupTimeoutMs", 20_000) / 1_000,
)
READY_MS = (time.monotonic() - BEGUN) * 1_000


def rss_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def is_revoked(token):
    try:
        GUARD.verify_now(token)
    except Refusal as refusal:
        return refusal.reason == "SESSION_REVOKED"
    return False


async def refused(token):
    """Watches a token until it is refused. Returns the time, in nanoseconds of Unix time."""
    begun_at = time.monotonic()
    while time.monotonic() - begun_at < 30:
        if is_revoked(token):
            return time.time_ns()
        await asyncio.sleep(0.001)
    return None


def timed(token):
    """The time of one verification of a known token, in nanoseconds: the median of rounds."""
    rounds, raw = [], token.encode()
    for _ in range(50):
        begun_at = time.perf_counter_ns()
        # Another text each time, as from the network.
        for _ in range(1_000):
            GUARD.verify_now(raw.decode())
        rounds.append((time.perf_counter_ns() - begun_at) / 1_000)
    return sorted(rounds)[25]


def hold_the_gil(ms):
    # A call through PyDLL keeps the GIL.
    ctypes.PyDLL(None).usleep(int(ms) * 1_000)


async def answer(path, query, token, content, values):
    """The status and the body."""
    if path == "/stats":
        stats = GUARD.stats()._asdict()
        staleness = stats.pop("staleness")
        stats["stalenessMs"] = None if staleness is None else staleness * 1_000
        return 200, {**stats, "rssBytes": rss_bytes(), "readyMs": READY_MS}
    if path == "/clock":
        CLOCK.ahead = float(query["ahead_ms"])
        return 200, {}
    if path == "/block":
        hold_the_gil(float(query["ms"]))
        return 200, {}
    if path == "/refused":
        return 200, {"nanos": await refused(token)}
    if path == "/missed":
        return 200, {"missed": sum(not is_revoked(one) for one in json.loads(content))}
    if path == "/time":
        return 200, {"nanos": timed(token)}
    try:
        principal = await check_async(GUARD, [f"Bearer {token}"], Route(), trace_of(values))
        return 200, principal.user_id
    except Refusal as refusal:
        return refusal.status, json.loads(refusal.response().body)


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path, _, query = head[0].split(" ")[1].partition("?")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            raw = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
            token = next((value[7:] for name, value in raw.items() if name.lower() == "authorization"), "")
            content = await reader.readexactly(int(headers.get("content-length", 0)))
            status, body = await answer(path, dict(one.split("=") for one in query.split("&") if one), token, content, lambda name: [headers[name]] if name in headers else [])
            text = json.dumps(body).encode()
            writer.write(b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n\r\n" % (status, len(text)) + text)
            await writer.drain()
            if headers.get("connection") == "close":
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent closes it.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    await server.serve_forever()


asyncio.run(main())
