// Bad input and faults, in Chromium, with pages behind the proxies: nothing is signed out by mistake, and nothing stays in after a
// sign-out. What concerns the client in the page is in clients/typescript/test, and what needs no browser in tests/cookies.rs.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Entrance, PROJECTS, PROXIES, close, cookieNames, createSession, endAll, eventually, greets, jar, newContext, newUser, openBrowser, rotationsMax, sessionsOf, signIn, signOut, sleep, startApp, startProxy } from "./stage.js";

const PROJECT = "faults";
const NAMES = cookieNames(PROJECT);
const [ACCESS, REFRESH] = NAMES;
const { ttl: TTL_MS } = PROJECTS[PROJECT];
const expiry = () => sleep(TTL_MS + 100);

/** How often two tabs race. */
const RACES = Number(process.env.ROUNDS ?? 8);

let browser;
const proxies = {};
before(async () => {
    const app = await startApp("express", PROJECT);
    browser = await openBrowser();
    for (const proxy of PROXIES) proxies[proxy] = await startProxy(proxy, PROJECT, app);
});
after(async () => {
    await close(browser);
    await endAll();
});

/** A tab that is signed in, behind an entrance of its own. */
async function signedIn(t, { proxy = "nginx", init } = {}) {
    const entrance = await Entrance.open(() => proxies[proxy]);
    const origin = `http://localhost:${entrance.port}`;
    const context = await newContext(t, browser);
    if (init) await context.addInitScript(init);
    const page = await context.newPage();
    const user = newUser();
    await page.goto(`${origin}/orders`);
    await signIn(page, user);
    const put = async (name, value) => context.addCookies([{ ...(await jar(context))[name], value }]);
    return { entrance, origin, context, page, user, put };
}

/** All responses since have the same new refresh token, unless there was another expiry. */
function isOneRotation(entrance, began, proxy) {
    const ms = performance.now() - began;
    const { size } = entrance.set(REFRESH);
    assert.ok(size >= 1 && size <= rotationsMax(ms, TTL_MS), `${proxy}: ${size} rotations in ${Math.round(ms)} ms`);
}

const next = async (page, user) => {
    await page.getByText("Next page").click();
    await page.waitForURL(/\/next$/);
    await greets(page, user);
};

describe("behind proxies", { concurrency: 4 }, () => {
    test("a cookie cut short, and a refresh token in its place: the page loads, with new cookies", async (t) => {
        for (const proxy of PROXIES) {
            const { context, page, user, put } = await signedIn(t, { proxy });
            const good = await jar(context);
            for (const bad of [good[ACCESS].value.slice(0, 40), good[ACCESS].value.slice(0, -1), good[REFRESH].value, "x"]) {
                await put(ACCESS, bad);
                await next(page, user);
                assert.match((await jar(context))[ACCESS].value, /^ey/, `${proxy}: healed`);
                assert.equal((await sessionsOf(PROJECT, user)).length, 1);
            }
            // Without a good refresh cookie it is over when the access token is.
            await put(REFRESH, good[REFRESH].value.slice(0, 40));
            await expiry();
            await page.goto(page.url());
            assert.match(page.url(), /\/login\?return_to=/);
        }
    });

    test("another project's cookie under this one's name is not accepted", async (t) => {
        const elsewhere = await createSession("other", "eve");
        const { page, put, user } = await signedIn(t);
        await put(ACCESS, elsewhere.access_token);
        await page.goto(page.url());
        assert.match(page.url(), /\/login\?return_to=/);
        await signIn(page, user);
    });

    test("a foreign bearer token beside the cookie counts, and the cookie does not", async (t) => {
        const stranger = newUser();
        const { access_token } = await createSession(PROJECT, stranger);
        for (const proxy of PROXIES) {
            const { page } = await signedIn(t, { proxy });
            const ask = (token) => page.evaluate(async (token) => {
                const response = await fetch("/orders", { headers: { authorization: `Bearer ${token}` } });
                return [response.status, /Hello, (.*)!/.exec(await response.text())?.[1]];
            }, token);
            const { access_token: fresh } = await createSession(PROJECT, stranger);
            assert.deepEqual(await ask(fresh), [200, stranger], proxy);
            assert.deepEqual(await ask("rubbish"), [401, undefined], proxy);
            assert.deepEqual(await ask(`${access_token}x`), [401, undefined], proxy);
        }
    });

    test("16 kB of cookies: refused saying so, and the session stays", async (t) => {
        for (const proxy of PROXIES) {
            const { context, page, user } = await signedIn(t, { proxy });
            const fillers = Array.from({ length: 5 }, (_, n) => ({ name: `filler${n}`, value: "x".repeat(3_900), url: page.url() }));
            await context.addCookies(fillers);
            const refused = await page.goto(page.url());
            assert.ok([400, 431].includes(refused.status()), `${proxy}: ${refused.status()}`);
            assert.match(await refused.text(), /cookie/i, proxy);
            for (const { name } of fillers) await context.clearCookies({ name });
            await page.goto(page.url());
            await greets(page, user);
        }
    });

    test("the answer to a refresh is lost: the next load gets the same successor", async (t) => {
        for (const proxy of PROXIES) {
            const { entrance, context, page, user } = await signedIn(t, { proxy });
            entrance.seen = [];
            let lost = 0;
            // Chromium repeats a load by itself if a connection that it had kept breaks.
            entrance.fate = (_, answer) => answer.headers["set-cookie"] && (lost += 1) <= 3 && "lose";
            await expiry();
            const url = page.url();
            const began = performance.now();
            await eventually("the page loads", () => page.goto(url).then(() => true, () => false));
            await greets(page, user);
            assert.ok(lost > 1, proxy);
            isOneRotation(entrance, began, proxy);
            assert.ok(entrance.set(REFRESH).has((await jar(context))[REFRESH].value));
        }
    });

    test("the network is cut in the middle of a refresh: the page loads signed in when it is back", async (t) => {
        for (const proxy of PROXIES) {
            const { entrance, page, user } = await signedIn(t, { proxy });
            const url = page.url();
            const load = () => page.goto(url).then(() => true, () => false);
            await expiry();
            entrance.seen = [];
            const began = performance.now();
            let arrived;
            entrance.fate = () => new Promise((go) => (arrived = go));
            const cut = load();
            await eventually("the refresh", () => arrived);
            entrance.cut();
            assert.equal(await cut, false);
            entrance.fate = null;
            assert.equal(await load(), false);
            entrance.restore();
            await eventually("the page loads", load);
            await greets(page, user);
            isOneRotation(entrance, began, proxy);
        }
    });

    test("a tab that was frozen for long: its next click loads signed in", async (t) => {
        const { context, page, user, origin } = await signedIn(t);
        const other = await context.newPage();
        const devtools = await context.newCDPSession(page);
        await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
        const tokens = new Set();
        for (let round = 0; round < 3; round += 1) {
            await expiry();
            await other.goto(`${origin}/next`);
            await greets(other, user);
            tokens.add((await jar(context))[REFRESH].value);
        }
        assert.equal(tokens.size, 3);
        await expiry();
        await devtools.send("Page.setWebLifecycleState", { state: "active" });
        await next(page, user);
        // And one that was frozen during the sign-out.
        await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
        assert.equal((await signOut(other)).status, 200);
        await devtools.send("Page.setWebLifecycleState", { state: "active" });
        await page.getByText("Next page").click();
        await page.waitForURL(/\/login\?return_to=/);
    });

    test("the storage is cleared in another tab, and without storage: cookies need none", async (t) => {
        const forbid = () => Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } });
        for (const init of [undefined, forbid]) {
            const { context, page, user, origin } = await signedIn(t, { init });
            const other = await context.newPage();
            await other.goto(origin);
            await other.evaluate(async () => {
                try { localStorage.clear(); } catch {}
                for (const { name } of await indexedDB.databases()) indexedDB.deleteDatabase(name);
            });
            await expiry();
            await next(page, user);
            assert.equal((await signOut(page)).status, 200);
            await other.goto(origin);
            assert.match(other.url(), /\/login/);
        }
    });

    test("a sign-in in one tab races a sign-out in another: the old session ends, and what is shown is so", async (t) => {
        const { entrance, context, page, origin } = await signedIn(t);
        const other = await context.newPage();
        for (let race = 0; race < RACES; race += 1) {
            const user = newUser();
            entrance.seen = [];
            await page.goto(`${origin}/login`);
            await other.goto(`${origin}/login`);
            await page.getByLabel("user").fill(user);
            await Promise.all([
                sleep(Math.random() * 15).then(() => page.getByRole("button", { name: "Sign in" }).click()),
                sleep(Math.random() * 15).then(() => signOut(other)),
            ]);
            await page.waitForURL((url) => url.pathname === "/" || url.search.includes("return_to"));
            const cookies = await jar(context);
            assert.ok([0, 2].includes(Object.keys(cookies).length), "both or none");
            await page.goto(`${origin}/orders`);
            if (cookies[REFRESH]) {
                await greets(page, user);
                assert.equal((await sessionsOf(PROJECT, user)).length, 1);
            } else {
                assert.match(page.url(), /\/login\?return_to=/);
                await page.goto(`${origin}/login`);
                await signIn(page, user);
            }
            // The session that the sign-out was sent with is over, also for those who have kept its cookies.
            const { headers: { cookie = "" } } = entrance.seen.find(({ method }) => method === "DELETE");
            if (cookie.includes(REFRESH)) assert.equal((await fetch(`${origin}/orders`, { headers: { cookie } })).status, 401);
        }
    });

    test("another site's form signs nobody in", async (t) => {
        const stranger = await Entrance.open(() => (_, response) => response.writeHead(200, { "content-type": "text/html" }).end(`<!doctype html><link rel="icon" href="data:,"><form method="post"><input name="user" value="eve"><button>Win</button></form>`));
        for (const port of [proxies.nginx, await startApp("django", PROJECT)]) {
            const context = await newContext(t, browser);
            const page = await context.newPage();
            await page.goto(`http://localhost:${stranger.port}/`);
            await page.evaluate((action) => (document.forms[0].action = action), `http://localhost:${port}/login`);
            const [answer] = await Promise.all([page.waitForResponse(/\/login$/), page.getByRole("button").click()]);
            assert.equal(answer.status(), 403);
            assert.deepEqual(await jar(context), {});
        }
    });

    test("an open redirect by the return path", async (t) => {
        const paths = ["//evil.example/", "/\\evil.example/", "/%5cevil.example/", "/%2fevil.example/", "/.//evil.example/", "/%09/evil.example/", "/a%0d%0aset-cookie:x=y"];
        for (const proxy of PROXIES) {
            const origin = `http://localhost:${proxies[proxy]}`;
            // By the response: if a refusal has no body, Chromium shows an error page of its own.
            const landing = async (page, act) => {
                const isLast = (response) => response.request().isNavigationRequest() && (response.status() < 300 || response.status() >= 400);
                const [response] = await Promise.all([page.waitForResponse(isLast), act().catch(() => {})]);
                assert.equal(new URL(response.url()).origin, origin, `${proxy}: ${response.url()}`);
                return response.status();
            };
            /** The status of a page, and of what a sign-in leads to if that is the login page. */
            const visit = async (url) => {
                const context = await newContext(t, browser);
                const page = await context.newPage();
                const statuses = [await landing(page, () => page.goto(url))];
                if (statuses[0] === 200) {
                    await page.getByLabel("user").fill(newUser());
                    statuses.push(await landing(page, () => page.getByRole("button", { name: "Sign in" }).click()));
                }
                await close(context);
                return statuses.join();
            };
            for (const path of paths) {
                // Some a proxy refuses by itself.
                assert.match(await visit(origin + path), /^(400|200,200)$/, `${proxy} ${path}`);
                // As a link of somebody else's.
                assert.match(await visit(`${origin}/login?return_to=${encodeURIComponent(path)}`), /^200,(200|400)$/, `${proxy} ${path}`);
            }
        }
    });
});
