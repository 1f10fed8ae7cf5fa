// Failures in browsers, and on the network.

import assert from "node:assert/strict";
import { Feed, SlowReader } from "./feed.js";
import { PATIENCE_MS, bearer, eventually, isActive, lag, now, rest, signIn, signOut, subscribers } from "./host.js";
import { servePage, Tab } from "./tab.js";
import { Wire } from "./wire.js";

const { APP_ORIGIN, BRIEF_SERVER_KEY, SESSIOND_SERVER_KEY, SESSIOND_URL } = process.env;

const REVOKE_CURRENT = "/sessiond.v1.SessionService/RevokeCurrent";
const LIST = "/sessiond.v1.SessionService/ListSessions";
const REFRESH = "/sessiond.v1.SessionService/RefreshSession";
const WATCH = "/sessiond.v1.SessionService/WatchRevocations";
const EMPTY = [0, 0, 0, 0, 0];

const tokens = ({ access_token, refresh_token }) => ({ access: access_token, refresh: refresh_token });
const since = (begun) => `${Math.round(now() - begun)} ms`;

async function anotherOrigin(browser) {
    const stranger = await servePage();
    const tab = await Tab.open(browser, stranger.origin, SESSIOND_URL);
    const session = await signIn("eve");
    for (const client of ["grpc-web (binary)", "grpc-web (text)", "connect-web", "fetch (NDJSON)"]) {
        tab.blocked.length = 0;
        const { failed } = await tab.outcome(client, "signOut", bearer(session));
        assert.ok(failed, client);
        await eventually("the reason", PATIENCE_MS, () => tab.blocked.length > 0);
        assert.deepEqual(tab.blocked, ["PreflightMissingAllowOriginHeader"]);
        console.log(`an origin that is not allowed: blocked, and reported by ${client}: ${failed}`);
    }
    // Requests without a preflight are sent, but the browser removes the token.
    const headers = { ...bearer(session), "content-type": "application/grpc-web" };
    assert.equal((await tab.raw(REVOKE_CURRENT, { method: "POST", mode: "no-cors", headers, body: EMPTY })).status, 0);
    assert.ok(await isActive(session.access_token));
    console.log("an origin that is not allowed: revoked nothing, with or without a preflight");
    await tab.close();
    stranger.close();
}

async function anUnknownHeader(browser) {
    const tab = await Tab.open(browser, APP_ORIGIN, SESSIOND_URL);
    const headers = bearer(await signIn("ada"));
    const { failed } = await tab.raw("/auth/sessions/current", { headers: { ...headers, "x-unknown": "1" } });
    assert.ok(failed);
    await eventually("the reason", PATIENCE_MS, () => tab.blocked.length > 0);
    assert.deepEqual(tab.blocked, ["HeaderDisallowedByPreflightResponse"]);
    assert.equal((await tab.raw("/auth/sessions/current", { headers })).status, 200);
    console.log("a preflight with an unknown header: blocked by the browser, and fine without that header");
    await tab.close();
}

/** It cannot show a token, and the API takes none in a URL: they end up in logs. `fetch` reads the same events. */
async function anEventSource(browser) {
    const tab = await Tab.open(browser, APP_ORIGIN, SESSIOND_URL);
    assert.equal(await tab.page.evaluate((path) => window.eventSource(path), "/auth/revocations:watch"), false);
    console.log("an EventSource: refused, because it has no credentials; fetch reads server-sent events");
    await tab.close();
}

async function malformedFrames(browser) {
    const tab = await Tab.open(browser, APP_ORIGIN, SESSIOND_URL);
    const session = await signIn("ada");
    const [binary, text] = ["application/grpc-web+proto", "application/grpc-web-text+proto"];
    const rubbish = {
        "a frame that is cut short": [binary, [0, 0, 0, 0, 5, 8]],
        "a frame's head that is cut short": [binary, [0, 0, 0]],
        "a frame of 4 GiB": [binary, [0, 255, 255, 255, 255]],
        "no frame at all": [binary, []],
        "invalid base64": [text, Buffer.from("!not base64!")],
        "truncated base64": [text, Buffer.from("AAAAAA")],
        "base64 of a truncated frame": [text, Buffer.from("AAAAAAUI")],
    };
    for (const [what, [type, body]] of Object.entries(rubbish)) {
        const headers = { ...bearer(session), "content-type": type, accept: type, "x-grpc-web": "1" };
        tab.answered.length = 0;
        const answer = await tab.raw(REVOKE_CURRENT, { method: "POST", headers, body: [...body] });
        assert.equal(answer.headers["grpc-status"], "3", what);
        assert.ok(Buffer.from(answer.headers["grpc-status-details-bin"], "base64").includes("SCHEMA_ERROR"), what);
        assert.equal(answer.headers["content-type"], type);
        assert.deepEqual(await tab.call("grpc-web (text)", "list", bearer(session), 1), [session.session.id]);
        const over = (wanted) => tab.answered.findLast(({ path }) => path === wanted)?.connection;
        await eventually("both answers", PATIENCE_MS, () => over(REVOKE_CURRENT) && over(LIST));
        assert.equal(over(LIST), over(REVOKE_CURRENT), what);
        console.log(`${what}: INVALID_ARGUMENT, SCHEMA_ERROR, and the connection still works`);
    }
    await tab.close();
}

/** A tab that runs the recipe, over its own connection. */
async function recipe(browser, wire, session) {
    const tab = await Tab.open(browser, APP_ORIGIN, wire.url);
    const stream = await tab.follow("recipe", tokens(session));
    await eventually("the recipe to follow", PATIENCE_MS, () => tab.answers(WATCH) > 0);
    return [tab, stream];
}

async function theRecipe(browser) {
    const wire = await Wire.to(SESSIOND_URL);
    const [mine, other] = [await signIn("ada"), await signIn("ada")];
    const [tab, stream] = await recipe(browser, wire, mine);
    const { answered } = await rest("DELETE", `/auth/sessions/${mine.session.id}`, other.access_token);
    const { at } = await stream.end();
    console.log(`docs/guides/clients.md, a browser app: signed itself out ${lag(at, answered)} another device's 200`);
    await tab.call("recipe", "signOut", tokens(other));
    assert.equal(await isActive(other.access_token), false);
    console.log("docs/guides/clients.md, a browser app: signed out");
    await tab.close();

    // Its access token expires after two seconds; it follows with a new one.
    const brief = await signIn("ada", BRIEF_SERVER_KEY);
    const [page, followed] = await recipe(browser, wire, brief);
    await eventually("the recipe to continue", PATIENCE_MS, () => page.answers(REFRESH) > 0 && page.answers(WATCH) > 1);
    assert.equal((await followed.now()).end, null);
    await rest("DELETE", `/auth/sessions/${brief.session.id}`, BRIEF_SERVER_KEY);
    assert.deepEqual(Object.keys(await followed.end()), ["at"]);
    console.log("docs/guides/clients.md, a browser app: refreshed when its token expired, and signed itself out at the end");
    await page.close();
    wire.close();
}

async function offlineAndBack(browser) {
    // The session is revoked while the tab is offline: it finds out when it is back.
    for (const how of ["cut", "die"]) {
        const wire = await Wire.to(SESSIOND_URL);
        const [mine, other] = [await signIn("ada"), await signIn("ada")];
        const [tab, stream] = await recipe(browser, wire, mine);
        await tab.context.setOffline(true);
        wire[how]();
        await rest("DELETE", `/auth/sessions/${mine.session.id}`, other.access_token);
        assert.ok((await tab.raw("/healthz", {})).failed, "offline");
        assert.equal((await stream.now()).end, null);
        await tab.context.setOffline(false);
        wire.mend();
        const back = now();
        assert.deepEqual(Object.keys(await stream.end(3 * PATIENCE_MS)), ["at"]);
        const was = { cut: "was offline", die: "was offline, with a connection that stayed silent" }[how];
        console.log(`a browser that ${was}: signed itself out ${since(back)} after it was back`);
        await tab.close();
        wire.close();
    }

    // Other sessions of the user are revoked meanwhile. Users get no past revocations; a new stream says so, and that
    // it is time to list.
    const wire = await Wire.to(SESSIOND_URL);
    const [mine, phone, laptop] = [await signIn("grace"), await signIn("grace"), await signIn("grace")];
    const tab = await Tab.open(browser, APP_ORIGIN, wire.url);
    for (const client of ["grpc-web (text)", "connect-web", "fetch (NDJSON)", "fetch (SSE)"]) {
        const stream = await tab.follow(client, bearer(mine));
        await stream.told("complete");
        const gone = await signIn("grace");
        wire.cut();
        assert.ok((await stream.end()).failed, "the stream broke off");
        await signOut(gone);
        wire.mend();
        const again = await tab.follow(client, bearer(mine));
        await again.told("begin");
        await again.told("complete");
        const devices = await tab.call(client, "list", bearer(mine), 50);
        assert.deepEqual(devices, [laptop, phone, mine].map(({ session }) => session.id));
        console.log(`a browser whose stream broke off: ${client} reconnected, and listed exactly the remaining sessions`);
    }
    await tab.close();
    wire.close();
}

/** Cursors are only for services. */
async function aServiceResumes() {
    const wire = await Wire.to(SESSIOND_URL);
    const feed = await Feed.open(wire.url);
    await eventually("the snapshot", PATIENCE_MS, () => feed.isCurrent && feed.cursor);
    const before = new Set(feed.ended);
    wire.cut();
    await eventually("the end", PATIENCE_MS, () => feed.broken);
    const missed = await Promise.all(Array.from({ length: 5 }, () => signIn("ada")));
    await Promise.all(missed.map(signOut));
    wire.mend();
    const again = await Feed.open(wire.url, feed.cursor);
    await eventually("what was missed", PATIENCE_MS, () => again.isCurrent);
    assert.equal(again.begunAnew, false);
    const fresh = [...again.ended].filter((id) => !before.has(id));
    assert.deepEqual(fresh.sort(), missed.map(({ session }) => session.id).sort());
    console.log("a service whose stream broke off: resumed from its cursor, and got exactly what it had missed");
    again.close();
    wire.close();
}

/** The server's own stream: that of the demo's guard. */
const own = await subscribers();

/** A slow subscriber does not affect others, is disconnected, and misses nothing. */
async function aByteASecond() {
    // All earlier streams are closed.
    await eventually("all streams to be closed", PATIENCE_MS, async () => (await subscribers()) === own);
    const slow = SlowReader.open(SESSIOND_URL);
    await eventually("it to subscribe", PATIENCE_MS, async () => (await subscribers()) === own + 1);

    const brisk = await Feed.open(SESSIOND_URL);
    await eventually("the snapshot", PATIENCE_MS, () => brisk.isCurrent);

    // More than all buffers hold. A quotation mark is two characters in JSON.
    const users = Array.from({ length: 140 }, (_, n) => String(n).padEnd(255, '"'));
    const queue = [...users];
    const end = async () => {
        for (let user = queue.pop(); user; user = queue.pop()) {
            await signIn(user);
            await rest("POST", "/auth/sessions:revokeAll", SESSIOND_SERVER_KEY, { user_id: user });
        }
    };
    await Promise.all(Array.from({ length: 16 }, end));
    const full = now();
    const session = await signIn("ada");
    const { answered } = await signOut(session);
    await eventually("the revocation", PATIENCE_MS, () => brisk.ended.has(session.session.id));
    console.log(`a byte a second: another stream got it ${lag(brisk.at, answered)} the 200, meanwhile`);
    brisk.close();

    await eventually("it to be disconnected", 4 * PATIENCE_MS, async () => (await subscribers()) === own);
    console.log(`a byte a second: disconnected ${since(full)} after its buffers were full, having read ${slow.bytes} bytes`);
    const [isWhole, feed] = await slow.hurry();
    assert.ok(isWhole && feed.cursor);
    assert.ok(feed.ended.size < users.length, "it was more than the buffers hold");
    const again = await Feed.open(SESSIOND_URL, feed.cursor);
    await eventually("what was missed", PATIENCE_MS, () => again.isCurrent);
    assert.equal(again.begunAnew, false);
    const told = new Set([...feed.ended, ...again.ended]);
    assert.deepEqual(users.filter((user) => !told.has(user)), []);
    console.log(`a byte a second: got ${feed.ended.size} revocations before that, ${users.length} including those after its cursor`);
    again.close();
}

export const mishaps = [
    anotherOrigin, anUnknownHeader, anEventSource, malformedFrames, theRecipe, offlineAndBack, aServiceResumes, aByteASecond,
];
