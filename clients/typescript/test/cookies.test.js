// Cookie mode, in Chromium: the example whose pages Express renders, and the client in them.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import { after, before, describe, test } from "node:test";
import { freePort } from "../../../tests/free-port.mjs";
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

/** The example, before sessiond behind a relay; and a browser profile of its own, whose pages run `init` first. */
async function app(t, init) {
    const relay = await Relay.open();
    const PORT = await freePort();
    const env = { ...process.env, PORT, SESSIOND_URL: relay.url, SESSIOND_PROJECT_ID: COOKIE_PROJECT, SESSIOND_SERVER_KEY: COOKIE_SERVER_KEY };
    const server = spawn(process.execPath, [new URL("../examples/dist/pages.js", import.meta.url).pathname], { env, stdio: "inherit" });
    const origin = `http://localhost:${PORT}`;
    await eventually("it listens", () => fetch(`${origin}/login`).then(() => true, () => false));
    const context = await browser.newContext();
    context.setDefaultTimeout(PATIENCE_MS);
    if (init) await context.addInitScript(init);
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

describe("in cookie mode", { concurrency: 6 }, () => {
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

    test("without storage, and with one that another tab clears", async (t) => {
        const refusals = [
            () => Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } }),
            () => (Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); }),
            undefined,
        ];
        for (const init of refusals) {
            const { origin, open, signIn, current, problems } = await app(t, init);
            const page = await open();
            const user = await signIn(page);
            const other = await open("/next");
            await other.evaluate(() => {
                try { localStorage.clear(); } catch {}
            });
            await expiry();
            assert.equal(await page.evaluate(async () => (await client.fetch("/api/hello", { method: "POST" })).status), 200);
            assert.equal(await status(other), "signed-in");
            await page.getByRole("button", { name: "Sign out" }).click();
            await other.waitForURL(`${origin}/login`);
            await eventually("the end", async () => (await current(user)).length === 0);
            assert.deepEqual(problems, []);
        }
    });

    test("a clock that is set back or forward by an hour", async (t) => {
        const { relay, open, signIn, problems } = await app(t, () => {
            const real = Date.now.bind(Date);
            window.ahead = Number(new URLSearchParams(location.search).get("ahead") ?? -3_600_000);
            Date.now = () => real() + window.ahead;
        });
        const page = await open();
        await signIn(page);
        const tabs = [page, await open("/?ahead=3600000")];
        for (const tab of tabs) await tab.waitForFunction(() => window.client?.state.status === "signed-in");
        // And while the page is open.
        for (const hours of [0, 1, -2]) {
            for (const tab of tabs) await tab.evaluate((hours) => (window.ahead = hours * 3_600_000), hours);
            await expiry();
            const before = relay.refreshes;
            for (const tab of tabs) {
                assert.equal(await tab.evaluate(async () => (await client.fetch("/api/hello", { method: "POST" })).status), 200);
                assert.equal(await tab.evaluate(async () => (await client.listSessions()).items.length), 1);
                assert.equal(await status(tab), "signed-in");
            }
            assert.ok(relay.refreshes - before <= 4, "no loop");
        }
        assert.deepEqual(problems, []);
    });

    test("a lost answer to a refresh; a tab that is frozen during one, and during a sign-out", async (t) => {
        const { relay, origin, context, open, signIn, cookies, problems } = await app(t);
        const page = await open();
        const user = await signIn(page);
        const other = await open("/next");
        for (const tab of [page, other]) await tab.waitForFunction(() => window.client?.state.status === "signed-in");
        const refresh = (tab) => tab.evaluate(() => client.refresh().then(() => "refreshed", ({ reason }) => reason));
        const before = (await cookies())[REFRESH].value;
        relay.rule = (call) => call === `POST /auth/sessions/current/refresh` && "lose";
        assert.notEqual(await refresh(page), "refreshed");
        assert.equal((await cookies())[REFRESH].value, before);
        relay.rule = null;
        assert.equal(await refresh(page), "refreshed");
        assert.notEqual((await cookies())[REFRESH].value, before);

        let answer;
        relay.rule = (call) => call === `POST /auth/sessions/current/refresh` && new Promise((go) => (answer = go));
        const late = refresh(page);
        await eventually("the refresh", () => answer);
        relay.rule = null;
        const devtools = await context.newCDPSession(page);
        await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
        answer();
        for (let round = 0; round < 2; round += 1) {
            await expiry();
            assert.equal(await refresh(other), "refreshed");
        }
        await devtools.send("Page.setWebLifecycleState", { state: "active" });
        await late;
        assert.equal(await page.evaluate(async () => (await client.fetch("/api/hello")).status), 200);
        for (const tab of [page, other]) assert.equal(await status(tab), "signed-in");
        assert.equal(await other.evaluate(() => client.state.userId), user);

        await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
        await other.getByRole("button", { name: "Sign out" }).click();
        await other.waitForURL(`${origin}/login`);
        await devtools.send("Page.setWebLifecycleState", { state: "active" });
        await page.waitForURL(`${origin}/login`);
        assert.deepEqual(problems, []);
    });

    test("a sign-in in one tab races a sign-out in another", async (t) => {
        const { origin, open, signIn, cookies, current, problems } = await app(t);
        const [page, other] = [await open(), await open()];
        for (let race = 0; race < 4 * ROUNDS; race += 1) {
            const [old, user] = [newUser(), newUser()];
            await page.goto(origin);
            await signIn(page, old);
            await other.goto(`${origin}/login`);
            await other.getByLabel("user").fill(user);
            await Promise.all([
                sleep(Math.random() * 20).then(() => page.evaluate(() => void client.signOut())),
                sleep(Math.random() * 20).then(() => other.getByRole("button", { name: "Sign in" }).click()),
            ]);
            await other.waitForURL((url) => url.pathname !== "/login" || url.search !== "");
            await eventually("no request is under way", async () => (await sleep(100), (await current(old)).length + (await current(user)).length < 2));
            // What the page shows is what the cookies say, and that session is live.
            const isIn = Object.keys(await cookies()).length > 0;
            await other.goto(`${origin}/next`);
            if (isIn) {
                await other.waitForFunction(() => window.client?.state.status === "signed-in");
                assert.equal(await other.evaluate(() => client.state.userId), user);
                assert.equal((await current(user)).length, 1);
                await other.evaluate(() => void client.signOut());
                await other.waitForURL(`${origin}/login`);
                await eventually("cleared", async () => Object.keys(await cookies()).length === 0);
            } else assert.match(other.url(), /\/login/);
            assert.deepEqual(await cookies(), {});
        }
        assert.deepEqual(problems, []);
    });

    /** Signs in without the client: as pages without it do, or another program of the same browser. */
    const signInWithoutClient = (page, user) => page.evaluate(async (user) => {
        await fetch("/login", { method: "POST", body: new URLSearchParams({ user }), redirect: "manual" });
    }, user);
    /** A client of the test's own in place of the page's. */
    const newClient = (page) => page.evaluate(async () => {
        window.client.close();
        const { Client } = await import("@sessiond/client");
        window.client = new Client({ url: "/", cookies: true, watch: false });
        await window.client.ready();
    });
    const show = (page, isHidden) => page.evaluate((isHidden) => {
        Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }, isHidden);

    test("another tab signs in again, which ends the session: nobody is signed out", async (t) => {
        const { relay, origin, open, signIn, current, problems } = await app(t);
        const page = await open();
        const user = await signIn(page);
        await eventually("the stream", () => relay.count(WATCH) > 0);
        await sleep(200);
        const [old] = await current(user);
        const other = await open("/login");
        const next = newUser();
        await signInWithoutClient(other, next);
        await revoke(old.id, COOKIE_SERVER_KEY);
        await page.waitForFunction((next) => client.state.userId === next, next);
        assert.equal(await status(page), "signed-in");
        assert.equal(page.url(), `${origin}/`);
        // The same, noticed by a refresh.
        const [second] = await current(next);
        const last = newUser();
        await show(page, true);
        await signInWithoutClient(other, last);
        await revoke(second.id, COOKIE_SERVER_KEY);
        await page.evaluate(() => client.refresh().catch(() => {}));
        await show(page, false);
        await page.waitForFunction((last) => client.state.userId === last, last);
        assert.deepEqual(problems, []);
    });

    test("while a tab is hidden, a page without the client signs in or out: it knows when it is shown", async (t) => {
        const { origin, open, signIn } = await app(t);
        const page = await open();
        await signIn(page);
        const other = await open("/login");
        await show(page, true);
        const next = newUser();
        await signInWithoutClient(other, next);
        await show(page, false);
        await page.waitForFunction((next) => client.state.userId === next, next);
        await show(page, true);
        await other.evaluate(() => fetch("/auth/sessions/current", { method: "DELETE" }));
        await sleep(200);
        assert.equal(page.url(), `${origin}/`);
        await show(page, false);
        await page.waitForURL(`${origin}/login`);
    });

    test("a page from the back-forward cache knows of the sign-out in the meantime", async (t) => {
        const { origin, open, signIn } = await app(t);
        const page = await open();
        await signIn(page);
        await page.evaluate(() => addEventListener("pageshow", ({ persisted }) => persisted && sessionStorage.setItem("kept", "1")));
        await page.goto(`${origin}/login`);
        await page.evaluate(() => fetch("/auth/sessions/current", { method: "DELETE" }));
        await page.evaluate(() => history.back());
        await page.waitForFunction(() => sessionStorage.getItem("kept"));
        await page.waitForURL(`${origin}/login`);
    });

    test("the access cookie is gone, and the refresh cookie is not", async (t) => {
        const { context, open, signIn, cookies } = await app(t);
        const page = await open();
        const user = await signIn(page);
        await context.clearCookies({ name: ACCESS });
        await newClient(page);
        assert.deepEqual(await page.evaluate(() => [client.state.status, client.state.userId]), ["signed-in", user]);
        assert.ok((await cookies())[ACCESS]);
        await context.clearCookies({ name: ACCESS });
        assert.equal(await page.evaluate(async () => (await client.listSessions()).items.length), 1);
    });

    test("while it is unknown whose the cookies are: one question for parallel calls, and a sign-out works", async (t) => {
        const { relay, open, signIn, cookies, current } = await app(t);
        const page = await open();
        const user = await signIn(page);
        relay.rule = (call) => call === "GET /auth/sessions/current" && "cut";
        await newClient(page);
        assert.equal(await status(page), "unknown");
        await expiry();
        relay.rule = null;
        const [questions, refreshes] = [relay.count("GET /auth/sessions/current"), relay.refreshes];
        const statuses = await page.evaluate(() => Promise.all(Array.from({ length: 10 }, async () => (await client.fetch("/login")).status)));
        assert.deepEqual(statuses, Array(10).fill(200));
        // Refused, and asked again after the refresh.
        assert.deepEqual([relay.count("GET /auth/sessions/current") - questions, relay.refreshes - refreshes], [2, 1]);

        relay.rule = (call) => call === "GET /auth/sessions/current" && "cut";
        await newClient(page);
        let attempts = 0;
        relay.rule = (call) => call === "GET /auth/sessions/current" ? attempts > 0 || "cut" : call === SIGN_OUT && (attempts += 1) === 1 && "cut";
        await page.evaluate(() => client.signOut());
        assert.equal(await status(page), "signed-out");
        assert.deepEqual([await cookies(), await current(user)], [{}, []]);
    });

    test("a 401 in the first moments of a page is still about the cookie's age", async (t) => {
        const { context, open, signIn, cookies, relay } = await app(t);
        const page = await open();
        await signIn(page);
        await page.evaluate(() => client.close());
        const old = (await cookies())[ACCESS];
        await expiry();
        await page.evaluate(() => fetch("/auth/sessions/current/refresh", { method: "POST" }));
        await newClient(page);
        const before = relay.refreshes;
        // A page does not see how old its cookie is.
        await context.addCookies([old]);
        assert.equal(await page.evaluate(async () => (await client.fetch("/auth/sessions/current")).status), 200);
        assert.equal(relay.refreshes - before, 1);
    });

    test("sign-outs that were not confirmed, of several sessions: the next page finishes that of the cookies", async (t) => {
        const { origin, open, signIn, current } = await app(t);
        const page = await open();
        const user = await signIn(page);
        await page.evaluate(() => {
            client.close();
            localStorage.setItem("sessiond.ending", `019e0000-0000-7000-8000-000000000000\n${client.state.sessionId}`);
        });
        await page.goto(origin);
        await page.waitForURL(`${origin}/login`);
        await eventually("the end", async () => (await current(user)).length === 0);
    });

    test("another site cannot sign a visitor in", async (t) => {
        const { origin, context, cookies } = await app(t);
        const stranger = http.createServer((_, response) => response.writeHead(200, { "content-type": "text/html" })
            .end(`<form method="post" action="${origin}/login"><input name="user" value="eve"><button>Win</button></form>`));
        stranger.listen(0, "localhost");
        await once(stranger, "listening");
        t.after(() => stranger.close());
        const page = await context.newPage();
        await page.goto(`http://localhost:${stranger.address().port}/`);
        const [answer] = await Promise.all([page.waitForResponse(`${origin}/login`), page.getByRole("button").click()]);
        assert.equal(answer.status(), 403);
        assert.deepEqual(await cookies(), {});
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
