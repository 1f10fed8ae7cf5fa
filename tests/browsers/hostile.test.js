// Hostile pages, in Chromium: of another site, of a sibling subdomain, of another port, and in a sandboxed frame. Each tries every method,
// content type and `fetch` mode, forms, images, frames, beacons and WebSockets, at the API (REST and grpc-web) and at an application
// behind nginx and Caddy (verify) and Envoy (Check). All of it is refused for where it comes from; only what changes nothing passes
// to the application, and its answer cannot be read. The application's own page does the same and succeeds.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Entrance, PROXIES, SESSIOND_URL, close, cookieNames, endAll, greets, jar, newContext, newUser, openBrowser, sessionsOf, signIn, startApp, startProxy } from "./stage.js";

const PROJECT = "hostile";
const [, REFRESH] = cookieNames(PROJECT);
const SERVICE = "/sessiond.v1.SessionService/";

const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
const TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", "application/grpc-web+proto"];
const MODES = ["cors", "no-cors", "same-origin", "navigate"];
/** Everything: all strangers at all routes. Otherwise the kinds that differ most, at the routes that matter most. */
const LONG = process.env.LONG === "1";
const ELEMENTS = ["img", "script", "iframe", "object", "embed", "video", "audio", "stylesheet"];

const APP = "https://app.example.test";
/** Each proxy at a port of its own: cookies do not tell ports apart. */
const FRONTS = Object.fromEntries(PROXIES.map((proxy, at) => [proxy, { origin: at ? `${APP}:${443 + at}` : APP, host: `app.example.test:${443 + at}` }]));

const STRANGERS = {
    "another site": "https://hostile.test",
    "a sibling subdomain": "https://evil.example.test",
    "another port": `${APP}:8443`,
    "a sandboxed frame": "https://hostile.test/framing",
};

let browser;
before(async () => {
    const app = await startApp("express", PROJECT);
    const strange = (request, response) => {
        const frame = `<iframe sandbox="allow-scripts allow-forms allow-popups" srcdoc="<p>"></iframe>`;
        response.writeHead(200, { "content-type": "text/html" }).end(`<!doctype html><link rel="icon" href="data:,">${request.url === "/framing" ? frame : ""}`);
    };
    const stranger = await Entrance.open(() => strange, { tls: true });
    const hosts = Object.fromEntries(["hostile.test:443", "evil.example.test:443", "app.example.test:8443"].map((host) => [host, stranger.port]));
    for (const [proxy, front] of Object.entries(FRONTS)) {
        const port = await startProxy(proxy, PROJECT, app);
        // grpc-web is not behind the examples' proxies: here it is on the application's origin too.
        front.entrance = await Entrance.open(({ url }) => (url.startsWith(SERVICE) ? new URL(SESSIOND_URL).port : port), { tls: true });
        hosts[front.host] = front.entrance.port;
    }
    browser = await openBrowser(hosts);
});
after(async () => {
    await close(browser);
    await endAll();
});

/** Does everything to these URLs that a page can, all at once. Returns what a script could read of the answers. Runs in the page. */
async function attack({ urls, METHODS, TYPES, MODES, ELEMENTS, patience }) {
    const readable = [];
    const done = [];
    const within = (promise) => Promise.race([promise, new Promise((go) => setTimeout(go, patience))]);
    for (const url of urls) {
        for (const mode of MODES) for (const method of METHODS) for (const type of TYPES) {
            const hasBody = !["GET", "HEAD"].includes(method);
            // Without a body one type is enough.
            if (!hasBody && type !== TYPES[0]) continue;
            const init = { method, credentials: "include", redirect: "follow", signal: AbortSignal.timeout(patience) };
            if (hasBody) Object.assign(init, { body: type.includes("json") ? "{}" : new Uint8Array(5), headers: { "content-type": type } });
            done.push((async () => {
                try {
                    const response = await fetch(url, { ...init, mode });
                    if (response.type !== "opaque") readable.push(`${mode} ${method} ${url}: ${response.status}`);
                } catch {}
            })());
        }
        // With a header that no simple request has.
        done.push(fetch(url, { method: "POST", mode: "cors", credentials: "include", headers: { "x-sessiond-csrf": "1" } }).then(() => readable.push(`csrf ${url}`), () => {}));
        for (const method of ["get", "post"]) for (const enctype of TYPES.slice(0, 3)) {
            const [frame, form] = [document.createElement("iframe"), document.createElement("form")];
            frame.name = form.target = `frame-${Math.random()}`;
            Object.assign(form, { method, enctype: enctype.split(";")[0], action: url });
            if (method === "post") form.innerHTML = `<input name='{"except_current": false, "x": "' value='"}'>`;
            document.body.append(frame, form);
            done.push(within(new Promise((loaded) => (frame.onload = loaded))));
            form.submit();
        }
        for (const name of ELEMENTS) {
            const element = document.createElement(name === "stylesheet" ? "link" : name);
            const loaded = within(new Promise((go) => (element.onload = element.onerror = element.onloadeddata = go)));
            if (name === "stylesheet") Object.assign(element, { rel: name, href: url });
            else if (name === "object") element.data = url;
            else element.src = url;
            document.body.append(element);
            done.push(loaded);
        }
        for (const body of ["{}", new Blob(["a=b"], { type: "application/x-www-form-urlencoded" })]) navigator.sendBeacon(url, body);
        done.push(within(new Promise((go) => {
            const socket = new WebSocket(url.replace("https:", "wss:"));
            socket.onopen = () => go(readable.push(`socket ${url}`));
            socket.onerror = socket.onclose = go;
        })));
        done.push(within(new Promise((go) => {
            const source = new EventSource(url, { withCredentials: true });
            source.onopen = () => go(readable.push(`events ${url}`));
            source.onerror = () => go(source.close());
        })));
    }
    await Promise.all(done);
    return readable;
}

/** A request that reached one of the fronts, as the table names it, and whether that is right. */
function judge({ method, url, headers, status, reason, body }, proxy) {
    const path = url.split("?")[0];
    const carried = headers.cookie?.includes("sessiond.") ?? false;
    const isSocket = headers.upgrade === "websocket";
    const isApi = path.startsWith("/auth/") || path.startsWith(SERVICE);
    const wire = path.startsWith(SERVICE) ? "grpc-web" : isApi ? "REST" : proxy === "envoy" ? "Check" : "verify";
    const refused = reason || (status === 403 && proxy === "nginx" && "by nginx");
    const outcome = (what, isRight) => ({ wire, carried, what, isRight, line: `${method} ${url} (${headers["sec-fetch-site"]}, ${headers["sec-fetch-mode"]}): ${status} ${reason} ${body.slice(0, 80)}` });
    if (method === "OPTIONS") return outcome("a preflight, not granted", true);
    if (path === "/login") return outcome("the login page, to which a frame was sent", true);
    // A call of services: no cookie counts there.
    if (method === "POST" && path === "/auth/sessions" && status === 401) return outcome("401", reason === "CREDENTIALS_MISSING");
    // Not read at all.
    if (isApi && [404, 405, 415].includes(status)) return outcome(`${status}`, ["ROUTE_NOT_FOUND", "METHOD_NOT_ALLOWED", "UNSUPPORTED_MEDIA_TYPE", ""].includes(reason));
    if (!carried) return outcome("without the cookie: 401", status === 401 || (status === 302 && !isApi));
    if (!isApi && !isSocket && ["GET", "HEAD"].includes(method)) return outcome("passes: a safe method", status === 200);
    if (status === 403) return outcome("CROSS_ORIGIN_REQUEST", refused === "CROSS_ORIGIN_REQUEST" || refused === "by nginx");
    return outcome(`${status} ${reason}`, false);
}

/** Takes what the fronts have seen since, and adds it to the table. */
function judgeAll(table, who) {
    let carried = 0;
    for (const [proxy, { entrance }] of Object.entries(FRONTS)) {
        for (const seen of entrance.seen.splice(0)) {
            const { wire, what, isRight, line, carried: isCarried } = judge(seen, proxy);
            assert.ok(isRight, `${who}: ${line}`);
            carried += isCarried;
            const row = (table[`${who}, ${wire}`] ??= {});
            row[what] = (row[what] ?? 0) + 1;
        }
    }
    return carried;
}

test("hostile pages can neither change nor read anything", { timeout: 600_000 }, async (t) => {
    const context = await newContext(t, browser);
    const page = await context.newPage();
    const user = newUser();
    await page.goto(`${APP}/orders`);
    await signIn(page, user);
    const [session] = await sessionsOf(PROJECT, user);
    const before = await jar(context);
    assert.equal(Object.keys(before).length, 2);

    const api = ["sessions", "sessions/current", "sessions/current/refresh", "sessions:revokeAll", ...(LONG ? [`sessions/${session.id}`, "revocations:watch"] : [])];
    const calls = ["RefreshSession", "RevokeCurrent", ...(LONG ? ["ListSessions", "GetCurrentSession", "RevokeAllSessions", "RevokeSession", "WatchRevocations"] : [])];
    const urls = [
        ...api.map((path) => `${APP}/auth/${path}`),
        ...calls.map((call) => APP + SERVICE + call),
        ...Object.values(FRONTS).map(({ origin }) => `${origin}/orders`),
    ];
    const table = {};
    const given = { METHODS, TYPES, MODES, ELEMENTS, patience: 5_000 };
    // As they were set, and as a browser would keep them that knows no `SameSite`.
    for (const sameSite of ["Lax", "None"]) {
        await context.addCookies(Object.values(before).map((cookie) => ({ ...cookie, sameSite })));
        for (const { entrance } of Object.values(FRONTS)) entrance.seen = [];
        for (const [who, at] of Object.entries(STRANGERS)) {
            // To pages of the same site it makes no difference.
            if (sameSite === "None" && !at.startsWith(STRANGERS["another site"])) continue;
            if (!LONG && `${sameSite}, ${who}` !== "Lax, a sibling subdomain" && sameSite !== "None") continue;
            const stranger = await context.newPage();
            await stranger.goto(at);
            const frame = stranger.frames().at(-1);
            const isOpaque = (await frame.evaluate(() => origin)) === "null";
            assert.equal(isOpaque, at.endsWith("framing"));
            for (const url of urls) {
                const readable = await frame.evaluate(attack, { urls: [url], ...given });
                assert.deepEqual(readable, [], who);
            }
            // A form and a link that take the whole tab.
            for (const [method, url] of [["post", `${APP}/auth/sessions/current`], ["get", `${APP}/auth/sessions`], ["post", `${APP}/auth/sessions:revokeAll`], ...Object.values(FRONTS).map(({ origin }) => ["post", `${origin}/orders`])]) {
                const tab = await context.newPage();
                await tab.goto(at.replace("/framing", ""));
                await Promise.all([tab.waitForURL(({ href }) => href.startsWith(url), { waitUntil: "commit" }), tab.evaluate(([method, url]) => {
                    const form = Object.assign(document.createElement("form"), { method, action: url });
                    document.body.append(form);
                    form.submit();
                }, [method, url])]);
                await close(tab);
            }
            const carried = judgeAll(table, `${who}, SameSite=${sameSite}`);
            // What is refused must have had the cookie, or nothing is shown.
            assert.ok(carried > 0, `${who}, ${sameSite}`);
            await close(stranger);
        }
        const now = await jar(context);
        assert.equal(now[REFRESH].value, before[REFRESH].value, "nothing was refreshed or cleared");
        assert.equal((await sessionsOf(PROJECT, user)).length, 1, "and nothing has ended");
    }
    console.log(Object.entries(table).map(([who, row]) => `# ${who}: ${Object.entries(row).sort().map(([what, count]) => `${count} × ${what}`).join("; ")}`).join("\n"));

    // The application's own page.
    await context.addCookies(Object.values(before));
    for (const { origin, entrance } of Object.values(FRONTS)) {
        await page.goto(`${origin}/orders`);
        await greets(page, user);
        const statuses = await page.evaluate(async ([SERVICE, METHODS]) => {
            const grpc = { method: "POST", headers: { "content-type": "application/grpc-web+proto" }, body: new Uint8Array(5) };
            const json = { method: "POST", headers: { "content-type": "application/json" }, body: "{}" };
            const calls = [...METHODS.map((method) => ["/orders", { method }]), ["/auth/sessions"], ["/auth/sessions/current/refresh", json], [`${SERVICE}ListSessions`, grpc]];
            const statuses = [];
            for (const [path, init] of calls) statuses.push((await fetch(path, init)).status);
            await new Promise((go) => (new WebSocket(`wss://${location.host}/orders`).onerror = go));
            return statuses;
        }, [SERVICE, METHODS]);
        assert.deepEqual(statuses, Array(METHODS.length + 3).fill(200), origin);
        const handshake = entrance.seen.findLast(({ headers }) => headers.upgrade);
        // The application speaks none; but it was asked.
        assert.ok(handshake && handshake.status !== 403, `${origin}: ${handshake?.status}`);
        await page.evaluate(() => Object.assign(document.body, { innerHTML: '<form method="post" action="/orders">' }).firstChild.submit());
        await greets(page, user);
    }
    assert.equal(await page.evaluate(async () => (await fetch("/auth/sessions/current", { method: "DELETE" })).status), 200);
    assert.deepEqual(await sessionsOf(PROJECT, user), []);
    assert.deepEqual(Object.keys(await jar(context)), []);
});
