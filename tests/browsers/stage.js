// The stage of the tests: real proxies in front of real applications, a browser, and what stands between them.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import path from "node:path";
import { chromium } from "playwright-core";
import { freePort } from "../free-port.mjs";

const env = process.env;
export const { SESSIOND_URL } = env;
export const PATIENCE_MS = 30_000;

/** What an entrance takes: more than any proxy behind it. */
const HEADERS_BYTES_MAX = 128 << 10;

export const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

export async function eventually(what, holds, patience = PATIENCE_MS) {
    const until = performance.now() + patience;
    while (!(await holds())) {
        assert.ok(performance.now() < until, `not within ${patience} ms: ${what}`);
        await sleep(10);
    }
}

// Projects, each with a server key of its own (./run)

/** A project's name, its server key, and how long its access tokens live. */
export const PROJECTS = JSON.parse(env.PROJECTS);

/** The names of a project's cookies. */
export const cookieNames = (project, prefix = "__Host-") => ["access", "refresh"].map((kind) => `${prefix}sessiond.${project}.${kind}`);

export async function api(project, method, route, body) {
    const headers = { authorization: `Bearer ${PROJECTS[project].key}`, "content-type": "application/json" };
    const response = await fetch(SESSIOND_URL + route, { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(PATIENCE_MS) });
    const answer = await response.json();
    assert.equal(response.status, 200, JSON.stringify(answer));
    return answer;
}

/**
 * How often tokens that live for `ttlMs` may have been renewed at their expiry, in `ms`: on a machine that takes longer than a token
 * lives, there is another expiry. The server counts whole seconds, so a token lives for up to a second less.
 */
export const rotationsMax = (ms, ttlMs) => 1 + Math.floor(ms / (ttlMs - 1_000));

let users = 0;
/** A user of no other test. */
export const newUser = () => `user-${process.pid}-${(users += 1)}`;

export const createSession = (project, user, cookies = {}) => api(project, "POST", "/auth/sessions", { user_id: user, cookies });
export const sessionsOf = async (project, user) => (await api(project, "GET", `/auth/sessions?user_id=${user}`)).items;

// Programs

const running = [];
/** Ends everything that was started. */
export async function endAll() {
    await Promise.all(running.splice(0).map((end) => end()));
}

/** Starts a program, and waits until it listens. */
async function start(what, program, args, options, port) {
    const log = path.join(env.SCRATCH, `${what}-${port}.log`);
    const out = openSync(log, "w");
    const child = spawn(program, args, { ...options, stdio: ["ignore", out, out] });
    closeSync(out);
    let ended = false;
    const exited = once(child, "exit").then(() => (ended = true), (error) => (ended = String(error)));
    running.push(async () => {
        if (!ended) child.kill("SIGTERM");
        await exited;
    });
    await eventually(`${what} listens`, async () => {
        assert.ok(!ended, `${what} ended: ${ended} ${readFileSync(log, "utf8")}`);
        const socket = net.connect(port, "127.0.0.1");
        return new Promise((known) => socket.on("connect", () => known(true)).on("error", () => known(false))).finally(() => socket.destroy());
    });
}

const here = (name) => new URL(name, import.meta.url).pathname;

/** Starts an application: `express` or `django`. Returns its port. */
export async function startApp(name, project) {
    const port = await freePort();
    const [program, file] = { express: [process.execPath, "express.js"], django: [env.PYTHON, "django_app.py"] }[name];
    const its = { ...env, PORT: String(port), SESSIOND_SERVER_KEY: PROJECTS[project].key };
    await start(name, program, [here(file)], { env: its }, port);
    return port;
}

/** The proxies: their examples, and the ports in them. */
const KINDS = {
    nginx: {
        example: "nginx/cookies.conf",
        ports: ["127.0.0.1:8080", "127.0.0.1:9000", "127.0.0.1:10080"],
        command: (dir, config) => [env.NGINX, ["-p", dir, "-c", config]],
    },
    envoy: {
        example: "envoy/cookies.yaml",
        ports: ["port_value: 8080", "port_value: 9000", "port_value: 10000"],
        command: (_, config) => [env.ENVOY, ["-c", config, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn"]],
    },
    caddy: {
        example: "caddy/cookies.Caddyfile",
        ports: ["127.0.0.1:8080", "127.0.0.1:9000", "http://:10090"],
        command: (_, config) => [env.CADDY, ["run", "--adapter", "caddyfile", "--config", config]],
    },
    traefik: {
        example: "traefik/cookies.yaml",
        ports: ["127.0.0.1:8080", "127.0.0.1:9000", "127.0.0.1:10070"],
        command: (_, config) => [env.TRAEFIK, [`--configfile=${config}`]],
    },
};
export const PROXIES = Object.keys(KINDS);

/** Starts a proxy with its example's configuration, for a project, in front of an application. Returns its port. */
export async function startProxy(kind, project, app) {
    const { example, ports, command } = KINDS[kind];
    const port = await freePort();
    const file = path.join(env.EXAMPLES, example);
    const dir = mkdtempSync(path.join(env.SCRATCH, `${kind}-`));
    mkdirSync(path.join(dir, "temp"));
    const place = path.join(dir, path.basename(file));
    const named = readFileSync(file, "utf8")
        .replaceAll("/projects/demo/", `/projects/${project}/`)
        .replaceAll("project_id: demo", `project_id: ${project}`)
        .replaceAll("sessiond.demo.", `sessiond.${project}.`)
        // Caddy's has the name of one site.
        .replaceAll("http://127.0.0.1:10090", "http://:10090")
        // Traefik's names the site in the login page's URL, and itself.
        .replaceAll("login=http://127.0.0.1:10070", `login=http://localhost:${port}`)
        .replaceAll(`examples/${example}`, place);
    const config = ports.reduce((text, spelled, at) => {
        assert.ok(text.includes(spelled), `${spelled} in ${example}`);
        return text.replaceAll(spelled, spelled.replace(/\d+$/, [new URL(SESSIOND_URL).port, app, port][at]));
    }, named);
    writeFileSync(place, config);
    const [program, args] = command(dir, place);
    await start(kind, program, args, { env: { ...env, HOME: dir, XDG_CONFIG_HOME: dir, XDG_DATA_HOME: dir } }, port);
    // Traefik listens before it knows its routes.
    await eventually(`${kind} has its routes`, async () => (await fetch(`http://127.0.0.1:${port}/login`)).status !== 404);
    return port;
}

/**
 * What the browser connects to: passes requests on to a port of this machine, and keeps what it has seen. `route` chooses the port by
 * the request; one that returns a function answers by itself. With `fate`, which gets each request, an answer can be lost or delayed.
 */
export class Entrance {
    seen = [];
    fate = null;
    #isCut = false;

    /** Over HTTPS if there is a certificate. */
    static async open(route, { tls = false, port = 0 } = {}) {
        const entrance = new Entrance();
        const pass = (request, response) => entrance.#pass(route, request, response);
        entrance.server = tls ? https.createServer({ maxHeaderSize: HEADERS_BYTES_MAX, key: readFileSync(env.TLS_KEY), cert: readFileSync(env.TLS_CERTIFICATE) }, pass) : http.createServer({ maxHeaderSize: HEADERS_BYTES_MAX }, pass);
        entrance.server.on("upgrade", (request, socket) => entrance.#upgrade(route, request, socket));
        entrance.server.on("connection", (socket) => entrance.#isCut && socket.destroy());
        entrance.server.listen(port, "127.0.0.1");
        await once(entrance.server, "listening");
        entrance.port = entrance.server.address().port;
        running.push(async () => {
            entrance.server.close();
            entrance.server.closeAllConnections();
        });
        return entrance;
    }

    /** Cuts the network: every connection breaks, and each new one, until `restore`. */
    cut() {
        this.#isCut = true;
        this.server.closeAllConnections();
    }

    restore() {
        this.#isCut = false;
    }

    #note(request, answer, body = "") {
        const { method, url, headers } = request;
        let reason = "";
        try {
            reason = JSON.parse(body).details.find((detail) => detail.reason).reason;
        } catch {}
        const setCookies = [answer.headers["set-cookie"] ?? []].flat();
        this.seen.push({ method, url, host: headers.host, headers, status: answer.statusCode, reason, setCookies, body });
    }

    #pass(route, request, response) {
        const target = route(request);
        if (typeof target === "function") return target(request, response);
        const { method, headers } = request;
        const onward = http.request({ port: target, host: "127.0.0.1", path: request.url, method, headers }, async (answer) => {
            const pieces = [];
            for await (const piece of answer) pieces.push(piece);
            const body = Buffer.concat(pieces);
            this.#note(request, answer, body.toString());
            const fate = await this.fate?.(request, answer);
            if (fate === "lose") return request.socket.destroy();
            // The URL of the login page, which Traefik needs, is that of the proxy itself.
            const headers = answer.rawHeaders.map((text) => text.replace(`http://localhost:${target}/`, "/"));
            response.writeHead(answer.statusCode, headers).end(body);
        });
        onward.on("error", () => response.destroy());
        response.on("close", () => onward.destroy());
        request.pipe(onward);
    }

    /** A WebSocket handshake, up to the answer. */
    #upgrade(route, request, socket) {
        const target = route(request);
        socket.on("error", () => {});
        const { method, headers } = request;
        const onward = http.request({ port: target, host: "127.0.0.1", path: request.url, method, headers }, async (answer) => {
            let body = "";
            for await (const piece of answer) body += piece;
            this.#note(request, answer, body);
            socket.end(`HTTP/1.1 ${answer.statusCode} ${answer.statusMessage}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
        });
        onward.on("upgrade", (answer, upstream) => {
            this.#note(request, answer);
            upstream.destroy();
            socket.destroy();
        });
        onward.on("error", () => socket.destroy());
        onward.end();
    }

    /** The values of a cookie that responses have set. */
    set(name) {
        const values = this.seen.flatMap(({ setCookies }) => setCookies).filter((value) => value.startsWith(`${name}=`));
        return new Set(values.map((value) => value.slice(name.length + 1).split(";")[0]));
    }
}

// The browser

const ARGS = ["--disable-background-networking", "--disable-component-update", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"];

const args = (hosts = {}) => {
    const root = process.getuid?.() === 0;
    const rules = Object.entries(hosts).map(([host, port]) => `MAP ${host} 127.0.0.1:${port}`);
    const more = rules.length ? [`--host-resolver-rules=${rules.join(",")}`, "--ignore-certificate-errors"] : [];
    return [...(root ? ["--no-sandbox"] : []), ...ARGS, ...more];
};

/** Chromium, for which these names, with their ports, are at ports of this machine. */
export const openBrowser = (hosts) => chromium.launch({ executablePath: env.CHROMIUM, args: args(hosts) });

/** Chromium with a profile on disk, as users have it. */
export const openProfile = (dir, hosts) => chromium.launchPersistentContext(dir, { executablePath: env.CHROMIUM, args: args(hosts) });

/** A browser profile of its own, closed after the test. */
export async function newContext(t, browser) {
    const context = await browser.newContext();
    context.setDefaultTimeout(PATIENCE_MS);
    t.after(() => close(context));
    return context;
}

/** Closes a page, context or browser. Chromium does not always confirm that, and a test must not wait for it without end. */
export const close = (open) => Promise.race([open.close(), new Promise((go) => setTimeout(go, PATIENCE_MS).unref())]);

/** Signs in through the login form, to which the page has led. */
export async function signIn(page, user, persistent = false) {
    await page.getByLabel("user").fill(user);
    if (persistent) await page.getByLabel("remember me").check();
    await page.getByRole("button", { name: "Sign in" }).click();
    await greets(page, user);
}

export const greets = (page, user) => page.getByRole("heading", { name: `Hello, ${user}!` }).waitFor();

/** Signs the page's user out. Returns when the 200 arrived, by the browser's clock. */
export const signOut = (page) => page.evaluate(async () => {
    const { status } = await fetch("/auth/sessions/current", { method: "DELETE" });
    const at = performance.timeOrigin + performance.now();
    new BroadcastChannel("test").postMessage("out");
    return { status, at };
});

/** The cookies of a browser profile, by name. */
export const jar = async (context) => Object.fromEntries((await context.cookies()).map((cookie) => [cookie.name, cookie]));
