// nginx, Envoy, Caddy and Traefik in front of an application with Express and one with Django that know nothing of sessions, in Chromium: a
// browser signs in, loads pages past the expiry of its access tokens, and is signed out in all tabs.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { PROJECTS, PROXIES, close, cookieNames, endAll, greets, jar, newContext, newUser, openBrowser, sessionsOf, signIn, signOut, sleep, startApp, startProxy } from "./stage.js";

const PROJECT = "pages";
const [, REFRESH] = cookieNames(PROJECT);
const expiry = () => sleep(PROJECTS[PROJECT].ttl + 100);

/** How often a sign-out is measured, for each proxy and application. */
const SAMPLES = Number(process.env.SAMPLES ?? 3);

let browser;
const apps = {};
const times = [];

before(async () => {
    [browser, apps.express, apps.django] = await Promise.all([openBrowser(), startApp("express", PROJECT), startApp("django", PROJECT)]);
});
after(async () => {
    await close(browser);
    await endAll();
    times.sort((one, other) => one - other);
    console.log(`# the other tab's refusal after the 200 of a sign-out: median ${times[times.length >> 1].toFixed(1)} ms, at most ${times.at(-1).toFixed(1)} ms, of ${times.length}`);
});

describe("pages", { concurrency: 2 }, () => {
    for (const proxy of PROXIES) for (const app of ["express", "django"]) {
        test(`${app} behind ${proxy}`, async (t) => {
            const port = await startProxy(proxy, PROJECT, apps[app]);
            const origin = `http://localhost:${port}`;
            const context = await newContext(t, browser);
            const problems = [];
            context.on("weberror", (error) => problems.push(error.error().message));
            const page = await context.newPage();
            const user = `ada é, ${newUser()}`;

            // To the login page and back.
            await page.goto(`${origin}/orders?open=1`);
            assert.equal(page.url(), `${origin}/login?return_to=${encodeURIComponent("/orders?open=1")}`);
            await signIn(page, user);
            assert.equal(page.url(), `${origin}/orders?open=1`);

            // Past the expiry, twice: by a click, and with a page's ten parts.
            const tokens = [(await jar(context))[REFRESH].value];
            await expiry();
            await page.getByText("Next page").click();
            await page.waitForURL(`${origin}/next`);
            await greets(page, user);
            tokens.push((await jar(context))[REFRESH].value);
            await expiry();
            const failed = [];
            page.on("requestfailed", (request) => failed.push(request.url()));
            page.on("response", (response) => response.status() >= 300 && failed.push(`${response.status()} ${response.url()}`));
            await page.goto(`${origin}/orders?parts=10`);
            await greets(page, user);
            await page.waitForFunction(() => [...document.images].every(({ complete }) => complete));
            assert.deepEqual(failed, []);
            tokens.push((await jar(context))[REFRESH].value);
            assert.equal(new Set(tokens).size, 3, "refreshed without anybody's noticing");
            page.removeAllListeners("response");

            // What no browser sends: the application sees the user that the proxy names, and nobody else.
            const spoofed = ["x-user-id", "x_user_id", "x_user-id", "x-user_id"].map((name) => [name, "root"]);
            const ask = async (path, more = []) => {
                const answer = await fetch(origin + path, { headers: [...spoofed, ...more] });
                return [answer.status, await answer.text()];
            };
            const cookie = Object.values(await jar(context)).map(({ name, value }) => `${name}=${value}`).join("; ");
            const [status, body] = await ask("/orders", [["cookie", cookie]]);
            assert.deepEqual([status, body.includes(`Hello, ${user}!`), body.includes("root")], [200, true, false]);
            assert.ok(!(await ask("/login"))[1].includes("root"));
            assert.equal((await ask("/orders"))[0], 401);

            // Signed out in one tab, and at the login page with the other's next click.
            for (let sample = 0; sample < SAMPLES; sample += 1) {
                if (sample > 0) {
                    await page.goto(origin);
                    await signIn(page, user);
                }
                const other = await context.newPage();
                await other.goto(`${origin}/orders`);
                await greets(other, user);
                await other.evaluate(() => {
                    new BroadcastChannel("test").onmessage = () => document.querySelector("a").click();
                });
                const { status, at } = await signOut(page);
                assert.equal(status, 200);
                await other.waitForURL(`${origin}/login?return_to=${encodeURIComponent("/next")}`);
                const refused = await other.evaluate(() => performance.timeOrigin + performance.getEntriesByType("navigation")[0].redirectEnd);
                times.push(refused - at);
                assert.deepEqual(Object.keys(await jar(context)), []);
                assert.deepEqual(await sessionsOf(PROJECT, encodeURIComponent(user)), []);
                await close(other);
            }
            assert.deepEqual(problems, []);
        });
    }
});
