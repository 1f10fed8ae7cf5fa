// Each guard against the real server, while what is between them fails. After each fault: no signed-out token was accepted for
// longer than the maximum staleness, none is missed after recovery, and memory stays bounded. Prints a table: for each fault and
// guard, how long after the sign-out the token was refused, and how long after the end of the fault others were accepted again.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GUARDS, Probe, Relay, Sessiond, call, eventually, sleep } from "./lib.mjs";

const isLong = process.argv.includes("--long");
const only = process.env.FAULT;

/** The smallest that a guard takes, and the leeway for a busy machine. */
const MAX_STALENESS_MS = 2_000;
const SLACK_MS = 2_000;

/** How much a fault may add to a guard's memory. */
const MEMORY_MAX = 64 * 1024 * 1024;

/** Longer than any guard may believe what it knew. */
const FAULT_MS = isLong ? 10_000 : MAX_STALENESS_MS + SLACK_MS + 2_000;

const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "faults-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"), ["--access-token-ttl", "1h"]);
const relay = await Relay.open(server);
const rows = [];
const options = (more) => ({
    ...{ url: relay.url, project: server.project, issuer: server.url, serverKey: server.verifierKey },
    ...{ maxStalenessMs: MAX_STALENESS_MS, failMode: "reject", maxEntries: 1_000_000, ...more },
});
let probes = await Promise.all(Object.keys(GUARDS).map((guard) => Probe.start(guard, options())));

const all = (act) => Promise.all(probes.map(act));
const accepted = (token, what) => all((probe) => eventually(`${probe.guard} accepts ${what}`, async () => (await probe.verdict(token)) === "accepted"));

/**
 * A fault: `begin` starts it and signs out, `end` ends it. Neither lets a guard accept the token for too long. One that `isolates` the
 * guards must be noticed by each of them.
 */
async function fault(name, { begin, during = () => sleep(FAULT_MS), end = () => undefined, survives = true, isolates = false, refusals = ["SESSION_REVOKED", "VERIFICATION_UNAVAILABLE"] }) {
    if (only && !name.includes(only)) return;
    const [phone, laptop] = [await server.signIn(), await server.signIn()];
    await accepted(phone.access_token, "before the fault");
    await accepted(laptop.access_token, "before the fault");
    const before = await all(async (probe) => (await probe.stats()).rssBytes);
    let signedOutAt;
    const signOut = async () => {
        await server.signOut(phone.access_token);
        signedOutAt = performance.now();
    };
    let isOver = false;
    const noticed = new Set();
    // From the sign-out on, each guard is asked all the time, and must not accept the token again once it has refused it.
    const watched = all(async (probe) => {
        let refusedAfter;
        while (signedOutAt === undefined) await sleep(1);
        while (!isOver || refusedAfter === undefined) {
            const verdict = await probe.verdict(phone.access_token).catch((error) => error.message);
            // When it answers, not when it is asked: a process that was stopped answers late, and must know it.
            const after = performance.now() - signedOutAt;
            // Of a token that is not revoked.
            const other = isolates ? await probe.verdict(laptop.access_token).catch((error) => error.message) : undefined;
            if (other === "VERIFICATION_UNAVAILABLE") noticed.add(probe.guard);
            if (verdict === "accepted") {
                assert.equal(refusedAfter, undefined, `${name}: ${probe.guard} accepts again`);
                assert.ok(after < MAX_STALENESS_MS + SLACK_MS, `${name}: ${probe.guard} still accepts after ${after} ms`);
            } else if (refusals.includes(verdict)) {
                refusedAfter ??= performance.now() - signedOutAt;
            }
            await sleep(20);
        }
        return refusedAfter;
    });
    watched.catch(() => undefined);
    await begin(signOut);
    await during();
    await end();
    const recovered = survives
        ? await accepted(laptop.access_token, `after: ${name}`)
        : await accepted((await server.signIn()).access_token, `after: ${name}`);
    if (survives) {
        await all((probe) => eventually(`${probe.guard} knows the sign-out`, async () => (await probe.verdict(phone.access_token)) === "SESSION_REVOKED"));
    } else {
        const isRefused = async (probe) => (await probe.verdict(laptop.access_token)) === "SESSION_REVOKED";
        await all((probe) => eventually(`${probe.guard} refuses what was restored`, () => isRefused(probe), SLACK_MS));
    }
    isOver = true;
    const refused = await watched;
    if (isolates) assert.deepEqual([...noticed].sort(), probes.map(({ guard }) => guard).sort(), `${name}: noticed by`);
    const grown = await all(async (probe, at) => (await probe.stats()).rssBytes - before[at]);
    probes.forEach(({ guard }, at) => {
        assert.ok(grown[at] < MEMORY_MAX, `${name}: ${guard} has grown by ${grown[at]} bytes`);
        rows.push({ fault: name, guard, refused: `${Math.round(refused[at])} ms`, recovered: `${Math.round(recovered[at])} ms`, memory: `${(grown[at] / 1e6).toFixed(1)} MB` });
    });
    const shown = probes.map(({ guard }, at) => `${guard} ${Math.round(refused[at])}/${Math.round(recovered[at])} ms`).join(", ");
    console.log(`guards, ${name}: refused/recovered after ${shown}`);
}

// Without a fault: what else ends tokens.
if (!only || "revocations".includes(only)) {
    const [phone, laptop, tablet, bob] = [await server.signIn("ada"), await server.signIn("ada"), await server.signIn("ada"), await server.signIn("bob")];
    await accepted(phone.access_token, "at first");
    const path = `/auth/sessions/${phone.session.id}?supersede_tokens=true&update_mask=claims`;
    const changed = await call(server.url + path, { method: "PATCH", token: server.serverKey, body: { claims: { role: "admin" } } });
    assert.equal(changed.status, 200, JSON.stringify(changed.body));
    const refuse = (token, reason) => all((probe) => eventually(`${probe.guard} refuses with ${reason}`, async () => (await probe.verdict(token)) === reason, SLACK_MS));
    await refuse(phone.access_token, "ACCESS_TOKEN_SUPERSEDED");
    const refresh = { method: "POST", body: { refresh_token: phone.refresh_token } };
    const { body: fresh } = await call(`${server.url}/auth/sessions/current/refresh`, refresh);
    await accepted(fresh.access_token, "the refreshed token");
    await server.post("/auth/sessions:revokeAll", { user_id: "ada", spared_session_id: tablet.session.id });
    await refuse(laptop.access_token, "SESSION_REVOKED");
    await refuse(fresh.access_token, "SESSION_REVOKED");
    await accepted(tablet.access_token, "the session that is spared");
    await accepted(bob.access_token, "another user");
    console.log("guards, superseded tokens, and all sessions but one: refused by all, and the others accepted");
}

/** Writes something into each stream of revocations for as long as the fault lasts. */
const poisoned = (write) => ({
    begin: async (signOut) => {
        relay.poison = write;
        relay.set("cut");
        relay.set("pass");
        await signOut();
    },
    end: () => {
        relay.poison = undefined;
    },
});

const LINE = 100_000_000;

/** A line of 100 MB, as fast as it is read. */
function longLine(response) {
    const part = Buffer.alloc(65_536, "x");
    let left = LINE;
    const go = () => {
        while (left > 0 && !response.destroyed) {
            left -= part.length;
            if (!response.write(part)) return void response.once("drain", go);
        }
    };
    go();
}

await fault("the connection is cut", {
    isolates: true,
    begin: async (signOut) => {
        relay.set("cut");
        await signOut();
    },
    end: () => relay.set("pass"),
});
await fault("a proxy swallows everything and stays open", {
    isolates: true,
    begin: async (signOut) => {
        relay.set("swallow");
        await signOut();
    },
    end: () => relay.set("pass"),
});
await fault("a byte at a time", {
    begin: async (signOut) => {
        relay.set("drip");
        await signOut();
    },
    end: () => relay.set("pass"),
});
await fault("a response that begins a byte at a time, and does not end", {
    isolates: true,
    begin: async (signOut) => {
        relay.set("trickle");
        await signOut();
    },
    end: () => relay.set("pass"),
});
await fault("the server is paused", {
    isolates: true,
    begin: async (signOut) => {
        await signOut();
        server.signal("SIGSTOP");
    },
    end: () => server.signal("SIGCONT"),
});
await fault("the server is killed", {
    begin: async (signOut) => {
        await signOut();
        server.signal("SIGKILL");
        await server.ended();
    },
    during: () => sleep(1_000),
    end: () => server.run(),
});
await fault("the loop is blocked, the GIL held, the process stopped", {
    begin: async (signOut) => {
        const blocked = all((probe) => probe.ask(`/block?ms=${FAULT_MS}`));
        await sleep(100);
        await signOut();
        await blocked;
    },
    during: () => undefined,
});
for (const [name, ms] of [["back", -3_600_000], ["ahead", 3_600_000]]) {
    await fault(`the clock is set ${name} by an hour`, {
        begin: async (signOut) => {
            await all((probe) => probe.ask(`/clock?ahead_ms=${ms}`));
            await signOut();
        },
        during: () => sleep(1_000),
        end: () => all((probe) => probe.ask("/clock?ahead_ms=0")),
        refusals: ["SESSION_REVOKED", "VERIFICATION_UNAVAILABLE", "ACCESS_TOKEN_EXPIRED"],
    });
}
await fault("revocations of an unknown kind", poisoned((response) => response.write('{"revocations":{"revocations":[{"some_future_kind":{}}]}}\n')));
await fault("broken JSON", poisoned((response) => response.write('{"heartbeat":{"age_ms":0}\n')));
await fault("a line of 100 MB", poisoned(longLine));
await fault("the keys of another issuer", {
    begin: async (signOut) => {
        const jwk = generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey.export({ format: "jwk" });
        const other = { ...jwk, kid: "11111111-1111-4111-8111-111111111111", alg: "ES256", use: "sig" };
        const document = JSON.stringify({ keys: [other] });
        relay.instead = (path) => (path.endsWith("/.well-known/jwks.json") ? document : undefined);
        await signOut();
        // A token under an unknown key makes the guards read the keys again.
        const { project } = server;
        const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
        const unknown = `${encode({ typ: "at+jwt", alg: "ES256", kid: other.kid })}.${encode({ project })}.${"A".repeat(86)}`;
        const laptop = (await server.signIn()).access_token;
        await sleep(1_000);
        await all((probe) => eventually(`${probe.guard} verifies nothing by other keys`, async () => {
            await probe.verdict(unknown);
            return (await probe.verdict(laptop)) === "UNPARSABLE_ACCESS_TOKEN";
        }));
    },
    during: () => undefined,
    end: () => {
        relay.instead = () => undefined;
    },
    refusals: ["SESSION_REVOKED", "UNPARSABLE_ACCESS_TOKEN"],
});
await fault("another history: sessiond restored", {
    begin: async (signOut) => {
        await signOut();
        await server.command("restored");
        await server.stop();
    },
    during: () => undefined,
    end: () => server.run(),
    survives: false,
});
if (isLong) {
    // With the owners: the database of root runs under another user.
    const copy = (from, to) => execFileSync("cp", ["-a", join(directory, from), join(directory, to)]);
    await fault("a backup from before the sign-out", {
        begin: async (signOut) => {
            await server.stop();
            copy("sessiond", "backup");
            await server.run();
            await signOut();
        },
        during: async () => {
            await server.stop();
            await rm(join(directory, "sessiond"), { recursive: true });
            copy("backup", "sessiond");
        },
        end: async () => {
            // Until the operator has said so, the backup knows nothing of the sign-out: no guard may see it.
            relay.set("cut");
            await server.run();
            await server.command("restored");
            await server.stop();
            await server.run();
            relay.set("pass");
        },
        survives: false,
    });
}
await Promise.all(probes.map((probe) => probe.stop()));

// Two replicas: a guard goes to the other one if one is gone, or lags behind. What it knows to be revoked stays so.
if (!only || "replicas".includes(only)) {
    const replicas = [await Relay.open(server), await Relay.open(server)];
    probes = await Promise.all(Object.keys(GUARDS).map((guard) => Probe.start(guard, options({ urls: replicas.map(({ url }) => url) }))));
    const lagging = (response) => {
        const begun = performance.now();
        response.write('{"snapshot_begin":{"reason":"SNAPSHOT_REASON_CURSOR_OF_ANOTHER_DATABASE"}}\n{"snapshot_complete":{},"cursor":"x"}\n');
        const beat = () => response.write(`{"heartbeat":{"age_ms":60000,"stream_age_ms":${Math.round(performance.now() - begun)}}}\n`);
        beat();
        const beats = setInterval(beat, 1_000);
        response.on("close", () => clearInterval(beats));
    };
    const laptop = await server.signIn();
    const known = await server.signIn();
    await server.signOut(known.access_token);
    for (const isLagging of [false, true]) {
        for (const relay of replicas) {
            const phone = await server.signIn();
            await accepted(phone.access_token, "before the replica fails");
            relay.stream = isLagging ? lagging : undefined;
            relay.set("cut");
            if (isLagging) relay.set("pass");
            await server.signOut(phone.access_token);
            await all(async (probe) => {
                const refuses = async ({ access_token: token }) => (await probe.verdict(token)) === "SESSION_REVOKED";
                await eventually(`${probe.guard} goes to the other replica`, () => refuses(phone), MAX_STALENESS_MS + SLACK_MS);
                assert.ok(await refuses(known), `${probe.guard} has forgotten what it knew`);
            });
            await accepted(laptop.access_token, "through the other replica");
            relay.stream = undefined;
            relay.set("cut");
            relay.set("pass");
        }
    }
    await Promise.all(probes.map((probe) => probe.stop()));
    replicas.forEach((relay) => relay.close());
    console.log("guards, two replicas of which one is gone or lags behind: each guard goes to the other one");
}

// More entries than a guard may hold: it stops at its bound, and accepts nothing new.
const [offered, bound] = isLong ? [10_000_000, 1_000_000] : [200_000, 20_000];
if (!only || "entries".includes(only)) {
    const id = (number) => `01990000-0000-7000-8000-${number.toString(16).padStart(12, "0")}`;
    const entry = (at) => `{"session_id":"${id(at)}","user_id":"user-${at}","revoked_at":"2026-11-27T18:00:00.123456Z","reason":"REVOKE_REASON_SIGNED_OUT","retain_seconds":901}`;
    // The server itself refuses a snapshot that is too large; so this one is the relay's.
    relay.stream = (response) => {
        let at = 0;
        response.write('{"snapshot_begin":{"reason":"SNAPSHOT_REASON_NO_CURSOR"}}\n');
        const go = () => {
            while (at < offered && !response.destroyed) {
                const batch = Array.from({ length: 1_000 }, (_, index) => entry(at + index));
                at += 1_000;
                if (!response.write(`{"revocations":{"revocations":[${batch}]}}\n`)) return void response.once("drain", go);
            }
            response.write('{"snapshot_complete":{},"cursor":"x"}\n{"heartbeat":{"age_ms":0}}\n');
        };
        go();
    };
    probes = [];
    for (const guard of Object.keys(GUARDS)) {
        // Without waiting for a snapshot, which never comes.
        const probe = await Probe.start(guard, options({ maxEntries: bound, startupTimeoutMs: isLong ? 20_000 : 1_500 }));
        const phone = await server.signIn();
        await sleep(isLong ? 20_000 : 1_000);
        assert.equal(await probe.verdict(phone.access_token), "VERIFICATION_UNAVAILABLE", guard);
        const { rssBytes } = await probe.stats();
        assert.ok(rssBytes < 600e6, `${guard}: ${rssBytes} bytes`);
        console.log(`guards, ${offered} entries offered to a bound of ${bound}: ${guard} refuses; ${(rssBytes / 1e6).toFixed(0)} MB in all`);
        await probe.stop();
    }
}

relay.close();
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
if (rows.length > 0) console.table(rows);
