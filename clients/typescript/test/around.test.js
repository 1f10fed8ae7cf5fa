// What is around the client: the middlewares, in the examples' servers; React and the element, in Chromium.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import http from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { after, before, describe, test } from "node:test";
import { createVerifier, isSameOrigin } from "@sessiond/server";
import { sessiondApi, sessiond as forExpress } from "@sessiond/server/express";
import { sessiond as forFastify } from "@sessiond/server/fastify";
import { sessiond as forHono } from "@sessiond/server/hono";
import { sessiond as forNext, sessionOf, sessiondProxy } from "@sessiond/server/next";
import express from "express";
import Fastify from "fastify";
import { Hono } from "hono";
import { freePort } from "../../../tests/free-port.mjs";
import { COOKIE_PROJECT, COOKIE_SERVER_KEY, PROJECT, Relay, SERVER_KEY, SESSIOND_URL, api, createSession, eventually, isActive, newUser, revoke, sleep, stale } from "./host.js";
import { openApp, openBrowser, outs, signIn, tabs } from "./tab.js";

const { AROUND_ORIGIN, SCREENSHOTS } = process.env;
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const bearer = ({ access_token }) => ({ authorization: `Bearer ${access_token}` });

describe("middlewares", { concurrency: true }, () => {
    for (const name of ["express", "fastify", "hono"]) {
        test(`${name}: passes a session on, refuses everything else, and is down when sessiond is`, async (t) => {
            for (const isUp of [true, false]) {
                const PORT = await freePort();
                const url = isUp ? SESSIOND_URL : `http://127.0.0.1:${await freePort()}`;
                const env = { ...process.env, PORT, SESSIOND_URL: url, SESSIOND_PROJECT_ID: PROJECT, SESSIOND_SERVER_KEY: SERVER_KEY };
                const example = new URL(`../examples/dist/${name}.js`, import.meta.url);
                const server = spawn(process.execPath, [example.pathname], { env, stdio: "inherit" });
                t.after(() => server.kill());
                const ask = (path, options) => fetch(`http://127.0.0.1:${PORT}${path}`, options);
                await eventually("it listens", () => ask("/nothing").then(() => true, () => false));
                if (!isUp) {
                    const refused = await ask("/api/hello", { headers: bearer(await createSession()) });
                    assert.deepEqual([refused.status, refused.headers.get("retry-after")], [503, "1"]);
                    continue;
                }
                const user = `Ada Lovelace, ${newUser()} é`;
                const json = { "content-type": "application/json" };
                const session = await (await ask("/login", { method: "POST", headers: json, body: JSON.stringify({ user }) })).json();
                assert.deepEqual(await (await ask("/api/hello", { headers: bearer(session) })).json(), { hello: user });
                for (const headers of [{}, { authorization: "Bearer rubbish" }, { authorization: `Bearer ${session.refresh_token}` }]) {
                    const refused = await ask("/api/hello", { headers });
                    assert.equal(refused.status, 401);
                    assert.match(refused.headers.get("www-authenticate"), /^Bearer/);
                    assert.equal(refused.headers.get("cache-control"), "no-store");
                }
                await revoke(session.session.id);
                assert.equal((await ask("/api/hello", { headers: bearer(session) })).status, 401);
                server.kill();
            }
        });
    }

    test("next: wraps route handlers", async () => {
        const withSession = forNext({ url: SESSIOND_URL, project: PROJECT, timeoutMs: 10_000 });
        const GET = withSession((request, context, session) => Response.json({ hello: session.userId, ...context }));
        const session = await createSession(undefined, { claims: { role: "admin" } });
        const answer = await GET(new Request("http://app/", { headers: bearer(session) }), { at: "home" });
        assert.deepEqual(await answer.json(), { hello: session.session.user_id, at: "home" });
        assert.equal((await GET(new Request("http://app/"), {})).status, 401);
    });

    test("next: its proxy passes the session on, and nobody else can", async () => {
        const NextResponse = { next: ({ request }) => Object.assign(new Response(null), { passed: request.headers }) };
        const options = { url: SESSIOND_URL, project: PROJECT, timeoutMs: 10_000 };
        const session = await createSession(`Ada é, ${newUser()}`);
        const forged = { "x-sessiond-user": "eve", "x-sessiond-session": "x" };
        const { passed } = await sessiondProxy(NextResponse, options)(new Request("http://app/", { headers: { ...bearer(session), ...forged } }));
        assert.deepEqual(sessionOf(passed), { userId: session.session.user_id, sessionId: session.session.id });
        const nobody = await sessiondProxy(NextResponse, { ...options, optional: true })(new Request("http://app/", { headers: forged }));
        assert.equal(sessionOf(nobody.passed), undefined);
        const login = sessiondProxy(NextResponse, { ...options, cookies: true, login: "/login" });
        const page = await login(new Request("http://app/next?a=b", { headers: { accept: "text/html" } }));
        assert.equal(page.status, 302);
        assert.equal(page.headers.get("location"), "http://app/login?return_to=%2Fnext%3Fa%3Db");
    });

    test("in cookie mode, each renews the cookies, passes the session on, and refuses other sites", async (t) => {
        const options = { url: SESSIOND_URL, project: COOKIE_PROJECT, cookies: true, login: "/login", timeoutMs: 10_000 };
        const hello = (session) => ({ hello: session.userId });
        const [ofExpress, ofFastify, ofHono] = [express(), Fastify(), new Hono()];
        // Each handler lets caches keep its response, which new cookies in it rule out.
        const shared = "public, max-age=600";
        ofExpress.use(forExpress(options)).get("/raw/:kind", (request, response) => {
            const headers = { "Cache-Control": shared, "x-raw": "1" };
            response.writeHead(200, request.params.kind === "list" ? Object.entries(headers).flat() : headers).end("{}");
        });
        ofExpress.all("/{*page}", (request, response) => response.set("cache-control", shared).json(hello(request.sessiond)));
        const listening = ofExpress.listen(0, "127.0.0.1");
        await once(listening, "listening");
        t.after(() => listening.close());
        await ofFastify.register(forFastify, options);
        ofFastify.all("/*", async (request, reply) => {
            reply.header("cache-control", shared);
            return hello(request.sessiond);
        });
        t.after(() => ofFastify.close());
        ofHono.use(forHono(options)).all("*", (context) => context.json(hello(context.get("sessiond")), 200, { "cache-control": shared }));
        const ofNext = forNext(options)((_request, _context, session) => Response.json(hello(session), { headers: { "cache-control": shared } }));
        const frameworks = {
            // Not by `fetch`, which says `Sec-Fetch-Mode: cors`.
            express: (path, { method = "GET", headers }) => new Promise((answered, failed) => {
                const { port } = listening.address();
                http.request({ host: "127.0.0.1", port, path, method, headers }, async (answer) => {
                    const body = await text(answer);
                    const list = Object.entries(answer.headersDistinct).flatMap(([name, values]) => values.map((value) => [name, value]));
                    answered(new Response(body || null, { status: answer.statusCode, headers: list }));
                }).on("error", failed).end();
            }),
            fastify: async (path, { method = "GET", headers }) => {
                const { statusCode, headers: got, payload } = await ofFastify.inject({ url: path, method, headers });
                const list = Object.entries(got).flatMap(([name, value]) => [value].flat().map((one) => [name, String(one)]));
                return new Response(statusCode === 302 ? null : payload, { status: statusCode, headers: list });
            },
            hono: (path, init) => ofHono.request(path, init),
            next: (path, init) => ofNext(new Request(`http://app${path}`, init), {}),
        };
        for (const [name, ask] of Object.entries(frameworks)) {
            const user = `Ada é, ${newUser()}`;
            const { set_cookies } = await api("POST", "/auth/sessions", COOKIE_SERVER_KEY, { user_id: user, cookies: {} });
            const [access, refresh] = set_cookies.map((cookie) => cookie.split(";")[0]);
            const own = { "sec-fetch-site": "same-origin" };
            const fresh = await ask("/a", { headers: { ...own, cookie: `${access}; ${refresh}` } });
            assert.deepEqual([fresh.status, await fresh.json(), fresh.headers.getSetCookie()], [200, { hello: user }, []], name);
            assert.equal(fresh.headers.get("cache-control"), shared, name);
            const renewed = await ask("/a", { headers: { ...own, cookie: refresh } });
            assert.deepEqual([renewed.status, await renewed.json()], [200, { hello: user }], name);
            const names = renewed.headers.getSetCookie().map((cookie) => cookie.split("=")[0]);
            assert.deepEqual(names, [access, refresh].map((cookie) => cookie.split("=")[0]), name);
            assert.match(renewed.headers.get("cache-control"), /no-store/, name);
            for (const kind of name === "express" ? ["list", "object"] : []) {
                const raw = await ask(`/raw/${kind}`, { headers: { ...own, cookie: refresh } });
                assert.deepEqual([raw.headers.get("cache-control"), raw.headers.get("x-raw"), raw.headers.getSetCookie().length], ["no-store", "1", 2], kind);
            }
            const foreign = await ask("/a", { method: "POST", headers: { cookie: `${access}; ${refresh}`, "sec-fetch-site": "cross-site" } });
            assert.equal(foreign.status, 403, name);
            const page = await ask("/a?b=c", { headers: { accept: "text/html" } });
            assert.deepEqual([page.status, page.headers.get("location")], [302, "/login?return_to=%2Fa%3Fb%3Dc"], name);
        }
    });

    test("where requests come from, and sessiond's routes on a Unix socket", async (t) => {
        const relay = await Relay.open();
        t.after(() => relay.close());
        const seen = [];
        relay.server.on("request", ({ headers }) => seen.push(headers["x-forwarded-for"]));
        const options = { url: relay.url, project: PROJECT };
        const session = await createSession();
        const headers = { ...bearer(session), "x-forwarded-for": "203.0.113.9" };
        const serve = async (app, at) => {
            const listening = http.createServer(app).listen(at);
            await once(listening, "listening");
            t.after(() => listening.close());
            return (method, path, given = headers) => new Promise((answered, failed) => {
                const { port, address: host } = listening.address();
                const to = typeof at === "string" ? { socketPath: at } : { host, port };
                http.request({ ...to, method, path, headers: given }, (answer) => answer.resume().on("end", () => answered(answer.statusCode))).on("error", failed).end();
            });
        };
        const app = (trusted) => express().set("trust proxy", trusted).use(sessiondApi(options), forExpress(options), (_request, response) => response.end());
        const local = { host: "127.0.0.1", port: 0 };
        const [plain, trusting] = [await serve(app(false), local), await serve(app("loopback"), local)];
        const socket = await serve(app(false), path.join(await mkdtemp(path.join(tmpdir(), "sessiond-")), "app.socket"));
        // What came stays, for sessiond to follow as far as it trusts.
        assert.equal(await plain("GET", "/auth/sessions/current"), 200);
        assert.equal(await plain("GET", "/page"), 200);
        assert.equal(await plain("GET", "/page", bearer(session)), 200);
        assert.equal(await trusting("GET", "/auth/sessions/current"), 200);
        assert.equal(await trusting("GET", "/page"), 200);
        assert.equal(await socket("GET", "/page"), 200);
        assert.equal(await socket("DELETE", "/auth/sessions/current"), 200);
        assert.deepEqual(seen, ["203.0.113.9, 127.0.0.1", "203.0.113.9, 127.0.0.1", "127.0.0.1", "203.0.113.9", "203.0.113.9", undefined, undefined]);
        assert.equal(await isActive(session.access_token), false);
    });

    test("which requests come from the app's own origin", () => {
        const judged = (headers) => isSameOrigin((name) => headers[name]);
        const at = (host, origin, more) => ({ host, origin, ...more });
        for (const headers of [
            { "sec-fetch-site": "same-origin" },
            { "sec-fetch-site": "none", origin: "null" },
            at("app.example.org", "https://app.example.org"),
            at("app.example.org:443", "https://app.example.org"),
            at("App.Example.Org", "https://APP.example.org:443"),
            at("app.example.org:8443", "https://app.example.org:8443"),
            at("localhost:3000", "http://localhost:3000"),
            at("127.0.0.1:80", "http://127.0.0.1"),
            at("[::1]:3000", "http://[::1]:3000"),
            { "x-sessiond-csrf": "1" },
        ]) assert.ok(judged(headers), JSON.stringify(headers));
        for (const headers of [
            {},
            ...["same-site", "cross-site", "", "Same-Origin", "same-origin, same-origin"].map((site) => at("app.example.org", "https://app.example.org", { "sec-fetch-site": site, "x-sessiond-csrf": "1" })),
            ...[
                ["app.example.org", "http://app.example.org"], ["app.example.org", "https://app.example.org:8443"], ["app.example.org", "https://example.org"],
                ["app.example.org", "https://evil.app.example.org"], ["app.example.org", "https://app.example.org.evil.example"],
                ["evil.example", "https://app.example.org@evil.example"], ["app.example.org", "https://app.example.org/"], ["", "https://"],
                ["app.example.org", "app.example.org"], ["app.example.org", "null"], ["", ""], ["", "file://"], ["localhost:3001", "http://localhost:3000"],
                ["app.example.org", "chrome-extension://app.example.org"], ["app.example.org, evil.example", "https://app.example.org"],
                [undefined, "https://app.example.org"],
            ].map(([host, origin]) => at(host, origin, { "x-sessiond-csrf": "1" })),
        ]) assert.ok(!judged(headers), JSON.stringify(headers));
    });

    test("the session's claims; optional sessions; an unknown project is not the user's fault", async () => {
        const session = await createSession(undefined, { claims: { role: "admin" }, is_impersonation: true, impersonator_id: "support" });
        const ask = (options, headers) =>
            createVerifier({ url: SESSIOND_URL, project: PROJECT, timeoutMs: 10_000, ...options })({ method: "GET", path: "/", header: (name) => headers[name] });
        const { session: found } = await ask({}, bearer(session));
        assert.equal(found.claims.role, "admin");
        assert.equal(found.impersonatorId, "support");
        assert.equal(found.projectId, PROJECT);
        assert.deepEqual(await ask({ optional: true }, {}), { session: undefined, headers: [] });
        assert.deepEqual(await ask({ optional: true }, { authorization: "Bearer x" }), { session: undefined, headers: [] });
        assert.equal((await ask({ project: "nowhere" }, bearer(session))).status, 503);
    });
});

describe("in pages", { concurrency: 3 }, () => {
    let browser, app;
    before(async () => {
        [browser, app] = [await openBrowser(), await openApp(AROUND_ORIGIN)];
    });
    after(async () => {
        await browser.close();
        app.close();
        app.closeAllConnections();
    });

    /** A user with three devices, on a page with the element. */
    async function element(t, look) {
        const { pages: [page], relay } = await tabs(t, browser, 1, { origin: AROUND_ORIGIN, look });
        const user = newUser();
        const others = [];
        for (const device of ["Phone", "Television"]) others.push(await createSession(user, { device_name: device, ip: "203.0.113.7" }));
        const own = await createSession(user, { device_name: "Laptop", ip: "198.51.100.24" });
        await page.evaluate(async () => {
            await import("/element.js");
            document.documentElement.lang = "en";
            const main = document.createElement("main");
            main.innerHTML = "<h1>Account</h1><sessiond-devices></sessiond-devices>";
            document.body.append(main);
            window.devices = document.querySelector("sessiond-devices");
            devices.client = client;
        });
        await signIn(page, own);
        const rows = page.locator("sessiond-devices li");
        await eventually("the list", async () => (await rows.count()) === 3);
        return { page, relay, rows, others, own, user };
    }

    test("the element lists sessions, ends them, follows, and keeps the focus", async (t) => {
        const { page, rows, others, own, user } = await element(t);
        const names = () => page.locator("sessiond-devices .name").allTextContents();
        assert.deepEqual(await names(), ["LaptopThis device", "Television", "Phone"]);
        assert.match(await rows.nth(1).textContent(), /Last used today · 203\.0\.113\.7/);
        // By keyboard alone.
        await page.getByRole("button", { name: "Sign out: Television" }).focus();
        await page.keyboard.press("Enter");
        await eventually("two", async () => (await rows.count()) === 2);
        assert.equal(await isActive(others[1].access_token), false);
        assert.equal(await page.locator("sessiond-devices .status").textContent(), "Television is signed out.");
        assert.equal(await page.evaluate(() => devices.shadowRoot.activeElement?.className), "title");
        // What happens elsewhere.
        await revoke(others[0].session.id);
        await eventually("one", async () => (await rows.count()) === 1);
        assert.equal(await page.getByRole("button", { name: "Sign out everywhere else" }).isVisible(), false);
        await createSession(user, { device_name: "Tablet" });
        await page.evaluate(() => (devices.client = client));
        await eventually("the new one", async () => (await names()).includes("Tablet"));
        // The app may ask first.
        await page.evaluate(() => devices.addEventListener("sessiond-end", (event) => event.preventDefault(), { once: true }));
        await page.getByRole("button", { name: "Sign out everywhere else" }).click();
        await sleep(100);
        assert.equal(await rows.count(), 2);
        await page.getByRole("button", { name: "Sign out everywhere else" }).click();
        await eventually("one", async () => (await rows.count()) === 1);
        await page.getByRole("button", { name: "Sign out here" }).click();
        await eventually("out", async () => (await outs(page)).length === 1);
        await eventually("the revocation", async () => !(await isActive(own.access_token)));
        assert.equal(await rows.count(), 0);
        assert.equal(await page.locator("sessiond-devices .status").textContent(), "Not signed in.");
        assert.deepEqual(page.problems, []);
    });

    test("the element says what went wrong, pages through many, and speaks other languages", async (t) => {
        const { page, relay, rows, user } = await element(t);
        relay.rule = (call) => call.startsWith("DELETE") && "cut";
        await page.evaluate(() => devices.addEventListener("sessiond-error", ({ detail }) => (window.failed = detail.reason)));
        await page.getByRole("button", { name: "Sign out: Phone" }).click();
        await eventually("the error", () => page.evaluate(() => window.failed === "UNREACHABLE"));
        assert.match(await page.locator("sessiond-devices .status").textContent(), /cannot be reached/);
        assert.equal(await rows.count(), 3);
        // A load in the background changes nothing about that.
        await createSession(user, { device_name: "Television" });
        await eventually("another device", async () => (await rows.count()) === 4);
        assert.match(await page.locator("sessiond-devices .status").textContent(), /cannot be reached/);
        relay.rule = null;
        await page.evaluate(() => (devices.labels = { title: "Angemeldete Geräte", end: "Abmelden" }));
        assert.equal(await page.getByRole("heading", { name: "Angemeldete Geräte" }).count(), 1);
        assert.equal(await page.getByRole("button", { name: "Abmelden: Phone" }).count(), 1);
        for (let n = 0; n < 55; n += 1) await createSession(user, { device_name: `<b>Device ${n}</b>` });
        await page.evaluate(() => (devices.client = client));
        await eventually("a page", async () => (await rows.count()) === 50);
        await page.getByRole("button", { name: "Show more" }).click();
        await eventually("all", async () => (await rows.count()) === 59);
        assert.equal(await page.locator("sessiond-devices li b").count(), 0, "names are text");
        assert.deepEqual(page.problems, []);
    });

    for (const [scheme, width] of [["light", 720], ["dark", 360]]) {
        test(`the element is accessible, ${scheme}, ${width} px wide`, async (t) => {
            const { page } = await element(t, { colorScheme: scheme, viewport: { width, height: 520 } });
            await page.addStyleTag({ content: ":root { color-scheme: light dark; background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif; } body { margin: 1.5rem; }" });
            await page.evaluate(AXE);
            const { violations } = await page.evaluate(() => axe.run());
            assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]), []);
            const [wide, has] = await page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
            assert.ok(wide <= has);
            const small = await page.evaluate(() => [...devices.shadowRoot.querySelectorAll("button")]
                .filter((button) => button.checkVisibility() && button.getBoundingClientRect().height < 44).length);
            assert.equal(small, 0);
            if (SCREENSHOTS) await page.screenshot({ path: `${SCREENSHOTS}/devices-${scheme}.png` });
        });
    }

    test("React: sign in, list, end another device, be signed out elsewhere", async (t) => {
        const { relay, context } = await tabs(t, browser, 0, { origin: AROUND_ORIGIN });
        const page = await context.newPage();
        const problems = [];
        page.on("pageerror", (error) => problems.push(error.message));
        page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
        await page.addInitScript((url) => (window.sessiondUrl = url), relay.url);
        await page.goto(`${AROUND_ORIGIN}/react`);
        await page.evaluate(() => import("/react.js"));
        const phone = await createSession("ada", { device_name: "Phone" });
        await page.getByText("Sign in as ada").click();
        await page.getByText("Hello, ada!").waitFor();
        const row = page.locator("li", { hasText: "Phone" });
        await row.waitFor();
        await row.getByRole("button").click();
        await eventually("gone", async () => (await row.count()) === 0);
        assert.equal(await isActive(phone.access_token), false);
        await stale();
        const id = await page.evaluate(() => JSON.parse(atob(JSON.parse(localStorage.sessiond).access_token.split(".")[1])).sid);
        await revoke(id);
        await page.getByText("Sign in as ada").waitFor();
        assert.deepEqual(problems, []);
    });
});
