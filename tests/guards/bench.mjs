// What the guards cost, each in a process of its own and all in one run, the guard for Rust and the sidecar among them. With a release
// build of the server: `SESSIOND_BIN=target/release/sessiond tests/guards/run bench`.
//
// - From the 200 of a sign-out to the refusal in the guard's process: sign-outs at a steady rate; the guard's process checks each
//   token a thousand times a second from before the sign-out until it is refused, and reports the time; both processes use the same
//   machine's clock. A refusal before the 200 counts as zero. The sidecar is asked over loopback from the 200 on, so its numbers
//   have a request and its response in them.
// - The time of one verification of a known token; of the sidecar, one request.
// - A snapshot of a million revocations from the server: until the guard is ready, and the memory of each.
// - The memory of the process when it has begun, and after the sign-outs.
//
// | setting | default | |
// |---|---|---|
// | `GUARDS_SIGN_OUTS` | 2500 | the number of sign-outs for each guard |
// | `GUARDS_RATE` | 500 | sign-outs a second |
// | `GUARDS_REVOCATIONS` | 1000000 | revocations in the snapshot |
// | `GUARDS` | all | some of `rust,sidecar,node,python,go` |

import http from "node:http";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ALL, Sessiond, inParallel, persistently, sleep, startGuard } from "./lib.mjs";

const setting = (name, otherwise) => Number(process.env[name] ?? otherwise);
const [SIGN_OUTS, RATE, REVOCATIONS] = [setting("GUARDS_SIGN_OUTS", 2_500), setting("GUARDS_RATE", 500), setting("GUARDS_REVOCATIONS", 1_000_000)];
const GUARDS = process.env.GUARDS?.split(",") ?? ALL;
const WATCHED_BEFORE_MS = 20;
const UNDER_WAY_MAX = 256;

const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "bench-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"), ["--access-token-ttl", "1h"]);
const options = {
    ...{ url: server.url, project: server.project, issuer: server.url, serverKey: server.verifierKey },
    ...{ maxStalenessMs: 10_000, maxEntries: 2 * REVOCATIONS, startupTimeoutMs: 60_000 },
};
const agent = new http.Agent({ keepAlive: true, maxSockets: UNDER_WAY_MAX });

/** Signs out at a steady rate. Returns the delays, and how many were never refused. */
async function propagation(guarded, tokens) {
    const delays = [];
    let missed = 0;
    const begun = performance.now() + WATCHED_BEFORE_MS;
    await inParallel(tokens.length, UNDER_WAY_MAX, async (at) => {
        const due = begun + (at * 1_000) / RATE;
        await sleep(Math.max(0, due - WATCHED_BEFORE_MS - performance.now()));
        let tell;
        const refused = guarded.refused(tokens[at], new Promise((resolve) => (tell = resolve)));
        await sleep(Math.max(0, due - performance.now()));
        await persistently(`${server.url}/auth/sessions/current`, { method: "DELETE", token: tokens[at], timeoutMs: 60_000, agent });
        const signedOut = performance.timeOrigin + performance.now();
        tell();
        const refusedAt = await refused;
        if (refusedAt) delays.push(Math.max(0, refusedAt - signedOut));
        else missed += 1;
    });
    delays.sort((one, other) => one - other);
    const reached = tokens.length / ((performance.now() - begun) / 1_000);
    const percentile = (percent) => delays[Math.min(delays.length - 1, Math.floor((delays.length * percent) / 100))].toFixed(2);
    return { "median ms": percentile(50), "p99 ms": percentile(99), "max ms": percentile(100), missed, "per second": Math.round(reached) };
}

const rows = {};
const mebibytes = (bytes) => (bytes / 1_048_576).toFixed(1);
const begun = {};
for (const guard of GUARDS) {
    const guarded = await startGuard(guard, options);
    const { rssBytes: before } = await guarded.stats();
    const tokens = [];
    await inParallel(SIGN_OUTS + 200, 16, async () => tokens.push((await server.signIn(undefined, {}, agent)).access_token));
    const warm = tokens.splice(0, 200);
    await propagation(guarded, warm.slice(1));
    rows[guard] = await propagation(guarded, tokens);
    rows[guard]["known token µs"] = (await guarded.time(warm[0])).toFixed(2);
    const { rssBytes: after } = await guarded.stats();
    begun[guard] = before;
    Object.assign(rows[guard], { "MiB at first": mebibytes(before), "MiB then": mebibytes(after) });
    await guarded.stop();
}

// As sessiond would have written them.
server.sql(`WITH writer AS (INSERT INTO feed_writers (id, opened_at) VALUES (7, now()) RETURNING id)
    INSERT INTO revocations (project_id, id, at, reason, session_id, user_id, access_expires_at, actor, writer, seq)
    SELECT '${server.project}', gen_random_uuid(), now(), 1, gen_random_uuid(), 'user-' || n, now() + interval '1 hour', 1, writer.id, n
    FROM writer, generate_series(1, ${REVOCATIONS}) AS n`);
await server.stop();
await server.run();
for (const guard of GUARDS) {
    const guarded = await startGuard(guard, options);
    const { rssBytes, readyMs, entries } = await guarded.stats();
    Object.assign(rows[guard], { "snapshot s": (readyMs / 1_000).toFixed(1), "bytes each": Math.round((rssBytes - begun[guard]) / entries) });
    console.log(guard, rows[guard], entries);
    await guarded.stop();
}
console.log(`${SIGN_OUTS} sign-outs for each guard, ${RATE} a second; a snapshot of ${REVOCATIONS} and them`);
console.table(rows);
agent.destroy();
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
process.exit();
