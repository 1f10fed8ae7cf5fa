// What the guards cost, each in a process of its own: `tests/guards/run bench`. With a release build of the server:
// `SESSIOND_BIN=target/release/sessiond tests/guards/run bench`.
//
// - From the 200 of a sign-out to the refusal in the guard's process: sign-outs at a steady rate; the guard's process checks each
//   token a thousand times a second from before the sign-out until it is refused, and reports the time; both processes use the same
//   machine's clock. A refusal before the 200 counts as zero.
// - The time of one verification of a known token.
// - A snapshot of a million revocations: until the guard is ready, and the memory of each.
//
// | setting | default | |
// |---|---|---|
// | `GUARDS_SIGN_OUTS` | 1000 | the number of sign-outs for each guard; 100000 for the long run |
// | `GUARDS_RATE` | 500 | sign-outs a second |
// | `GUARDS_REVOCATIONS` | 1000000 | revocations in the snapshot |

import http from "node:http";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GUARDS, Probe, Relay, Sessiond, call, sleep } from "./lib.mjs";

const setting = (name, otherwise) => Number(process.env[name] ?? otherwise);
const [SIGN_OUTS, RATE, REVOCATIONS] = [setting("GUARDS_SIGN_OUTS", 1_000), setting("GUARDS_RATE", 500), setting("GUARDS_REVOCATIONS", 1_000_000)];
const WATCHED_BEFORE_MS = 20;
const UNDER_WAY_MAX = 256;

const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "bench-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"), ["--access-token-ttl", "1h"]);
const relay = await Relay.open(server);
const options = (url) => ({ url, project: server.project, issuer: server.url, serverKey: server.verifierKey, maxStalenessMs: 10_000, maxEntries: 2 * REVOCATIONS });
const agent = new http.Agent({ keepAlive: true, maxSockets: UNDER_WAY_MAX });
const watching = new http.Agent({ keepAlive: true, maxSockets: 4 * UNDER_WAY_MAX });

/** Repeats a call whose connection was closed: all of them may be repeated. */
async function persistently(url, more) {
    for (let attempt = 0; ; attempt += 1) {
        try {
            return await call(url, more);
        } catch (error) {
            if (attempt === 5) throw error;
        }
    }
}

async function inParallel(count, width, act) {
    let next = 0;
    await Promise.all(Array.from({ length: width }, async () => {
        for (let at = next++; at < count; at = next++) await act(at);
    }));
}

/** Signs out at a steady rate. Returns the delays, and how many were never refused. */
async function propagation(probe, tokens) {
    const delays = [];
    let missed = 0;
    const begun = performance.now() + WATCHED_BEFORE_MS;
    await inParallel(tokens.length, UNDER_WAY_MAX, async (at) => {
        const due = begun + (at * 1_000) / RATE;
        await sleep(Math.max(0, due - WATCHED_BEFORE_MS - performance.now()));
        const refused = persistently(`${probe.url}/refused`, { token: tokens[at], timeoutMs: 60_000, agent: watching });
        await sleep(Math.max(0, due - performance.now()));
        await persistently(`${server.url}/auth/sessions/current`, { method: "DELETE", token: tokens[at], timeoutMs: 60_000, agent });
        const signedOut = performance.timeOrigin + performance.now();
        const { nanos } = (await refused).body;
        if (nanos) delays.push(Math.max(0, nanos / 1e6 - signedOut));
        else missed += 1;
    });
    delays.sort((one, other) => one - other);
    const reached = tokens.length / ((performance.now() - begun) / 1_000);
    const percentile = (percent) => delays[Math.min(delays.length - 1, Math.floor((delays.length * percent) / 100))].toFixed(2);
    return { "median ms": percentile(50), "p99 ms": percentile(99), "max ms": percentile(100), missed, "per second": Math.round(reached) };
}

/** A snapshot as sessiond sends it, in lines of a thousand revocations. */
function snapshot(response) {
    const id = (number) => `01990000-0000-7000-8${(number % 4_096).toString(16).padStart(3, "0")}-${(number * 2_654_435_761 % 2 ** 40).toString(16).padStart(12, "0")}`;
    const entry = (at) => `{"session_id":"${id(at)}","user_id":"user-${at}","revoked_at":"2026-11-27T18:00:00.123456Z","reason":"REVOKE_REASON_SIGNED_OUT","retain_seconds":901}`;
    let at = 0;
    response.write('{"snapshot_begin":{"reason":"SNAPSHOT_REASON_NO_CURSOR"}}\n');
    const go = () => {
        while (at < REVOCATIONS && !response.destroyed) {
            const batch = Array.from({ length: 1_000 }, (_, index) => entry(at + index));
            at += 1_000;
            if (!response.write(`{"revocations":{"revocations":[${batch}]}}\n`)) return void response.once("drain", go);
        }
        response.write('{"snapshot_complete":{},"cursor":"x"}\n{"heartbeat":{"age_ms":0}}\n');
    };
    go();
}

const rows = {};
for (const guard of Object.keys(GUARDS)) {
    const probe = await Probe.start(guard, options(server.url));
    const tokens = [];
    await inParallel(SIGN_OUTS + 100, 16, async () => tokens.push((await server.signIn()).access_token));
    const warm = tokens.splice(0, 100);
    await propagation(probe, warm.slice(1));
    rows[guard] = await propagation(probe, tokens);
    rows[guard]["known token µs"] = ((await probe.ask("/time", warm[0])).nanos / 1_000).toFixed(2);
    const { rssBytes: empty } = await probe.stats();
    await probe.stop();
    relay.stream = snapshot;
    const full = await Probe.start(guard, { ...options(relay.url), startupTimeoutMs: 60_000 });
    relay.stream = undefined;
    const { rssBytes, readyMs, entries } = await full.stats();
    rows[guard]["snapshot s"] = (readyMs / 1_000).toFixed(1);
    rows[guard]["bytes each"] = Math.round((rssBytes - empty) / entries);
    await full.stop();
    console.log(guard, rows[guard], entries);
}
console.log(`${SIGN_OUTS} sign-outs for each guard, ${RATE} a second; a snapshot of ${REVOCATIONS}`);
console.table(rows);
relay.close();
agent.destroy();
watching.destroy();
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
