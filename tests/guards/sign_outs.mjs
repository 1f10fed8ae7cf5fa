// Sign-outs at a steady rate, with every guard at once: none may be missed by any of them. A second after each hundred, every guard is
// asked about each of their tokens; those that it does not refuse as signed out are late, and missed if it still does not at the end.
//
// | setting | default | |
// |---|---|---|
// | `GUARDS_SIGN_OUTS` | 500 | the number of sign-outs; 100000 for the long run |
// | `GUARDS_RATE` | 500 | sign-outs a second |

import assert from "node:assert/strict";
import http from "node:http";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ALL, Sessiond, inParallel, persistently, sleep, startGuard } from "./lib.mjs";

const setting = (name, otherwise) => Number(process.env[name] ?? otherwise);
const [SIGN_OUTS, RATE] = [setting("GUARDS_SIGN_OUTS", 500), setting("GUARDS_RATE", 500)];
const BATCH = 100;
const UNDER_WAY_MAX = 256;
const LATE_MS = 1_000;

const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "sign-outs-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"), ["--access-token-ttl", "1h"]);
const options = {
    ...{ url: server.url, project: server.project, issuer: server.url, serverKey: server.verifierKey },
    ...{ maxStalenessMs: 10_000, maxEntries: 1_000_000 },
};
const guards = await Promise.all(ALL.map((guard) => startGuard(guard, options)));
const agent = new http.Agent({ keepAlive: true, maxSockets: UNDER_WAY_MAX });

const tokens = [];
await inParallel(SIGN_OUTS, 16, async () => tokens.push((await server.signIn(undefined, {}, agent)).access_token));

const [late, missed] = [guards.map(() => []), guards.map(() => 0)];
const checks = [];
/** Asks every guard about tokens that were signed out. */
async function check(batch) {
    await sleep(LATE_MS);
    await Promise.all(guards.map(async (guarded, at) => {
        if ((await guarded.missed(batch)) > 0) late[at].push(batch);
    }));
}

const begun = performance.now();
const signedOut = Array.from({ length: Math.ceil(SIGN_OUTS / BATCH) }, () => 0);
await inParallel(SIGN_OUTS, UNDER_WAY_MAX, async (at) => {
    await sleep(Math.max(0, begun + (at * 1_000) / RATE - performance.now()));
    const { status } = await persistently(`${server.url}/auth/sessions/current`, { method: "DELETE", token: tokens[at], timeoutMs: 60_000, agent });
    assert.equal(status, 200);
    const number = Math.floor(at / BATCH);
    const batch = tokens.slice(number * BATCH, (number + 1) * BATCH);
    signedOut[number] += 1;
    if (signedOut[number] === batch.length) checks.push(check(batch));
});
const reached = SIGN_OUTS / ((performance.now() - begun) / 1_000);
await Promise.all(checks);
const rows = [];
for (const [at, guarded] of guards.entries()) {
    for (const batch of late[at]) missed[at] += await guarded.missed(batch);
    const { rssBytes, entries } = await guarded.stats();
    rows.push({ guard: guarded.guard, "late batches": late[at].length, missed: missed[at], entries, MiB: (rssBytes / 1_048_576).toFixed(1) });
    await guarded.stop();
}
console.log(`guards, ${SIGN_OUTS} sign-outs, ${Math.round(reached)} a second, watched by all of them`);
console.table(rows);
assert.deepEqual(missed, guards.map(() => 0));
agent.destroy();
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
process.exit();
