"""What the vectors do not show. Needs no server."""

import asyncio
import socket
import threading
import time
import tracemalloc
import unittest

from django.conf import settings
from django.http import HttpResponse

settings.configure(ALLOWED_HOSTS=["*"], SESSIOND_GUARD={})

from django.test import RequestFactory  # noqa: E402
from sessiond_guard import Trace, asgi, django, wsgi  # noqa: E402
from sessiond_guard.follower import Progress, StreamReader  # noqa: E402
from sessiond_guard.guard import Guard, GuardState, meets  # noqa: E402
from sessiond_guard.refusal import Refusal, Requirement  # noqa: E402
from sessiond_guard.upstream import Replica, Unavailable, trace_headers  # noqa: E402

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Memory(unittest.TestCase):
    def test_the_beginning_of_a_line_takes_the_memory_of_its_bytes(self):
        state = GuardState("demo", "https://sessions.example.org")
        reader = StreamReader(state.feed, Progress(), 0)
        pieces = [b"ab", b"cd"] * 1_000
        tracemalloc.start()
        for _ in range(200):
            for piece in pieces:
                # Another object each time, as from the network.
                self.assertIsNone(reader.read(bytes(bytearray(piece)), 0))
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.assertLess(grown, 4_000_000)
        self.assertEqual(reader.read(b"x\n", 0), "malformed")


class Slow(unittest.TestCase):
    """A server that responds a byte at a time, and never gets further."""

    def setUp(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.server.close)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.trickle, args=(connection,), daemon=True).start()

    def trickle(self, connection):
        with connection:
            try:
                while True:
                    connection.sendall(b"H")
                    time.sleep(0.1)
            except OSError:
                pass

    def test_a_request_ends_in_time(self):
        for scheme in ("http", "https"):
            replica = Replica(f"{scheme}://127.0.0.1:{self.server.getsockname()[1]}", None)
            begun = time.monotonic()
            with self.assertRaises(Unavailable):
                replica.send("GET", "/")
            self.assertLess(time.monotonic() - begun, 3)


class Traces(unittest.TestCase):
    def test_a_call_to_sessiond_carries_one_of_each_header(self):
        long = "x" * 513
        for trace, expected in (
            (Trace(PARENT, "a=1"), {"traceparent": PARENT, "tracestate": "a=1"}),
            (Trace(PARENT), {"traceparent": PARENT}),
            (Trace(None, "a=1"), {}),
            (Trace(PARENT, long), {"traceparent": PARENT}),
            (Trace(long, "a=1"), {}),
            (Trace("a\r\nb: c"), {}),
            (None, {}),
        ):
            self.assertEqual(trace_headers(trace), expected)

    def test_the_middleware_passes_it_on(self):
        seen = []

        class Watched:
            def verify(self, token, trace=None):
                seen.append((token, trace))

            async def verify_async(self, token, trace=None):
                seen.append((token, trace))

            def require(self, principal, acr=(), max_age=None):
                pass

        headers = {"authorization": "Bearer a.b.c", "traceparent": PARENT, "tracestate": "a=1"}

        async def app(scope, receive, send):
            pass

        scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        asyncio.run(asgi.SessiondMiddleware(app, Watched())(scope, None, None))
        environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        wsgi.SessiondMiddleware(lambda environ, start: [], Watched())(environ, None)
        django._guard = Watched()
        django.SessiondMiddleware(lambda request: HttpResponse())(RequestFactory().get("/", **environ))
        self.assertEqual(seen, [("a.b.c", Trace(PARENT, "a=1"))] * 3)
        # More than one is none.
        scope["headers"].append((b"traceparent", PARENT.encode()))
        asyncio.run(asgi.SessiondMiddleware(app, Watched())(scope, None, None))
        self.assertEqual(trace_headers(seen[3][1]), {})


class Introspections(unittest.TestCase):
    def guard(self, permits):
        guard = Guard.__new__(Guard)
        guard._state = GuardState("demo", "https://sessions.example.org")
        guard._introspections, guard._executor = threading.Semaphore(permits), None
        guard._counts = dict.fromkeys(("introspections",), 0)
        guard._upstream = self
        return guard

    def introspect(self, token, trace):
        time.sleep(0.2)
        raise Unavailable("away")

    def test_what_exceeds_the_bound_is_refused_before_it_is_queued(self):
        guard = self.guard(2)

        async def ask():
            begun = time.monotonic()
            refusal = await guard._introspect_async("a.b.c", None, None)
            self.assertEqual(refusal.reason, "VERIFICATION_UNAVAILABLE")
            return time.monotonic() - begun

        async def main():
            times = sorted(await asyncio.gather(*(ask() for _ in range(5))))
            self.assertTrue(times[2] < 0.2 <= times[3], times)
            # A request that is cancelled gives its permit back, and so does one after the guard is closed.
            task = asyncio.ensure_future(ask())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            guard._executor.shutdown()
            await ask()

        asyncio.run(main())
        self.assertTrue(all(guard._introspections.acquire(blocking=False) for _ in range(2)))


class StepUp(unittest.TestCase):
    def test_nobody_has_authenticated(self):
        guard = Guard.__new__(Guard)
        guard._state, guard._counts = GuardState("demo", "https://sessions.example.org"), {"refused": 0}
        with self.assertRaises(Refusal) as caught:
            guard.require(None, acr=["aal2"])
        self.assertEqual(caught.exception.reason, "CREDENTIALS_MISSING")

    def test_a_text_is_no_list_of_values(self):
        with self.assertRaises(TypeError):
            meets(None, Requirement("aal2"), 0)


if __name__ == "__main__":
    unittest.main()
