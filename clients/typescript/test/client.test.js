// The client in Node, against a running sessiond. ../check starts it, and runs this twice: for a project with default
// rules, and for one with strict refresh and no grace.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { inspect } from "node:util";
import { memoryStorage } from "@sessiond/client";
import { STRICT, createLongSession, createSession, eventually, expiry, isActive, refused, revoke, sleep, stale } from "./host.js";
import { stage } from "./stage.js";

const CURRENT = "/auth/sessions/current";
const REFRESH = `POST ${CURRENT}/refresh`;
const WATCH = "GET /auth/revocations:watch";

describe("in Node", { concurrency: true }, () => {
    test("signs in, calls an API, lists and revokes sessions, signs out", async (t) => {
        const { api, signedIn } = await stage(t);
        const { client, session } = await signedIn();
        assert.equal(client.state.status, "signed-in");
        assert.equal(client.state.userId, session.session.user_id);
        assert.equal(client.state.sessionId, session.session.id);
        assert.equal(await (await client.fetch(`${api.url}/hello`)).text(), session.session.user_id);

        const [phone, laptop] = [await createSession(session.session.user_id), await createSession(session.session.user_id)];
        const { items } = await client.listSessions();
        assert.deepEqual(items.map(({ id }) => id), [laptop, phone, session].map(({ session }) => session.id));
        assert.equal((await client.currentSession()).id, session.session.id);
        await client.revokeSession(phone.session.id);
        assert.equal(await isActive(phone.access_token), false);
        assert.equal(await client.revokeOtherSessions(), 1);
        assert.equal(await isActive(laptop.access_token), false);

        await client.signOut();
        assert.equal(await isActive(session.access_token), false);
        assert.deepEqual(client.outs, ["SIGNED_OUT"]);
        await assert.rejects(client.fetch(`${api.url}/hello`), refused("NOT_SIGNED_IN"));
        await client.signOut();
    });

    test("renews before the expiry, and once for parallel calls", async (t) => {
        const { relay, api, signedIn } = await stage(t);
        const { client } = await signedIn();
        for (let round = 1; round <= 2; round += 1) {
            await stale();
            const responses = await Promise.all(Array.from({ length: 10 }, () => client.fetch(`${api.url}/hello`)));
            assert.deepEqual(responses.map(({ status }) => status), Array(10).fill(200));
            assert.equal(relay.refreshes, round);
        }
        assert.equal(client.state.status, "signed-in");
    });

    test("a 401 leads to one refresh and one repeat", async (t) => {
        const { relay, api, signedIn } = await stage(t);
        const { client } = await signedIn({}, createLongSession);
        await sleep(2_100);
        // Always refused: two calls, and no more.
        api.rule = () => ({ status: 401 });
        assert.equal((await client.fetch(`${api.url}/a`, { method: "POST", body: "again" })).status, 401);
        assert.deepEqual(api.asked.map(({ body }) => body), ["again", "again"]);
        const before = relay.refreshes;
        // The token is new, so it is not the reason.
        assert.equal((await client.fetch(`${api.url}/b`)).status, 401);
        assert.equal(relay.refreshes, before);
        assert.equal(client.state.status, "signed-in");
    });

    test("a body that can be read only once is not sent again, and an authentication step is the app's", async (t) => {
        const { relay, api, signedIn } = await stage(t);
        const { client } = await signedIn({}, createLongSession);
        await sleep(2_100);
        api.rule = () => ({ status: 401 });
        const body = new ReadableStream({ start: (stream) => (stream.enqueue(new TextEncoder().encode("once")), stream.close()) });
        assert.equal((await client.fetch(`${api.url}/`, { method: "POST", body, duplex: "half" })).status, 401);
        assert.equal((await client.fetch(new Request(`${api.url}/`, { method: "POST", body: "once" }))).status, 401);
        assert.equal(api.asked.length, 2);
        api.rule = () => ({ status: 401, headers: { "www-authenticate": 'Bearer error="insufficient_user_authentication"' } });
        assert.equal((await client.fetch(`${api.url}/`)).status, 401);
        assert.equal(api.asked.length, 3);
        assert.equal(relay.refreshes, 0);
    });

    test("the token goes to known origins only", async (t) => {
        const { api, signedIn } = await stage(t);
        const { client } = await signedIn({ apiOrigins: [] });
        await assert.rejects(client.fetch(`${api.url}/`), refused("ORIGIN_NOT_ALLOWED"));
        assert.equal(api.asked.length, 0);
    });

    test("a lost answer to a refresh", async (t) => {
        const { relay, signedIn } = await stage(t);
        const { client } = await signedIn();
        await expiry();
        relay.rule = (call) => call === REFRESH && relay.refreshes === 1 && "lose";
        await assert.rejects(client.accessToken(), refused("UNREACHABLE"));
        assert.equal(client.state.status, "unknown");
        await sleep(600);
        if (STRICT) {
            // The token was used, as far as the server knows, and strict rules forgive nothing. The docs say so.
            await assert.rejects(client.accessToken(), refused("REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"));
            assert.deepEqual(client.outs, ["REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"]);
        } else {
            assert.ok(await isActive(await client.accessToken()));
            assert.deepEqual(client.states, ["signed-in", "unknown", "signed-in"]);
            assert.deepEqual(client.outs, []);
        }
    });

    test("without a verdict of the server nobody is signed out", async (t) => {
        const { relay, api, signedIn } = await stage(t);
        const { client, session } = await signedIn({ timeoutMs: 3_000 });
        await expiry();
        const html = { "content-type": "text/html" };
        const failures = {
            cut: ["UNREACHABLE", () => "cut"],
            silence: ["TIMED_OUT", () => "silence"],
            "a captive portal": ["BAD_RESPONSE", () => ({ status: 200, headers: html, body: "<p>Welcome" })],
            "a proxy's 401": ["BAD_RESPONSE", () => ({ status: 401, headers: html, body: "<p>Unauthorized" })],
            "another API's 401": ["BAD_RESPONSE", () => ({ status: 401, body: '{"error":"unauthorized"}' })],
            "a redirect": ["UNREACHABLE", () => ({ status: 302, headers: { location: "/login" } })],
            "an endless response": ["BAD_RESPONSE", () => ({ status: 200, body: " ".repeat(9 << 20) })],
            // With a delay that no timer takes.
            "an outage without an end": ["STORE_UNAVAILABLE", () => ({
                status: 503,
                headers: { "retry-after": "99999999999" },
                body: JSON.stringify({ code: 14, message: "the database is unavailable", details: [{ reason: "STORE_UNAVAILABLE", domain: "sessiond" }] }),
            })],
            "an outage": ["STORE_UNAVAILABLE", () => ({
                status: 503,
                headers: { "retry-after": "1" },
                body: JSON.stringify({ code: 14, message: "the database is unavailable", details: [{ reason: "STORE_UNAVAILABLE", domain: "sessiond" }] }),
            })],
        };
        for (const [what, [reason, rule]] of Object.entries(failures)) {
            relay.rule = rule;
            await assert.rejects(client.refresh(), (error) => {
                assert.ok(error.isTransient, what);
                assert.ok(error.retryAfterMs <= 600_000, what);
                return refused(reason)(error);
            });
            assert.equal(client.state.status, "unknown", what);
            assert.equal(client.state.userId, session.session.user_id);
        }
        // Later calls fail at once until the pause is over: an outage is not made worse.
        const before = relay.asked.length;
        await assert.rejects(client.fetch(`${api.url}/`), refused("STORE_UNAVAILABLE"));
        assert.equal(relay.asked.length, before);
        relay.rule = null;
        await client.refresh();
        assert.equal(client.state.status, "signed-in");
        assert.deepEqual(client.outs, []);
    });

    test("a sign-out while a refresh is under way discards its result", async (t) => {
        const { relay, api, signedIn } = await stage(t);
        const storage = memoryStorage();
        const { client, session } = await signedIn({ storage });
        await stale();
        let answer;
        relay.rule = (call) => call === REFRESH && new Promise((go) => (answer = go));
        const call = client.fetch(`${api.url}/`);
        await eventually("the refresh", () => answer);
        await client.signOut();
        answer();
        await assert.rejects(call, refused("NOT_SIGNED_IN"));
        await sleep(50);
        assert.equal(client.state.status, "signed-out");
        assert.equal(storage.getItem("sessiond"), null);
        assert.equal(storage.getItem("sessiond.ending"), null);
        assert.equal(await isActive(session.refresh_token), false);
        assert.equal(api.asked.length, 0);
    });

    test("a sign-in while a refresh of the earlier session is under way", async (t) => {
        const { relay, api, signedIn } = await stage(t);
        const { client } = await signedIn();
        await stale();
        let answer;
        relay.rule = (call) => call === REFRESH && new Promise((go) => (answer = go));
        const call = client.accessToken();
        await eventually("the refresh", () => answer);
        const other = await createSession();
        relay.rule = null;
        await client.signIn(other);
        answer();
        await assert.rejects(call, refused("NOT_SIGNED_IN"));
        assert.equal(client.state.sessionId, other.session.id);
        assert.equal(await (await client.fetch(`${api.url}/`)).text(), other.session.user_id);
    });

    test("a sign-out is repeated until the server confirms it, also after a reload", async (t) => {
        const { relay, open, signedIn } = await stage(t);
        const storage = memoryStorage();
        const { client, session } = await signedIn({ storage });
        relay.rule = () => "cut";
        void client.signOut();
        assert.equal(client.state.status, "signed-out");
        await eventually("repeats", () => relay.signOuts >= 3);
        assert.ok(await isActive(session.access_token));
        client.close();
        const reloaded = open({ storage });
        await reloaded.ready();
        assert.equal(reloaded.state.status, "signed-out");
        relay.rule = null;
        await eventually("the revocation", async () => !(await isActive(session.refresh_token)));
        await eventually("the storage", () => storage.getItem("sessiond.ending") === null);
    });

    test("a session revoked elsewhere: at the next refresh, and at the next call of the API", async (t) => {
        const { signedIn } = await stage(t);
        const { client, session } = await signedIn();
        await revoke(session.session.id);
        await assert.rejects(client.listSessions(), refused("SESSION_REVOKED"));
        assert.deepEqual(client.outs, ["SESSION_REVOKED"]);

        const { client: other, session: another } = await signedIn();
        await revoke(another.session.id);
        await stale();
        await assert.rejects(other.accessToken(), refused("REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"));
        assert.deepEqual(other.outs, ["REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"]);
    });

    test("the stream reports a revocation at once, survives cuts and token expiry, and backs off", async (t) => {
        const { relay, signedIn } = await stage(t);
        const { client, session } = await signedIn({ watch: true });
        let changes = 0;
        client.onSessionsChanged(() => (changes += 1));
        await eventually("the stream", () => changes > 0);
        const other = await createSession(session.session.user_id);
        const before = changes;
        await revoke(other.session.id);
        await eventually("the news", () => changes > before, 2_000);

            await eventually("the next stream", () => relay.count(WATCH) >= 2);
        assert.ok(relay.refreshes >= 1);

        relay.rule = () => "cut";
        relay.server.closeAllConnections();
        const calls = relay.asked.length;
        await sleep(3_000);
        assert.ok(relay.asked.length - calls <= 12, `${relay.asked.length - calls} attempts in 3 s`);
        assert.deepEqual(client.outs, []);
        relay.rule = null;
        await eventually("signed in again", () => client.state.status === "signed-in");
        const again = changes;
        await eventually("the stream", () => changes > again);
        const revoked = Date.now();
        await revoke(session.session.id);
        await eventually("the sign-out", () => client.outs.length > 0, 2_000);
        assert.deepEqual(client.outs, ["SESSION_REVOKED"]);
        console.log(`# signed out ${Date.now() - revoked} ms after the revocation began`);
        await sleep(100);
        const last = relay.asked.length;
        await sleep(500);
        assert.equal(relay.asked.length, last, "silent afterwards");
    });

    test("two clients with one storage: tokens that are newer are never overwritten", { skip: STRICT && "across tabs" }, async (t) => {
        const { relay, open, signedIn } = await stage(t);
        const storage = memoryStorage();
        const { client: slow } = await signedIn({ storage });
        const fast = open({ storage });
        await fast.ready();
        await stale();
        // The first answer is handled late, as in a tab that was frozen.
        let answer;
        relay.rule = (call) => call === REFRESH && relay.refreshes === 1 && new Promise((go) => (answer = go));
        const late = slow.accessToken();
        await eventually("the refresh", () => answer);
        for (let round = 0; round < 3; round += 1) {
            await fast.refresh();
            await sleep(20);
        }
        const newest = storage.getItem("sessiond");
        answer();
        await late;
        assert.equal(storage.getItem("sessiond"), newest);
        // Past the grace, in which the server would forgive.
        await sleep(2_200);
        await slow.refresh();
        await fast.refresh();
        assert.deepEqual([slow.state.status, fast.state.status, slow.outs, fast.outs], ["signed-in", "signed-in", [], []]);
    });

    test("storages: asynchronous, broken, full of rubbish, cleared", async (t) => {
        const { open, signedIn } = await stage(t);
        const items = memoryStorage();
        const later = Object.fromEntries(Object.entries(items).map(([name, method]) => [name, async (...given) => (await sleep(5), method(...given))]));
        const { client } = await signedIn({ storage: later });
        const other = open({ storage: later });
        assert.equal(other.state.status, "unknown");
        await other.ready();
        assert.equal(other.state.status, "signed-in");
        await client.signOut();
        await eventually("cleared", () => items.getItem("sessiond") === null);

        const fails = () => {
            throw new Error("SecurityError");
        };
        const { client: alone } = await signedIn({ storage: { getItem: fails, setItem: fails, removeItem: fails } });
        await stale();
        assert.ok(await isActive(await alone.accessToken()));
        await alone.signOut();

        const rejects = async () => fails();
        const { client: adrift } = await signedIn({ storage: { getItem: rejects, setItem: rejects, removeItem: rejects } });
        await stale();
        assert.ok(await isActive(await adrift.accessToken()));
        await adrift.signOut();

        for (const rubbish of ["", "{", "null", "[]", '{"access_token":"a.b.c","refresh_token":"x"}', '{"access_token":1}']) {
            const storage = memoryStorage();
            storage.setItem("sessiond", rubbish);
            storage.setItem("sessiond.ending", rubbish);
            const fresh = open({ storage });
            await fresh.ready();
            assert.deepEqual(fresh.state, { status: "signed-out", reason: "NEVER_SIGNED_IN" });
            assert.deepEqual(fresh.outs, []);
        }

        const storage = memoryStorage();
        const { client: cleared } = await signedIn({ storage });
        storage.removeItem("sessiond");
        await stale();
        assert.ok(await isActive(await cleared.accessToken()), "an empty storage is not a sign-out");
    });

    test("no token in errors, states or what is printed", async (t) => {
        const { relay, signedIn } = await stage(t);
        const { client, session } = await signedIn({ timeoutMs: 3_000 });
        const secrets = [session.access_token, session.refresh_token];
        const seen = [];
        client.subscribe((state) => seen.push(state));
        for (const fate of ["cut", "silence", { status: 500, body: secrets.join() }, { status: 401, body: "x" }]) {
            relay.rule = () => fate;
            await client.refresh().catch((error) => seen.push(error));
            await client.listSessions().catch((error) => seen.push(error));
        }
        for (const wrong of [{}, null, { ...session, access_token: `${secrets[0]}\n` }, { ...session, refresh_token: `${secrets[1]}\u{1f512}` }]) {
            await client.signIn(wrong).catch((error) => seen.push(refused("MALFORMED_TOKENS")(error) && error));
        }
        seen.push(client, await client.signOut.toString());
        const printed = inspect(seen, { depth: 10, showHidden: true }) + JSON.stringify(seen) + seen.map((one) => one?.stack ?? "").join();
        for (const secret of secrets) assert.ok(!printed.includes(secret.slice(-20)));
    });

    test("step-up: the error says what is asked for", async (t) => {
        const { relay, signedIn } = await stage(t);
        // Reported by the reason, without a refresh.
        const { client } = await signedIn();
        relay.rule = (call) => call.startsWith("DELETE") && {
            status: 401,
            body: JSON.stringify({ code: 16, message: "authenticate again", details: [{ reason: "INSUFFICIENT_USER_AUTHENTICATION", domain: "sessiond" }] }),
        };
        await assert.rejects(client.revokeSession("019e0000-0000-7000-8000-000000000000"), refused("INSUFFICIENT_USER_AUTHENTICATION"));
        assert.equal(relay.refreshes, 0);
    });

    test("the reasons are those of the server", async () => {
        const text = await readFile(new URL("../../../docs/reference/errors.md", import.meta.url), "utf8");
        const source = await readFile(new URL("../packages/client/src/errors.ts", import.meta.url), "utf8");
        const [, ours] = /type ServerReason =([^;]*);/.exec(source);
        const known = new Set([...ours.matchAll(/"([A-Z_]+)"/g)].map(([, name]) => name));
        const missing = [...text.matchAll(/^## `([A-Z_]+)`$/gm)].map(([, name]) => name).filter((name) => !known.has(name));
        assert.deepEqual(missing, [], "in docs/reference/errors.md, but not in errors.ts");
    });
});
