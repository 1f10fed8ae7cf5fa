// The cookies in Chromium's own jar: what it has understood, to whom it gives them, and what others can put beside them. At real host
// names over HTTPS.

import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { Entrance, close, cookieNames, endAll, greets, jar, newContext, newUser, openBrowser, openProfile, sessionsOf, signIn, signOut, startApp, startProxy } from "./stage.js";

const APP = "https://app.example.test";
/** Each project is at a port of its own. */
const ORIGINS = { jar: APP, strict: `${APP}:444`, shared: `${APP}:445` };
const EVIL = "https://evil.example.test";
const HOSTILE = "https://hostile.test";
const DAY = 86_400;

let browser, stranger;
const hosts = {};
before(async () => {
    for (const [project, origin] of Object.entries(ORIGINS)) {
        const port = await startProxy("nginx", project, await startApp("express", project));
        hosts[`app.example.test:${new URL(origin).port || 443}`] = (await Entrance.open(() => port, { tls: true })).port;
    }
    // Other hosts, which show what they get, and plant what they are asked to.
    const strange = (request, response) => {
        const planted = new URL(request.url, EVIL).searchParams.getAll("plant").map((cookie) => Buffer.from(cookie).toString("latin1"));
        stranger.seen.push({ host: request.headers.host, cookie: request.headers.cookie ?? "" });
        response.writeHead(200, { "content-type": "text/html", "set-cookie": planted }).end(`<!doctype html><link rel="icon" href="data:,"><p>`);
    };
    stranger = await Entrance.open(() => strange, { tls: true });
    const plain = await Entrance.open(() => strange);
    for (const host of ["evil.example.test:443", "example.test:443", "x.app.example.test:443", "hostile.test:443"]) hosts[host] = stranger.port;
    hosts["app.example.test:80"] = plain.port;
    browser = await openBrowser(hosts);
});
after(async () => {
    await close(browser);
    await endAll();
});

async function signedIn(t, project, persistent = false) {
    const context = await newContext(t, browser);
    const page = await context.newPage();
    const user = newUser();
    await page.goto(`${ORIGINS[project]}/orders`);
    await signIn(page, user, persistent);
    return { context, page, user };
}

describe("Chromium's jar", { concurrency: 3 }, () => {
    test("has understood every attribute", async (t) => {
        for (const [project, prefix, domain, sameSite] of [["jar", "__Host-", "app.example.test", "Lax"], ["strict", "__Host-", "app.example.test", "Strict"], ["shared", "__Secure-", ".example.test", "Lax"]]) {
            for (const persistent of [false, true]) {
                const { context, page, user } = await signedIn(t, project, persistent);
                const cookies = await jar(context);
                assert.deepEqual(Object.keys(cookies).sort(), cookieNames(project, prefix).sort());
                const [session] = await sessionsOf(project, user);
                const ends = Math.min(...[session.expires_at, session.idle_expires_at].map((time) => Date.parse(time))) / 1_000;
                for (const { name, value, expires, ...attributes } of Object.values(cookies)) {
                    assert.deepEqual(attributes, { domain, path: "/", httpOnly: true, secure: true, sameSite }, name);
                    assert.ok(name.length + value.length + 1 <= 4_096);
                    // Chromium keeps no cookie for longer than 400 days (RFC 6265bis §5.5).
                    if (persistent) assert.ok(Math.abs(expires - Math.min(ends, Date.now() / 1_000 + 400 * DAY)) < 60, `${expires}, ${ends}`);
                    else assert.equal(expires, -1);
                }
                assert.equal(await page.evaluate(() => document.cookie), "");
                assert.equal((await signOut(page)).status, 200);
                assert.deepEqual(await jar(context), {});
            }
        }
    });

    test("gives them to the application only, and with a shared domain to its siblings", async (t) => {
        for (const [project, siblings] of [["jar", []], ["shared", ["evil.example.test", "example.test", "x.app.example.test"]]]) {
            const { context, page } = await signedIn(t, project);
            const tab = await context.newPage();
            stranger.seen = [];
            const urls = [EVIL, "https://example.test", "https://x.app.example.test", HOSTILE, "http://app.example.test"];
            for (const url of urls) await tab.goto(`${url}/${project}`);
            const got = stranger.seen.filter(({ cookie }) => cookie.includes(`sessiond.${project}.`)).map(({ host }) => host);
            assert.deepEqual(got, siblings);
            await close(page);
        }
    });

    test("with a link from another site: Lax loads signed in, Strict does not", async (t) => {
        for (const [project, isSignedIn] of [["jar", true], ["strict", false]]) {
            const { page, user } = await signedIn(t, project);
            for (const [from, arrives] of [[HOSTILE, isSignedIn], [EVIL, true]]) {
                await page.goto(from);
                await page.evaluate((url) => location.assign(url), `${ORIGINS[project]}/orders`);
                await page.waitForURL((url) => url.href.startsWith(ORIGINS[project]));
                if (arrives) await greets(page, user);
                else assert.match(page.url(), /\/login\?return_to=/);
            }
        }
    });

    test("a sibling cannot plant a cookie of ours", async (t) => {
        const { context, page, user } = await signedIn(t, "jar");
        const before = await jar(context);
        const tab = await context.newPage();
        const [access] = cookieNames("jar");
        const more = "; Path=/; Secure; Domain=example.test";
        for (const name of [access, access.toLowerCase(), `=${access}`, ` ${access}`, `\u2003${access}`]) {
            await tab.goto(`${EVIL}/?plant=${encodeURIComponent(`${name}=eve${more}`)}`);
            await tab.evaluate((cookie) => (document.cookie = cookie), `${name}=eve${more}`);
        }
        // Over plain HTTP, as someone in the network does.
        await tab.goto(`http://app.example.test/?plant=${encodeURIComponent(`${access}=eve; Path=/`)}`);
        for (const name of cookieNames("jar")) assert.equal((await jar(context))[name].value, before[name].value);
        await page.goto(`${APP}/orders`);
        await greets(page, user);
    });

    test("with a shared domain it can: both are refused, and signing out ends the user's session", async (t) => {
        const { context, page, user } = await signedIn(t, "shared");
        const eve = await signedIn(t, "shared");
        const [access] = cookieNames("shared", "__Secure-");
        const stolen = (await jar(eve.context))[access].value;
        const tab = await context.newPage();
        // A longer path comes first (RFC 6265bis §5.8.3).
        await tab.goto(`${EVIL}/?plant=${encodeURIComponent(`${access}=${stolen}; Path=/orders; Secure; Domain=example.test`)}`);
        const answer = await page.goto(`${ORIGINS.shared}/orders`);
        assert.equal(answer.status(), 403, "nobody's page, and not the attacker's");
        await page.goto(`${ORIGINS.shared}/next`);
        await greets(page, user);
        assert.equal((await signOut(page)).status, 200);
        assert.deepEqual(await sessionsOf("shared", user), []);
    });

    test("a closed browser forgets a session's cookies, and keeps persistent ones", async () => {
        for (const persistent of [false, true]) {
            const dir = mkdtempSync(path.join(process.env.SCRATCH, "profile-"));
            const user = newUser();
            const first = await openProfile(dir, hosts);
            const page = await first.newPage();
            await page.goto(`${APP}/orders`);
            await signIn(page, user, persistent);
            await close(first);
            const second = await openProfile(dir, hosts);
            const again = await second.newPage();
            await again.goto(`${APP}/orders`);
            if (persistent) await greets(again, user);
            else assert.match(again.url(), /\/login\?return_to=/);
            await close(second);
        }
    });
});
