// The vectors of all guards (clients/vectors, with a README), decided by the guard for Node. Needs no server.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync, readdirSync } from "node:fs";
import { createServer } from "node:http";
import { connect } from "node:http2";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fastifyApp from "fastify";
import { sessiond as express } from "../packages/guard/dist/express.js";
import { sessiond as fastify } from "../packages/guard/dist/fastify.js";
import { sessiond as hono } from "../packages/guard/dist/hono.js";
import { Time } from "../packages/guard/dist/clock.js";
import { LINE_BYTES_MAX, Progress, StreamReader } from "../packages/guard/dist/follower.js";
import { GuardState, meets } from "../packages/guard/dist/guard.js";
import { Principal, Refusal, bearer } from "../packages/guard/dist/index.js";
import { readKeys } from "../packages/guard/dist/jwks.js";
import { RevokedSet } from "../packages/guard/dist/revocations.js";
import { UNKNOWN_KEY } from "../packages/guard/dist/token.js";
import { Upstream, traceHeaders } from "../packages/guard/dist/upstream.js";

const read = (name) => JSON.parse(readFileSync(new URL(`../../vectors/${name}`, import.meta.url), "utf8"));

class TestClock {
    at = 0;
    ahead = 0;
    constructor(start) {
        this.start = start;
    }
    elapsed = () => this.at;
    now = () => this.start + this.at + this.ahead;
}

function guard({ project, issuer, jwks }, clock, { fail_mode = "reject", max_staleness_ms = 10_000, max_entries = 1_000_000 } = {}) {
    const state = new GuardState({
        url: "http://127.0.0.1:1",
        ...{ project, issuer, clock },
        serverKey: `sdsk_${"a".repeat(64)}`,
        failMode: fail_mode,
        maxStaleness: max_staleness_ms,
        maxEntries: max_entries,
    });
    state.jwks.store(readKeys(JSON.stringify(jwks)), 0, 24 * 3_600_000);
    return state;
}

/** The decision of a guard that has just read the keys. */
function decide(state, token) {
    const decision = state.decide(token);
    if (decision === UNKNOWN_KEY) return Refusal.unparsable();
    if (decision instanceof Principal || decision instanceof Refusal) return decision;
    return state.failMode === "introspect" ? "introspect" : state.decideByFailMode(decision.because, decision.principal);
}

const nameOf = (decision) => (decision instanceof Principal ? "accepted" : decision instanceof Refusal ? decision.reason : decision);

test("vectors: tokens", (t) => {
    const file = read("tokens.json");
    for (const one of file.tokens) {
        const state = guard(file, new TestClock(one.now_ms));
        state.revocations.replace(state.time, state.revocations.set);
        state.revocations.setAge(state.time, 0);
        // Twice, because the second time it is found in the cache.
        for (const how of ["at first", "again"]) {
            let decision = decide(state, one.token);
            const { acr, max_age } = one.require ?? {};
            const requirement = { acr, maxAge: max_age ?? undefined };
            if (decision instanceof Principal && !meets(decision, requirement, state.time.now())) {
                decision = Refusal.insufficientAuthentication(requirement);
            }
            const name = `${one.name} (${how})`;
            assert.equal(nameOf(decision), one.verdict, name);
            if (decision instanceof Principal) {
                assert.deepEqual([decision.userId, decision.sessionId, decision.impersonatorId], [one.user, one.session, one.impersonator], name);
            }
            if (one.expired_at_ms !== undefined) assert.equal(decision.metadata.expired_at_millis, String(one.expired_at_ms), name);
            if (one.expected_project) assert.deepEqual(Object.values(decision.metadata), [one.expected_project, one.actual_project], name);
        }
    }
    t.diagnostic(`${file.tokens.length} tokens`);
});

test("vectors: JWK Sets", (t) => {
    const { sets } = read("jwks.json");
    for (const { name, body, kids } of sets) {
        const keys = readKeys(body);
        assert.deepEqual(keys ? [...keys.keys()] : null, kids, name);
    }
    t.diagnostic(`${sets.length} sets`);
});

test("vectors: clocks", (t) => {
    const { clocks } = read("clock.json");
    for (const { name, steps } of clocks) {
        const now = { at: 0, system: steps[0].system };
        const time = new Time({ elapsed: () => now.at, now: () => now.system });
        for (const step of steps) {
            Object.assign(now, { at: step.at, system: step.system });
            if (step.date !== undefined) assert.equal(time.observe(step.date * 1_000), step.agrees, name);
            assert.equal(time.now(), step.now, `${name} at ${step.at}`);
        }
    }
    t.diagnostic(`${clocks.length} clocks`);
});

function follow(file, stream, isWhole) {
    const clock = new TestClock(file.now_ms);
    const state = guard(file, clock, stream);
    const { time, revocations, maxStaleness, maxEntries } = state;
    const feed = { time, revocations, maxStaleness, maxEntries, replicas: 1 };
    const progress = new Progress();
    let reader;
    const feedBytes = (bytes) => {
        if (isWhole) return reader.read(bytes, clock.at);
        for (const byte of bytes) {
            const end = reader.read(Buffer.of(byte), clock.at);
            if (end) return end;
        }
        return undefined;
    };
    const long = (bytes) => {
        for (let sent = 0; sent < bytes; sent += 65_536) {
            const end = reader.read(Buffer.alloc(65_536, "x"), clock.at);
            if (end) return end;
            assert.ok(sent <= LINE_BYTES_MAX);
        }
        return undefined;
    };
    for (const step of stream.steps) {
        clock.at = step.at;
        const name = `${stream.name}: ${JSON.stringify(step)}`;
        if (step.open !== undefined) {
            assert.equal(reader, undefined, name);
            assert.equal(progress.cursor, step.open, name);
            reader = new StreamReader(feed, progress, clock.at);
        }
        if (step.answer !== undefined) {
            progress.refuse(step.answer, step.body);
            reader = undefined;
        }
        let end;
        if (step.line !== undefined) end = feedBytes(Buffer.from(`${step.line}\n`));
        if (step.line_base64 !== undefined) end = feedBytes(Buffer.concat([Buffer.from(step.line_base64, "base64"), Buffer.from("\n")]));
        if (step.part !== undefined) end = feedBytes(Buffer.from(step.part));
        if (step.long_line !== undefined) end = long(step.long_line);
        assert.equal(end, step.end, name);
        if (end || step.close) reader = undefined;
        if (step.clock_ahead !== undefined) clock.ahead = step.clock_ahead;
        if (step.forget) revocations.set.forget(clock.at);
        if (step.entries !== undefined) assert.equal(revocations.set.size, step.entries, name);
        if (step.token !== undefined) {
            const decision = decide(state, file.tokens[step.token]);
            assert.deepEqual([nameOf(decision), decision.because], [step.verdict, step.because], name);
        }
    }
}

test("vectors: streams", (t) => {
    const recorded = readdirSync(new URL("../../vectors", import.meta.url)).filter((name) => name.startsWith("recorded-"));
    assert.ok(recorded.length > 0);
    for (const name of ["streams.json", ...recorded]) {
        const file = read(name);
        for (const stream of file.streams) {
            follow(file, stream, true);
            follow(file, stream, false);
        }
        t.diagnostic(`${name}: ${file.streams.length} streams, whole and byte by byte`);
    }
});

test("vectors: refusals", (t) => {
    const { refusals, credentials } = read("refusals.json");
    const make = {
        CREDENTIALS_MISSING: Refusal.credentialsMissing,
        UNPARSABLE_ACCESS_TOKEN: Refusal.unparsable,
        ACCESS_TOKEN_EXPIRED: ({ expired_at_ms, project, user, session }) => Refusal.expired(expired_at_ms, project, user, session),
        INVALID_PROJECT_FOR_ACCESS_TOKEN: ({ expected_project, actual_project }) => Refusal.wrongProject(expected_project, actual_project),
        SESSION_REVOKED: Refusal.revoked,
        ACCESS_TOKEN_SUPERSEDED: Refusal.superseded,
        INSUFFICIENT_USER_AUTHENTICATION: ({ acr, max_age }) => Refusal.insufficientAuthentication({ acr, maxAge: max_age ?? undefined }),
        VERIFICATION_UNAVAILABLE: () => Refusal.unavailable("stale_feed"),
    };
    for (const { reason, given, status, headers, body } of refusals) {
        const response = make[reason](given).response();
        assert.deepEqual({ ...response, body: JSON.parse(response.body) }, { status, headers, body }, reason);
    }
    for (const { headers, token, verdict } of credentials) {
        if (verdict) assert.throws(() => bearer(headers), (refusal) => refusal.reason === verdict);
        else assert.equal(bearer(headers) ?? null, token, headers[0]);
    }
    t.diagnostic(`${refusals.length} refusals, ${credentials.length} credentials`);
});

test("the beginning of a line takes the memory of its bytes, however small the pieces", () => {
    setFlagsFromString("--expose-gc");
    const used = () => {
        runInNewContext("gc")();
        const { heapUsed, arrayBuffers } = process.memoryUsage();
        return heapUsed + arrayBuffers;
    };
    const file = read("streams.json");
    const { time, revocations, maxStaleness, maxEntries } = guard(file, new TestClock(0));
    const reader = new StreamReader({ time, revocations, maxStaleness, maxEntries, replicas: 1 }, new Progress(), 0);
    const before = used();
    for (let pieces = 0; pieces < 400_000; pieces += 1) assert.equal(reader.read(Buffer.from("xx"), 0), undefined);
    const grown = used() - before;
    assert.ok(grown < 4_000_000, `${grown} bytes`);
    assert.equal(reader.read(Buffer.from("x\n"), 0), "malformed");
});

const PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

test("a call to sessiond carries a trace, if there is one of each header", async () => {
    const long = "x".repeat(513);
    for (const [trace, expected] of [
        [{ traceparent: PARENT, tracestate: "a=1" }, { traceparent: PARENT, tracestate: "a=1" }],
        [{ traceparent: PARENT }, { traceparent: PARENT }],
        [{ tracestate: "a=1" }, {}],
        [{ traceparent: PARENT, tracestate: long }, { traceparent: PARENT }],
        [{ traceparent: long, tracestate: "a=1" }, {}],
        [{ traceparent: "a\r\nb: c" }, {}],
        [{}, {}],
    ]) {
        assert.deepEqual(traceHeaders(trace), expected);
    }
    const seen = [];
    const of = { verify: async (token, trace) => seen.push([token, trace]), require: () => undefined, countRefusal: () => undefined };
    const all = { authorization: "Bearer a.b.c", traceparent: PARENT, tracestate: "a=1" };
    await new Promise((next) => express(of)({ rawHeaders: Object.entries(all).flat() }, {}, next));
    await hono(of)({ req: { header: (name) => all[name] }, set: () => undefined }, () => undefined);
    // A test's request, and one over HTTP/2, are not quite those of Node's HTTP/1.1.
    for (const http2 of [false, true]) {
        const app = fastifyApp({ http2 });
        await app.register(fastify, { guard: of });
        app.get("/", () => "");
        const origin = http2 && (await app.listen({ port: 0 }));
        const statusOf = async (headers) => (http2 ? overHttp2(origin, headers) : (await app.inject({ url: "/", headers })).statusCode);
        for (const headers of [all, { ...all, traceparent: [PARENT, PARENT] }]) assert.equal(await statusOf(headers), 200);
        await app.close();
    }
    const expected = ["a.b.c", { traceparent: PARENT, tracestate: "a=1" }];
    assert.deepEqual(seen.filter((_, at) => ![3, 5].includes(at)), [expected, expected, expected, expected]);
    // More than one is none.
    for (const at of [3, 5]) assert.deepEqual(traceHeaders(seen[at][1]), {});
});

/** The status of a request over HTTP/2 without TLS. */
async function overHttp2(origin, headers) {
    const session = connect(origin);
    const request = session.request({ ":path": "/", ...headers });
    request.resume().end();
    const [{ ":status": status }] = await once(request, "response");
    session.close();
    return status;
}

test("a step-up requirement is a list, and nobody meets it without a token", () => {
    const principal = { claims: { acr: "aal" } };
    assert.equal(meets(principal, { acr: ["aal"] }, 0), true);
    assert.throws(() => meets(principal, { acr: "aal2" }, 0), TypeError);
});

test("session ids whose last words are equal are found at once", () => {
    const set = new RevokedSet();
    const id = (number) => `${number.toString(16).padStart(8, "0")}-0000-7000-8000-000000000000`;
    for (let number = 0; number < 300_000; number += 1) set.insert({ kind: "session", session: id(number) }, 1e9);
    assert.equal(set.size, 300_000);
    assert.ok(set.has({ sessionId: id(299_999), userId: "ada", kid: "", claims: { epoch: [0, 0] } }));
});

test("the table of sessions forgets what has expired, and nothing else", () => {
    const [set, expected] = [new RevokedSet(), new Map()];
    // Few different last words, so that entries displace each other.
    let seed = 1;
    const random = (below) => (seed = (seed * 48_271) % 2_147_483_647) % below;
    const id = () => `01990000-0000-7000-8000-00000000${(random(6_000) + 0xf000).toString(16)}`;
    const has = (sessionId) => set.has({ sessionId, userId: "ada", kid: "", claims: { epoch: [0, 0] } });
    for (let now = 1; now <= 60; now += 1) {
        for (let count = random(3_000); count > 0; count -= 1) {
            const [session, until] = [id(), now + random(20)];
            set.insert({ kind: "session", session }, until * 1_000);
            expected.set(session, Math.max(until, expected.get(session) ?? 0));
        }
        set.forget(now * 1_000);
        for (const [session, until] of expected) if (until <= now) expected.delete(session);
        assert.equal(set.size, expected.size);
        for (let count = 0; count < 2_000; count += 1) {
            const session = id();
            assert.equal(has(session), expected.has(session), session);
        }
    }
    set.forget(100_000);
    assert.equal(set.size, 0);
});

test("a request is repeated when the server has closed the idle connection", async () => {
    // Closes a connection when its second request arrives.
    const used = new WeakSet();
    const server = createServer(({ socket }, response) => {
        if (used.has(socket)) return void socket.destroy();
        used.add(socket);
        response.end("{}");
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const upstream = new Upstream({ endpoints: [`http://127.0.0.1:${server.address().port}`], project: "demo", issuer: "http://a/projects/demo" });
    try {
        for (let count = 0; count < 4; count += 1) {
            assert.equal((await upstream.send(upstream.replicas[0], "POST", "/", {}, "{}")).status, 200);
            // The connection becomes idle.
            await new Promise((next) => setImmediate(next));
        }
    } finally {
        upstream.close();
        server.close();
        server.closeAllConnections();
    }
});
