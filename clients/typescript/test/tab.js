// Chromium, and an app whose pages use the client.

import { once } from "node:events";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { text } from "node:stream/consumers";
import { chromium } from "playwright-core";
import { PATIENCE_MS, PROJECT, Relay, SESSIOND_URL, createSession } from "./host.js";

const { CHROMIUM } = process.env;
const ARGS = ["--disable-background-networking", "--disable-component-update", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"];
const QUICK_START = /## A browser app\n[^]*?```js\n([^]*?)```/;

export function openBrowser() {
    const root = process.getuid?.() === 0;
    // Users have the back-forward cache.
    const ignoreDefaultArgs = ["--disable-back-forward-cache"];
    return chromium.launch({ executablePath: CHROMIUM, args: root ? ["--no-sandbox", ...ARGS] : ARGS, ignoreDefaultArgs });
}

/** The app: its pages, the client as it is published, a login, and an API that asks sessiond to verify each request. */
export async function openApp(origin) {
    const built = (name) => readFile(new URL(`dist/${name}.js`, import.meta.url));
    const guide = await readFile(new URL("../../../docs/guides/clients.md", import.meta.url), "utf8");
    const page = `<!doctype html><meta charset="utf-8"><title>An app</title><link rel="icon" href="data:,">
        <script type="importmap">{"imports": {"@sessiond/client": "/client.js"}}</script>
        <script type="module">import { Client, memoryStorage } from "@sessiond/client"; Object.assign(window, { Client, memoryStorage });</script>`;
    const files = {
        "/": ["text/html", page],
        "/react": ["text/html", `<!doctype html><meta charset="utf-8"><title>React</title><link rel="icon" href="data:,"><div id="root"></div>`],
        "/client.js": ["text/javascript", await built("client")],
        "/element.js": ["text/javascript", await built("element")],
        "/react.js": ["text/javascript", await built("react")],
        "/quick-start.js": ["text/javascript", QUICK_START.exec(guide)?.[1] ?? "throw new Error('no quick start')"],
    };
    const server = http.createServer(async (request, response) => {
        const path = request.url.split("?")[0];
        const [type, body] = files[path] ?? [];
        if (type) return response.writeHead(200, { "content-type": type }).end(body);
        if (path === "/login") {
            const body = await text(request);
            const user = body.startsWith("{") ? JSON.parse(body).user : new URLSearchParams(body).get("user");
            return response.end(JSON.stringify(await createSession(user)));
        }
        const { authorization = "" } = request.headers;
        const verified = await fetch(`${SESSIOND_URL}/projects/${PROJECT}/auth/verify`, { headers: { authorization } });
        response.writeHead(verified.status).end(verified.headers.get("x-user-id"));
    });
    server.listen(new URL(origin).port, "localhost");
    await once(server, "listening");
    return server;
}

/** Opens tabs of one browser profile, each with a client as `window.client`, `window.states` and `window.outs`. */
export async function tabs(t, browser, count, { init, options = {}, origin = process.env.APP_ORIGIN, look = {} } = {}) {
    const relay = await Relay.open();
    const context = await browser.newContext(look);
    context.setDefaultTimeout(PATIENCE_MS);
    t.after(async () => {
        await context.close();
        relay.close();
    });
    if (init) await context.addInitScript(init);
    const open = async () => {
        const page = await context.newPage();
        page.problems = [];
        page.on("pageerror", (error) => page.problems.push(error.message));
        await load(page);
        return page;
    };
    const load = async (page) => {
        await page.goto(origin);
        await page.waitForFunction(() => window.Client);
        await page.evaluate(([url, options]) => {
            window.client = new Client({ url, ...options });
            window.states = [];
            window.outs = [];
            client.subscribe(({ status }) => states.push(status));
            client.onSignedOut((reason) => outs.push(reason));
            return client.ready();
        }, [relay.url, options]);
    };
    const pages = [];
    for (let n = 0; n < count; n += 1) pages.push(await open());
    return { relay, context, pages, open, load };
}

export const signIn = async (page, session) => {
    session ??= await createSession();
    await page.evaluate((session) => client.signIn(session), session);
    return session;
};

export const status = (page) => page.evaluate(() => client.state.status);
export const outs = (page) => page.evaluate(() => outs);
export const stored = (page) => page.evaluate(() => localStorage.getItem("sessiond"));
/** Calls the app's API. */
export const hello = (page) => page.evaluate(() => client.fetch("/api/hello").then(
    async (response) => response.status === 200 ? response.text() : response.status,
    (error) => error.reason ?? String(error),
));
