// Browser clients against a running `sessiond dev`; ./run starts both. This file tests normal operation; mishaps.js
// tests failures.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { PATIENCE_MS, bearer, eventually, isActive, lag, rest, signIn, signOut } from "./host.js";
import { mishaps } from "./mishaps.js";
import { openBrowser, servePage, Tab } from "./tab.js";

const { APP_ORIGIN, SESSIOND_URL } = process.env;

/** The bound of the whole test. */
const DEADLINE_MS = 180_000;

const UNAUTHENTICATED = 16;
const INVALID_ARGUMENT = 3;

const installed = JSON.parse(await readFile(new URL("package-lock.json", import.meta.url))).packages;
const version = (name) => installed[`node_modules/${name}`].version;

/** Every client by its name in the page, and its name in the output. */
const CLIENTS = {
    "grpc-web (binary)": `grpc-web ${version("grpc-web")} (binary)`,
    "grpc-web (text)": `grpc-web ${version("grpc-web")} (text)`,
    "connect-web": `connect-web ${version("@connectrpc/connect-web")} (grpc-web)`,
    "fetch (NDJSON)": "fetch (JSON, lines of JSON)",
    "fetch (SSE)": "fetch (JSON, server-sent events)",
};

const refused = (reason, more = {}) => ({
    refused: { code: UNAUTHENTICATED, reason, domain: "sessiond", fields: [], ...more },
});

/** What every client must support. */
async function exercise(browser, client) {
    const name = CLIENTS[client];
    const say = (what) => console.log(`${name}: ${what}`);
    const user = client.replaceAll(/[^a-z-]/gi, "");
    const tab = await Tab.open(browser, APP_ORIGIN, SESSIOND_URL);

    const session = await signIn(user);
    const renewed = await tab.call(client, "refresh", session.refresh_token);
    assert.ok(await isActive(renewed.access_token));
    assert.deepEqual(await tab.call(client, "signOut", bearer(session)), { success: true, again: false });
    for (const token of [session.access_token, renewed.access_token, renewed.refresh_token]) {
        assert.equal(await isActive(token), false);
    }
    assert.deepEqual(await tab.call(client, "signOut", bearer(session)), { success: true, again: true });
    say("signed out, twice");

    for (const token of [session.refresh_token, renewed.refresh_token]) {
        assert.deepEqual(await tab.outcome(client, "refresh", token), refused("REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"));
    }
    assert.deepEqual(await tab.outcome(client, "list", bearer(session), 1), refused("SESSION_REVOKED"));
    say("refused to refresh after sign-out, UNAUTHENTICATED, REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");

    const [other, idle] = [await signIn(user), await signIn(user)];
    const left = await tab.call(client, "signOut", { "x-refresh-token": idle.refresh_token });
    assert.deepEqual(left, { success: true, again: false });
    assert.equal(await isActive(idle.access_token), false);
    say("signed out with a refresh token");

    const wrong = refused("SCHEMA_ERROR", { code: INVALID_ARGUMENT, fields: ["page_size"] });
    assert.deepEqual(await tab.outcome(client, "list", bearer(other), -1), wrong);
    const unknown = await tab.outcome(client, "signOut", bearer({ access_token: "rubbish" }));
    assert.deepEqual(unknown, refused("UNPARSABLE_ACCESS_TOKEN"));
    assert.deepEqual(await tab.call(client, "list", bearer(other), 50), [other.session.id]);
    say("met an error, INVALID_ARGUMENT, SCHEMA_ERROR of `page_size`, its details decoded");

    // The page is of another origin, and its calls are not simple, so the browser sends preflights: once per path,
    // because it caches the result.
    const isRest = client.startsWith("fetch");
    const method = isRest ? "DELETE" : "POST";
    const path = isRest ? "/auth/sessions/current" : "/sessiond.v1.SessionService/RevokeCurrent";
    const asked = () => tab.preflights.filter((preflight) => preflight.method === method && preflight.path === path);
    await eventually("the preflight", PATIENCE_MS, () => asked().length > 0);
    assert.ok(asked().length === 1 && asked()[0].headers.includes("authorization"), JSON.stringify(tab.preflights));
    assert.deepEqual(tab.blocked, []);
    say(`${tab.preflights.length} preflights, none refused`);

    if (client !== "grpc-web (binary)") await exerciseStream(tab, client, user, other, say);
    await tab.close();
}

/** A tab learns of revocations of its user's sessions, and of its own, as they happen. */
async function exerciseStream(tab, client, user, mine, say) {
    const [phone, laptop] = [await signIn(user), await signIn(user)];
    const stream = await tab.follow(client, bearer(mine));
    await stream.told("complete");
    const { answered: first } = await signOut(phone);
    const heard = await stream.told("ended", phone.session.id);
    assert.equal((await stream.now()).end, null, "the stream is still open");
    say(`got another device's sign-out ${lag(heard, first)} its 200, on an open stream`);

    const { answered } = await rest("DELETE", `/auth/sessions/${mine.session.id}`, laptop.access_token);
    const own = await stream.told("ended", mine.session.id);
    const { at, ...end } = await stream.end();
    assert.deepEqual(end, refused("SESSION_REVOKED"));
    say(`learned that it was signed out elsewhere ${lag(own, answered)} the 200; SESSION_REVOKED ended the stream ${lag(at, answered)}`);

    const again = await tab.follow(client, bearer(mine));
    const { at: _, ...refusal } = await again.end();
    assert.deepEqual(refusal, refused("SESSION_REVOKED"));
    await signOut(laptop);
}

setTimeout(() => {
    console.error(`not finished within ${DEADLINE_MS} ms`);
    process.exit(1);
}, DEADLINE_MS).unref();

const browser = await openBrowser();
console.log(`Chromium ${browser.version()}, ${APP_ORIGIN} calls ${SESSIOND_URL} over HTTP/1.1`);
const page = await servePage(new URL(APP_ORIGIN).port);
await eventually("the feed", PATIENCE_MS, async () => (await fetch(`${SESSIOND_URL}/readyz`)).ok);
for (const client of Object.keys(CLIENTS)) await exercise(browser, client);
for (const mishap of mishaps) await mishap(browser);
await browser.close();
page.close();
