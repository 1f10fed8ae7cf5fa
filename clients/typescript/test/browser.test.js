// The client in Chromium, against a running sessiond of another origin. ../check starts it, and runs this twice: for a
// project with default rules, and for one with strict refresh and no grace, without the tests of several tabs: there
// parallel refreshes count as theft.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { STRICT, createSession, eventually, expiry, isActive, revoke, sleep, stale } from "./host.js";
import { hello, openApp, openBrowser, outs, signIn, status, stored, tabs } from "./tab.js";

/** The rounds of a race. */
const ROUNDS = Number(process.env.ROUNDS ?? 5);

const REFRESH = "POST /auth/sessions/current/refresh";
const WATCH = "GET /auth/revocations:watch";
let browser, app;
before(async () => {
    [browser, app] = [await openBrowser(), await openApp(process.env.APP_ORIGIN)];
});
after(async () => {
    await browser.close();
    app.close();
    app.closeAllConnections();
});

const quiet = { options: { watch: false } };

describe("in one tab", { concurrency: 4 }, () => {
    test("the quick start of docs/guides/clients.md", async (t) => {
        const { relay, pages: [page] } = await tabs(t, browser, 1, quiet);
        await page.evaluate((url) => {
            window.app = { url, credentials: new URLSearchParams({ user: "quick" }), showLogin: (reason) => (window.shown = reason) };
            return import("/quick-start.js");
        }, relay.url);
        assert.equal(await page.evaluate(async () => (await window.response).text()), "quick");
        const id = await page.evaluate(() => window.session.state.sessionId);
        await revoke(id);
        await page.waitForFunction(() => window.shown);
        assert.deepEqual(page.problems, []);
    });

    test("stays signed in past the expiry and after a reload, with the stream, and learns of the end", async (t) => {
        const { relay, pages: [page], load } = await tabs(t, browser, 1);
        const session = await signIn(page);
        await eventually("the next stream", () => relay.count(WATCH) >= 2);
        assert.equal(await hello(page), session.session.user_id);
        await load(page);
        assert.equal(await status(page), "signed-in");
        await eventually("another stream", () => relay.count(WATCH) >= 3);
        await sleep(100);
        await revoke(session.session.id);
        await eventually("the end", async () => (await outs(page)).length > 0, 2_000);
        assert.deepEqual(await outs(page), ["SESSION_REVOKED"]);
        assert.equal(await stored(page), null);
        assert.deepEqual(page.problems, []);
    });

    test("a hidden page closes its stream, and looks again when it is shown", async (t) => {
        const { relay, pages: [page] } = await tabs(t, browser, 1);
        const session = await signIn(page);
        await eventually("the stream", () => relay.count(WATCH) > 0);
        const show = (isHidden) => page.evaluate((isHidden) => {
            Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }, isHidden);
        await show(true);
        await sleep(200);
        const before = relay.asked.length;
        await stale();
        assert.equal(relay.asked.length, before);
        await revoke(session.session.id);
        await show(false);
        await eventually("the end", async () => (await outs(page)).length > 0, 2_000);
    });

    test("offline is never out; the network is cut during a refresh", async (t) => {
        const { relay, context, pages: [page] } = await tabs(t, browser, 1);
        const session = await signIn(page);
        await eventually("the stream", () => relay.count(WATCH) > 0);
        await context.setOffline(true);
        relay.server.closeAllConnections();
        await expiry();
        // Until then the token may be a newer one, whose refresh was in progress: the request itself fails.
        await eventually("a refresh that cannot be sent", async () => (await hello(page)) === "UNREACHABLE");
        assert.equal(await status(page), "unknown");
        assert.equal(await page.evaluate(() => client.state.userId), session.session.user_id);
        await context.setOffline(false);
        await eventually("signed in", async () => (await status(page)) === "signed-in", 3_000);
        // Cut before sessiond has the request.
        await expiry();
        relay.rule = () => "cut";
        relay.server.closeAllConnections();
        await eventually("unknown", async () => (await hello(page), (await status(page)) === "unknown"));
        relay.rule = null;
        await eventually("an answer", async () => (await hello(page)) === session.session.user_id);
        assert.equal(await status(page), "signed-in");
        assert.deepEqual(await outs(page), []);
    });

    test("the sign-out survives the page", async (t) => {
        const { relay, pages, open } = await tabs(t, browser, 2, quiet);
        for (const [page, leave] of [[pages[0], () => pages[0].close()], [pages[1], () => pages[1].goto("about:blank")]]) {
            const session = await signIn(page);
            await page.evaluate(() => void client.signOut());
            await leave();
            await eventually("the revocation", async () => !(await isActive(session.access_token)));
        }
        // With no network at that moment: the next page of the app repeats it.
        const last = await open();
        const session = await signIn(last);
        relay.rule = () => "cut";
        await last.evaluate(() => void client.signOut());
        await last.close();
        await sleep(200);
        assert.ok(await isActive(session.access_token));
        relay.rule = null;
        const next = await open();
        assert.equal(await status(next), "signed-out");
        await eventually("the revocation", async () => !(await isActive(session.access_token)));
    });

    test("without storage: private modes and policies", async (t) => {
        const refusals = {
            "reading it throws": () => Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } }),
            "it is null": () => Object.defineProperty(window, "localStorage", { value: null }),
            "writing throws": () => (Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); }),
        };
        for (const [what, init] of Object.entries(refusals)) {
            const { pages: [page] } = await tabs(t, browser, 1, { init, ...quiet });
            const session = await signIn(page);
            await stale();
            assert.equal(await hello(page), session.session.user_id, what);
            await page.evaluate(() => client.signOut());
            assert.equal(await isActive(session.access_token), false);
            assert.deepEqual(page.problems, []);
        }
    });

    test("the clock is set back by an hour, at the start and while the page is open", async (t) => {
        const { relay, pages: [page], load } = await tabs(t, browser, 1, { init: () => {
            const real = Date.now.bind(Date);
            window.behind = 3_600_000;
            Date.now = () => real() - window.behind;
        }, ...quiet });
        const session = await signIn(page);
        await stale();
        assert.equal(await hello(page), session.session.user_id);
        await page.evaluate(() => (window.behind = 7_200_000));
        await stale();
        assert.equal(await hello(page), session.session.user_id);
        await load(page);
        await stale();
        assert.equal(await hello(page), session.session.user_id);
        assert.ok(relay.refreshes <= 4);
        assert.deepEqual(await outs(page), []);
    });
});

describe("in several tabs", { concurrency: 4, skip: STRICT && "parallel refreshes count as theft there" }, () => {
    test("three tabs race to refresh: nobody is signed out, and it is one rotation", async (t) => {
        const { relay, pages } = await tabs(t, browser, 3, quiet);
        const session = await signIn(pages[0]);
        const seen = new Set([await stored(pages[0])].map((text) => JSON.parse(text).refresh_token));
        for (let round = 1; round <= ROUNDS; round += 1) {
            await stale();
            const users = await Promise.all(pages.map(hello));
            assert.deepEqual(users, Array(3).fill(session.session.user_id), `round ${round}`);
            await sleep(50);
            seen.add(JSON.parse(await stored(pages[0])).refresh_token);
            assert.equal(seen.size, round + 1, "one rotation");
        }
        for (const page of pages) assert.deepEqual([await outs(page), page.problems], [[], []]);
        console.log(`# ${ROUNDS} rounds of 3 tabs: ${relay.refreshes} requests, ${ROUNDS} rotations`);
    });

    test("a sign-out reaches the other tabs at once, without a call of theirs", async (t) => {
        const { relay, pages } = await tabs(t, browser, 3, quiet);
        await signIn(pages[0]);
        for (const page of pages) await eventually("signed in", async () => (await status(page)) === "signed-in");
        await pages[1].evaluate(() => client.signOut());
        for (const [n, page] of pages.entries()) {
            await eventually("out", async () => (await outs(page)).length === 1, 500);
            assert.deepEqual(await outs(page), [n === 1 ? "SIGNED_OUT" : "SIGNED_OUT_IN_ANOTHER_TAB"]);
        }
        assert.deepEqual(relay.asked, ["DELETE /auth/sessions/current"]);
    });

    test("a sign-in in one tab races a sign-out in another", async (t) => {
        const { pages } = await tabs(t, browser, 2, quiet);
        for (let round = 0; round < 4 * ROUNDS; round += 1) {
            const old = await signIn(pages[0]);
            await eventually("both in", async () => (await pages[1].evaluate(() => client.state.sessionId)) === old.session.id);
            const session = await createSession();
            const after = (ms, run) => sleep(ms).then(run);
            await Promise.all([
                after(Math.random() * 10, () => pages[0].evaluate(() => client.signOut())),
                after(Math.random() * 10, () => signIn(pages[1], session)),
            ]);
            await eventually("agreement", async () => {
                const ids = await Promise.all(pages.map((page) => page.evaluate(() => client.state.sessionId ?? null)));
                return ids[0] === ids[1];
            });
            await sleep(30);
            const [id, other] = await Promise.all(pages.map((page) => page.evaluate(() => client.state.sessionId ?? null)));
            assert.equal(id, other);
            // Signed out and then in; or in, adopted by the first tab, and then out.
            assert.equal(await isActive(session.access_token), id === session.session.id);
            assert.equal(Boolean(await stored(pages[0])), id !== null);
            if (id) assert.equal(await isActive(old.access_token), false);
            if (id) await pages[0].evaluate(() => client.signOut());
        }
    });

    test("a tab that was frozen during its refresh does not bring old tokens back", async (t) => {
        const { relay, context, pages: [page, other] } = await tabs(t, browser, 2, quiet);
        const session = await signIn(page);
        await stale();
        let answer;
        relay.rule = (call) => call === REFRESH && relay.refreshes === 1 && new Promise((go) => (answer = go));
        const asked = hello(page);
        await eventually("the refresh", () => answer);
        const devtools = await context.newCDPSession(page);
        await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
        answer();
        for (let round = 0; round < 3; round += 1) {
            await other.evaluate(() => client.refresh());
            await sleep(800);
        }
        const newest = await stored(other);
        await devtools.send("Page.setWebLifecycleState", { state: "active" });
        assert.ok([session.session.user_id, 401].includes(await asked));
        assert.equal(await hello(page), session.session.user_id);
        assert.equal(JSON.parse(await stored(page)).refresh_token === JSON.parse(newest).refresh_token || (await hello(other)) === session.session.user_id, true);
        await sleep(2_200);
        for (const one of [page, other]) {
            await one.evaluate(() => client.refresh());
            assert.deepEqual([await status(one), await outs(one)], ["signed-in", []]);
        }
    });

    test("a tab that was frozen during a sign-out is out when it wakes", async (t) => {
        const { context, pages: [page, other] } = await tabs(t, browser, 2, quiet);
        await signIn(page);
        await eventually("both in", async () => (await status(other)) === "signed-in");
        const devtools = await context.newCDPSession(page);
        await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
        await other.evaluate(() => client.signOut());
        await devtools.send("Page.setWebLifecycleState", { state: "active" });
        await eventually("out", async () => (await status(page)) === "signed-out");
        assert.equal(await hello(page), "NOT_SIGNED_IN");
    });

    test("the storage is cleared in another tab: not a sign-out, and nothing comes back after one", async (t) => {
        const { pages: [page, other] } = await tabs(t, browser, 2, quiet);
        const session = await signIn(page);
        await other.evaluate(() => localStorage.clear());
        await stale();
        for (const one of [page, other]) {
            assert.equal(await hello(one), session.session.user_id);
            assert.deepEqual(await outs(one), []);
        }
        const kept = await stored(page);
        await page.evaluate(() => client.signOut());
        await eventually("out", async () => (await status(other)) === "signed-out");
        // A tab that is late stores the tokens of the ended session.
        await other.evaluate((kept) => localStorage.setItem("sessiond", kept), kept);
        await sleep(100);
        assert.equal(await status(page), "signed-out");
        assert.equal(await hello(page), "NOT_SIGNED_IN");
    });
});
