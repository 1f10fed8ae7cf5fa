// Chromium and its tabs: each is a page of its own origin, in its own profile, with its network activity recorded.

import { once } from "node:events";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { chromium } from "playwright-core";
import { PATIENCE_MS } from "./host.js";

const ARGS = [
    "--disable-background-networking", "--disable-component-update", "--disable-gpu", "--disable-quic", "--disable-sync",
    "--no-first-run",
];

const PAGE = `<!doctype html><meta charset="utf-8"><title>An app</title>
<link rel="icon" href="data:,"><script src="/bundle.js"></script>`;

export async function openBrowser() {
    const root = process.getuid?.() === 0;
    return await chromium.launch({ executablePath: process.env.CHROMIUM, args: root ? ["--no-sandbox", ...ARGS] : ARGS });
}

/** Serves the page on a port, or on any. Returns its origin and a function to stop. */
export async function servePage(port = 0) {
    const bundle = await readFile(new URL("page/bundle.js", import.meta.url));
    const server = http.createServer((request, response) => {
        const [type, body] = request.url === "/bundle.js" ? ["text/javascript", bundle] : ["text/html", PAGE];
        response.writeHead(200, { "content-type": type }).end(body);
    });
    await once(server.listen(port, "localhost"), "listening");
    return { origin: `http://localhost:${server.address().port}`, close: () => server.close() };
}

export class Tab {
    /** Preflights: method, path, and requested headers. */
    preflights = [];
    /** Why the browser blocked a response. */
    blocked = [];
    /** The answered paths, except preflights, and their connections. */
    answered = [];

    static async open(browser, origin, server) {
        const tab = new Tab();
        tab.context = await browser.newContext();
        tab.page = await tab.context.newPage();
        tab.page.setDefaultTimeout(PATIENCE_MS);
        tab.page.on("pageerror", (error) => { throw error; });
        const devtools = await tab.context.newCDPSession(tab.page);
        await devtools.send("Network.enable");
        const asking = new Set();
        devtools.on("Network.requestWillBeSent", ({ requestId, request }) => {
            if (request.method !== "OPTIONS") return;
            asking.add(requestId);
            const headers = new Headers(request.headers);
            tab.preflights.push({
                method: headers.get("access-control-request-method"),
                path: new URL(request.url).pathname,
                headers: (headers.get("access-control-request-headers") ?? "").split(","),
            });
        });
        devtools.on("Network.responseReceived", ({ requestId, response }) => {
            if (asking.has(requestId)) return;
            tab.answered.push({ path: new URL(response.url).pathname, connection: response.connectionId });
        });
        devtools.on("Network.loadingFailed", ({ corsErrorStatus }) => {
            if (corsErrorStatus) tab.blocked.push(corsErrorStatus.corsError);
        });
        await tab.page.goto(`${origin}/?server=${encodeURIComponent(server)}`);
        return tab;
    }

    /** Makes a client call, and returns the result. */
    async call(client, method, ...given) {
        const { answer, refused, failed } = await this.outcome(client, method, ...given);
        if (refused || failed) throw new Error(`${client}, ${method}: ${failed ?? JSON.stringify(refused)}`);
        return answer;
    }

    outcome(...call) {
        return this.#evaluate(call.slice(0, 2), (call) => window.call(...call), call);
    }

    raw(path, options) {
        const raw = (given) => window.raw(...given).catch((error) => ({ failed: error.message }));
        return this.#evaluate(path, raw, [path, options]);
    }

    /** Makes a client follow the feed. */
    async follow(client, credentials) {
        const id = await this.#evaluate(client, (given) => window.follow(...given), [client, credentials]);
        return new Stream(this.page, id);
    }

    /** How many responses came from a path. */
    answers(path) {
        return this.answered.filter((answer) => answer.path === path).length;
    }

    async #evaluate(name, what, given) {
        let timer;
        const late = new Promise((_, reject) => {
            timer = setTimeout(() => reject(new Error(`no answer within ${PATIENCE_MS} ms: ${name}`)), PATIENCE_MS);
        });
        return await Promise.race([this.page.evaluate(what, given), late]).finally(() => clearTimeout(timer));
    }

    close() {
        return this.context.close();
    }
}

class Stream {
    #page;
    #id;

    constructor(page, id) {
        this.#page = page;
        this.#id = id;
    }

    now() {
        return this.#page.evaluate((id) => window.streams[id], this.#id);
    }

    /** Waits for a message, and returns when it came. */
    async told(kind, id, patience = PATIENCE_MS) {
        const find = ([stream, kind, id]) =>
            window.streams[stream].told.find((told) => told.kind === kind && (!id || told.id === id))?.at;
        return await this.#wait(find, [this.#id, kind, id], `${kind} ${id ?? ""}`, patience);
    }

    /** Waits for the end of the stream, and returns its reason. */
    async end(patience = PATIENCE_MS) {
        return await this.#wait((stream) => window.streams[stream].end, this.#id, "the end", patience);
    }

    async #wait(find, given, what, timeout) {
        try {
            return await (await this.#page.waitForFunction(find, given, { timeout, polling: 10 })).jsonValue();
        } catch (error) {
            throw new Error(`waited ${timeout} ms for: ${what}; had ${JSON.stringify(await this.now())}`, { cause: error });
        }
    }
}
