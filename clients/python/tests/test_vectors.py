"""The vectors of all guards (clients/vectors, with a README), decided by the guard for Python. Needs no server."""

import base64
import json
import pathlib
import unittest

from sessiond_guard.clock import Clock, Time
from sessiond_guard.follower import LINE_BYTES_MAX, Progress, StreamReader
from sessiond_guard.guard import GuardState, meets
from sessiond_guard.jwks import read_keys
from sessiond_guard.refusal import Refusal, Requirement, bearer
from sessiond_guard.token import UNKNOWN_KEY, Principal

VECTORS = pathlib.Path(__file__).parents[2] / "vectors"


def read(name):
    return json.loads((VECTORS / name).read_text())


class FixedClock(Clock):
    def __init__(self, start):
        self.start, self.at, self.ahead = start, 0, 0

    def elapsed(self):
        return self.at

    def now(self):
        return self.start + self.at + self.ahead


class SetClock(Clock):
    def __init__(self, system):
        self.at, self.system = 0, system

    def elapsed(self):
        return self.at

    def now(self):
        return self.system


def guard_of(file, clock, settings=None):
    settings = settings or {}
    state = GuardState(
        file["project"],
        file["issuer"],
        settings.get("max_staleness_ms", 10_000) / 1_000,
        settings.get("fail_mode", "reject"),
        settings.get("max_entries", 1_000_000),
        clock=clock,
    )
    state.jwks.store(read_keys(json.dumps(file["jwks"]).encode()), 0, 24 * 3_600_000)
    return state


def decide(state, token):
    """The decision of a guard that has just read the keys."""
    decision = state.decide(token)
    if decision == UNKNOWN_KEY:
        return Refusal.unparsable()
    if not isinstance(decision, tuple):
        return decision
    return "introspect" if state.fail_mode == "introspect" else state.decide_by_fail_mode(*decision)


def name_of(decision):
    if isinstance(decision, Principal):
        return "accepted"
    return decision.reason if isinstance(decision, Refusal) else decision


class Vectors(unittest.TestCase):
    def test_tokens(self):
        file = read("tokens.json")
        for case in file["tokens"]:
            state = guard_of(file, FixedClock(case["now_ms"]))
            state.revocations.replace(state.time, state.revocations.set)
            state.revocations.set_age(state.time, 0)
            # Twice, because the second time it is found in the cache.
            for how in ("at first", "again"):
                with self.subTest(case["name"], how=how):
                    decision = decide(state, case["token"])
                    asked = case.get("require") or {}
                    requirement = Requirement(asked.get("acr", ()), asked.get("max_age"))
                    if isinstance(decision, Principal) and not meets(decision, requirement, state.time.now()):
                        decision = Refusal.insufficient_authentication(requirement)
                    self.assertEqual(name_of(decision), case["verdict"])
                    if isinstance(decision, Principal):
                        found = (decision.user_id, decision.session_id, decision.impersonator_id)
                        self.assertEqual(found, tuple(case.get(name) for name in ("user", "session", "impersonator")))
                    if "expired_at_ms" in case:
                        self.assertEqual(decision.metadata["expired_at_millis"], str(case["expired_at_ms"]))
                    if "expected_project" in case:
                        projects = [case["expected_project"], case["actual_project"]]
                        self.assertEqual(list(decision.metadata.values()), projects)

    def test_jwks(self):
        for case in read("jwks.json")["sets"]:
            with self.subTest(case["name"]):
                keys = read_keys(case["body"].encode())
                self.assertEqual(None if keys is None else list(keys), case["kids"])

    def test_clocks(self):
        for case in read("clock.json")["clocks"]:
            clock = SetClock(case["steps"][0]["system"])
            time = Time(clock)
            for step in case["steps"]:
                with self.subTest(case["name"], at=step["at"]):
                    clock.at, clock.system = step["at"], step["system"]
                    if "date" in step:
                        self.assertEqual(time.observe(step["date"] * 1_000), step["agrees"])
                    self.assertEqual(time.now(), step["now"])

    def test_streams(self):
        recorded = [path.name for path in VECTORS.glob("recorded-*.json")]
        self.assertTrue(recorded)
        for name in ("streams.json", *recorded):
            file = read(name)
            for stream in file["streams"]:
                for is_whole in (True, False):
                    self.follow(file, stream, is_whole)

    def follow(self, file, stream, is_whole):
        clock = FixedClock(file["now_ms"])
        state = guard_of(file, clock, stream)
        progress, reader = Progress(), None

        def feed(chunk):
            chunks = [chunk] if is_whole else [bytes([byte]) for byte in chunk]
            return next((end for end in (reader.read(one, clock.at) for one in chunks) if end), None)

        def long(size):
            for sent in range(0, size, 65_536):
                end = reader.read(b"x" * 65_536, clock.at)
                if end is not None:
                    return end
                self.assertLessEqual(sent, LINE_BYTES_MAX)
            return None

        for step in stream["steps"]:
            with self.subTest(stream["name"], step=step, is_whole=is_whole):
                clock.at, end = step["at"], None
                if "open" in step:
                    self.assertIsNone(reader)
                    self.assertEqual(progress.cursor, step["open"])
                    reader = StreamReader(state.feed, progress, clock.at)
                if "answer" in step:
                    progress.refuse(step["answer"], step["body"])
                    reader = None
                if "line" in step:
                    end = feed(step["line"].encode() + b"\n")
                if "line_base64" in step:
                    end = feed(base64.b64decode(step["line_base64"]) + b"\n")
                if "part" in step:
                    end = feed(step["part"].encode())
                if "long_line" in step:
                    end = long(step["long_line"])
                self.assertEqual(end, step.get("end"))
                if end is not None or "close" in step:
                    reader = None
                clock.ahead = step.get("clock_ahead", clock.ahead)
                if "forget" in step:
                    state.revocations.set.forget(clock.at)
                if "entries" in step:
                    self.assertEqual(len(state.revocations.set), step["entries"])
                if "token" in step:
                    decision = decide(state, file["tokens"][step["token"]])
                    found = (name_of(decision), getattr(decision, "because", None))
                    self.assertEqual(found, (step["verdict"], step.get("because")))

    def test_refusals(self):
        file = read("refusals.json")
        make = {
            "CREDENTIALS_MISSING": Refusal.credentials_missing,
            "UNPARSABLE_ACCESS_TOKEN": Refusal.unparsable,
            "ACCESS_TOKEN_EXPIRED": lambda **given: Refusal.expired(*(given[name] for name in ("expired_at_ms", "project", "user", "session"))),
            "INVALID_PROJECT_FOR_ACCESS_TOKEN": lambda **given: Refusal.wrong_project(given["expected_project"], given["actual_project"]),
            "SESSION_REVOKED": Refusal.revoked,
            "ACCESS_TOKEN_SUPERSEDED": Refusal.superseded,
            "INSUFFICIENT_USER_AUTHENTICATION": lambda **given: Refusal.insufficient_authentication(Requirement(**given)),
            "VERIFICATION_UNAVAILABLE": lambda: Refusal.unavailable("stale_feed"),
        }
        for case in file["refusals"]:
            with self.subTest(case["reason"]):
                response = make[case["reason"]](**case.get("given", {})).response()
                found = (response.status, dict(response.headers), json.loads(response.body))
                self.assertEqual(found, (case["status"], case["headers"], case["body"]))
        for case in file["credentials"]:
            with self.subTest(case["headers"]):
                if "verdict" in case:
                    with self.assertRaises(Refusal) as caught:
                        bearer(case["headers"])
                    self.assertEqual(caught.exception.reason, case["verdict"])
                else:
                    self.assertEqual(bearer(case["headers"]), case["token"])


if __name__ == "__main__":
    unittest.main()
