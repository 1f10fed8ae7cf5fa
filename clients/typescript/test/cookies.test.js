// Cookie mode, in Chromium: the example whose pages Express renders, and the client in them.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { after, before, describe, test } from "node:test";
import { COOKIE_PROJECT, COOKIE_SERVER_KEY, PATIENCE_MS, Relay, api, eventually, expiry, newUser, revoke, sleep } from "./host.js";
import { openBrowser } from "./tab.js";

/** The rounds of a race. */
const ROUNDS = Number(process.env.ROUNDS ?? 2);
const ACCESS = `__Host-sessiond.${COOKIE_PROJECT}.access`;
const REFRESH = `__Host-sessiond.${COOKIE_PROJECT}.refresh`;
const WATCH = "GET /auth/revocations:watch";
const SIGN_OUT = "DELETE /auth/sessions/current";

let browser;
before(async () => {
    browser = await openBrowser();
});
after(() => browser.close());

/** The example, before sessiond behind a relay; and a browser profile of its own. */
async function app(t) {
    const relay = await Relay.open();
    const probe = net.createServer().listen(0, "localhost");
    await once(probe, "listening");
    const PORT = probe.address().port;
    await new Promise((closed) => probe.close(closed));
    const env = { ...process.env, PORT, SESSIOND_URL: relay.url, SESSIOND_PROJECT_ID: COOKIE_PROJECT, SESSIOND_SERVER_KEY: COOKIE_SERVER_KEY };
    const server = spawn(process.execPath, [new URL("../examples/dist/pages.js", import.meta.url).pathname], { env, stdio: "inherit" });
    const origin = `http://localhost:${PORT}`;
    await eventually("it listens", () => fetch(`${origin}/login`).then(() => true, () => false));
    const context = await browser.newContext();
    context.setDefaultTimeout(PATIENCE_MS);
    t.after(async () => {
        await context.close();
        server.kill();
        relay.close();
    });
    const problems = [];
    const open = async (path = "/") => {
        const page = await context.newPage();
        page.on("pageerror", (error) => problems.push(error.message));
        await page.goto(origin + path);
        return page;
    };
    /** Signs in through the form, which the first page has led to. */
    const signIn = async (page, user = newUser(), persistent = false) => {
        await page.getByLabel("user").fill(user);
        if (persistent) await page.getByLabel("remember me").check();
        await page.getByRole("button", { name: "Sign in" }).click();
        await page.getByRole("heading", { name: `Hello, ${user}!` }).waitFor();
        await page.waitForFunction(() => window.client?.state.status === "signed-in");
        return user;
    };
    const cookies = async () => Object.fromEntries((await context.cookies()).map((cookie) => [cookie.name, cookie]));
    const current = async (user) => (await api("GET", `/auth/sessions?user_id=${user}`, COOKIE_SERVER_KEY)).items;
    return { relay, origin, context, open, signIn, cookies, current, problems };
}

const status = (page) => page.evaluate(() => client.state.status);

describe("in cookie mode", { concurrency: 3 }, () => {
    test("a page leads to the login page and back; script sees no token", async (t) => {
        const { origin, open, signIn, cookies, context, problems } = await app(t);
        const page = await open("/next?a=b");
        assert.equal(page.url(), `${origin}/login?return_to=${encodeURIComponent("/next?a=b")}`);
        const user = await signIn(page);
        assert.equal(page.url(), `${origin}/next?a=b`);
        assert.equal(await page.evaluate(() => client.state.userId), user);
        assert.equal(await page.evaluate(() => document.cookie + JSON.stringify(localStorage)), "{}");
        for (const name of [ACCESS, REFRESH]) {
            const { httpOnly, secure, sameSite, path, expires } = (await cookies())[name];
            assert.deepEqual({ httpOnly, secure, sameSite, path, expires }, { httpOnly: true, secure: true, sameSite: "Lax", path: "/", expires: -1 });
        }
        await context.clearCookies();
        await page.goto(`${origin}/login?return_to=//evil.example/`);
        await signIn(page, user, true);
        assert.equal(page.url(), `${origin}/`);
        assert.ok((await cookies())[REFRESH].expires > Date.now() / 1000 + 86_400);
        assert.deepEqual(problems, []);
    });

    test("pages, ten parallel requests in each of three tabs, and calls of the client past the expiry: one rotation each", async (t) => {
        const { relay, open, signIn, cookies, problems } = await app(t);
        const first = await open();
        const user = await signIn(first);
        const tabs = [first, await open("/next"), await open()];
        for (const tab of tabs) await tab.waitForFunction(() => window.client?.state.status === "signed-in");
        await eventually("streams", () => relay.count(WATCH) >= 3);
        // Hidden pages have no stream, which would renew the cookies before anything else does.
        for (const tab of tabs) {
            await tab.evaluate(() => {
                Object.defineProperty(document, "hidden", { value: true });
                document.dispatchEvent(new Event("visibilitychange"));
            });
        }
        const token = async () => (await cookies())[REFRESH].value;
        for (let round = 1; round <= ROUNDS; round += 1) {
            await expiry();
            const seen = new Set([await token()]);
            const answers = await Promise.all(tabs.map((tab) => tab.evaluate(() => Promise.all(Array.from({ length: 10 },
                async () => (await (await fetch("/api/hello")).json()).hello)))));
            assert.deepEqual(answers.flat(), Array(30).fill(user));
            for (let look = 0; look < 3; look += 1) seen.add(await token());
            assert.equal(seen.size, 2, "one rotation");
        }
        await expiry();
        const before = await token();
        const listed = tabs[1].evaluate(async () => (await client.listSessions()).items.length);
        assert.equal(await tabs[2].evaluate(async () => (await client.fetch("/api/hello", { method: "POST" })).status), 200);
        assert.equal(await listed, 1);
        assert.notEqual(await token(), before);
        await expiry();
        await first.getByText("Next page").click();
        await first.waitForURL(/next$/);
        await first.getByRole("heading", { name: `Hello, ${user}!` }).waitFor();
        for (const tab of tabs) await tab.waitForFunction(() => client.state.status === "signed-in");
        assert.deepEqual(problems, []);
    });

    test("a sign-out in one tab, and the other's next click lands on the login page", async (t) => {
        const { origin, open, signIn, cookies, current } = await app(t);
        const page = await open();
        const user = await signIn(page);
        const other = await open("/next");
        await other.waitForFunction(() => window.client?.state.status === "signed-in");
        // It follows by itself; here it is asked to stay.
        await other.evaluate(() => client.close());
        await page.getByRole("button", { name: "Sign out" }).click();
        await page.waitForURL(`${origin}/login`);
        await eventually("the end", async () => (await current(user)).length === 0);
        assert.equal(await other.evaluate(async () => (await fetch("/api/hello")).status), 401);
        await other.getByText("Next page").click();
        await other.waitForURL(/\/login\?return_to=/);
        assert.deepEqual(Object.keys(await cookies()), []);
    });

    test("a sign-out in one tab, or anywhere else, moves the others to the login page", async (t) => {
        const { relay, origin, open, signIn, current } = await app(t);
        const page = await open();
        const user = await signIn(page);
        const other = await open();
        await other.waitForFunction(() => window.client?.state.status === "signed-in");
        await page.getByRole("button", { name: "Sign out" }).click();
        await other.waitForURL(`${origin}/login`);
        await signIn(other, user);
        await eventually("the stream", () => relay.count(WATCH) > 2);
        await sleep(200);
        const [session] = await current(user);
        await revoke(session.id, COOKIE_SERVER_KEY);
        await other.waitForURL(`${origin}/login`);
    });

    test("offline is never out", async (t) => {
        const { relay, context, open, signIn } = await app(t);
        const page = await open();
        const user = await signIn(page);
        await context.setOffline(true);
        relay.server.closeAllConnections();
        await expiry();
        await page.evaluate(() => client.refresh().catch(() => {}));
        assert.notEqual(await status(page), "signed-out");
        await context.setOffline(false);
        await eventually("an answer", () => page.evaluate(() => client.listSessions().then(() => true, () => false)));
        assert.equal(await status(page), "signed-in");
        // sessiond is down: 503, and nobody is sent to the login page.
        relay.rule = () => "cut";
        relay.server.closeAllConnections();
        assert.equal(await page.evaluate(async () => (await fetch("/api/hello")).status), 503);
        const answer = await page.goto(new URL("/next", page.url()).href);
        assert.equal(answer.status(), 503);
        relay.rule = null;
        const loaded = await open("/next");
        await loaded.getByRole("heading", { name: `Hello, ${user}!` }).waitFor();
    });

    test("a page that starts while sessiond does not answer is unknown, and then signed in", async (t) => {
        const { relay, open, signIn } = await app(t);
        const page = await open();
        await signIn(page);
        relay.rule = (call) => call === "GET /auth/sessions/current" && "cut";
        const other = await open("/next");
        await other.waitForFunction(() => window.client?.state.error);
        assert.equal(await status(other), "unknown");
        relay.rule = null;
        await other.waitForFunction(() => client.state.status === "signed-in");
    });

    test("a sign-out without network is finished by the next page, and ends no other session", async (t) => {
        const { relay, origin, open, signIn, current } = await app(t);
        const page = await open();
        const user = await signIn(page);
        relay.rule = (call) => call === SIGN_OUT && "cut";
        await page.evaluate(() => void client.signOut());
        await page.waitForURL(/\/login/);
        await sleep(100);
        assert.equal((await current(user)).length, 1);
        relay.rule = null;
        // Its cookies are still there, so the page loads; its script knows better.
        await page.goto(origin);
        await page.waitForURL(/\/login/);
        await eventually("the end", async () => (await current(user)).length === 0);

        await page.goto(origin);
        await signIn(page, user);
        relay.rule = (call) => call === SIGN_OUT && "cut";
        await page.evaluate(() => void client.signOut());
        await page.waitForURL(/\/login/);
        relay.rule = null;
        const next = newUser();
        await signIn(page, next);
        await sleep(1_500);
        assert.equal(await status(page), "signed-in");
        assert.equal((await current(next)).length, 1);
    });

    test("a page of another origin can neither read nor change anything", async (t) => {
        const { origin, context, open, signIn, current } = await app(t);
        const page = await open();
        const user = await signIn(page);
        const stranger = http.createServer((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>"));
        stranger.listen(0, "localhost");
        await once(stranger, "listening");
        t.after(() => stranger.close());
        // Another port of the same host: same site, so that the browser sends the cookie.
        const other = await context.newPage();
        await other.goto(`http://localhost:${stranger.address().port}/`);
        const statuses = [];
        other.on("response", (response) => statuses.push(response.status()));
        await other.evaluate(async (origin) => {
            for (const [path, method] of [["/api/hello", "POST"], ["/auth/sessions/current/refresh", "POST"], ["/auth/sessions:revokeAll", "POST"]]) {
                await fetch(origin + path, { method, mode: "no-cors", credentials: "include" }).catch(() => {});
            }
            await fetch(`${origin}/auth/sessions/current`, { method: "DELETE", credentials: "include" }).catch(() => {});
        }, origin);
        assert.ok(statuses.length >= 3 && statuses.every((status) => status >= 400), String(statuses));
        assert.equal((await current(user)).length, 1);
        assert.equal(await status(page), "signed-in");
    });
});
