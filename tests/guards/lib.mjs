// What the fault tests, the tests of the examples and the benchmark share: sessiond itself, a relay in front of it that fails as
// told, and guarded services in other processes.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { freePort } from "../free-port.mjs";

export const ROOT = new URL("../..", import.meta.url).pathname;
const { SESSIOND_BIN = join(ROOT, "target/debug/sessiond"), GUARDS_PYTHON = "python3", GUARDS_GO, GUARDS_RUST } = process.env;

const children = new Set();
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

/** Starts a program, which does not outlive this process. */
export function start(...args) {
    const child = spawn(...args);
    children.add(child);
    child.on("exit", () => children.delete(child));
    return child;
}

export const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

/** Waits until something holds. Returns how long that took, in milliseconds. */
export async function eventually(what, holds, patienceMs = 30_000) {
    const begun = performance.now();
    let last;
    for (;;) {
        try {
            last = await holds();
            if (last) return performance.now() - begun;
        } catch (error) {
            last = error;
        }
        assert.ok(performance.now() - begun < patienceMs, `not within ${patienceMs} ms: ${what} (${last})`);
        await sleep(20);
    }
}

/** Does something a number of times, some of them at once. */
export async function inParallel(count, width, act) {
    let next = 0;
    await Promise.all(Array.from({ length: width }, async () => {
        for (let at = next++; at < count; at = next++) await act(at);
    }));
}

/** Repeats a call whose connection was closed: for those that may be repeated. */
export async function persistently(url, more) {
    for (let attempt = 0; ; attempt += 1) {
        try {
            return await call(url, more);
        } catch (error) {
            if (attempt === 5) throw error;
        }
    }
}

/** A request over a connection of its own. Returns the status, and the body as JSON if it is. */
export function call(url, { method = "GET", token, body, timeoutMs = 5_000, agent = false, headers: more } = {}) {
    return new Promise((resolve, reject) => {
        const headers = { ...more, ...(token !== undefined && { authorization: `Bearer ${token}` }), ...(body && { "content-type": "application/json" }) };
        const request = http.request(url, { method, headers, agent }, (response) => {
            let text = "";
            response.on("data", (part) => (text += part)).on("error", reject).on("end", () => {
                let value = text;
                try {
                    value = JSON.parse(text);
                } catch {
                    // It is text.
                }
                resolve({ status: response.statusCode, headers: response.headers, body: value });
            });
        });
        request.setTimeout(timeoutMs, () => request.destroy(new Error(`no response within ${timeoutMs} ms`)));
        request.on("error", reject).end(body && JSON.stringify(body));
    });
}

/** `sessiond dev`, with a database of its own. */
export class Sessiond {
    static async start(directory, args = []) {
        const sessiond = new Sessiond();
        Object.assign(sessiond, { directory, args, port: await freePort() });
        await sessiond.run();
        return sessiond;
    }

    async run() {
        const { directory, args, port } = this;
        const argv = ["dev", "--listen", `127.0.0.1:${port}`, "--data-dir", directory, "--log", "error", ...args];
        this.process = start(SESSIOND_BIN, argv, { stdio: ["ignore", "ignore", "inherit"] });
        this.url = `http://127.0.0.1:${port}`;
        const isReady = async () => existsSync(join(directory, "dev.env")) && (await call(`${this.url}/readyz`)).status === 200;
        await eventually("sessiond is ready", () => this.process.exitCode !== null || isReady(), 120_000);
        assert.equal(this.process.exitCode, null, "sessiond has ended");
        const env = readFileSync(join(directory, "dev.env"), "utf8");
        this.env = Object.fromEntries([...env.matchAll(/^(?:export )?([A-Z_]+)='?([^'\n]*)'?$/gm)].map(([, name, value]) => [name, value]));
        this.project = this.env.SESSIOND_PROJECT_ID;
        this.serverKey = this.env.SESSIOND_SERVER_KEY;
        // Enough for a guard.
        this.verifierKey ??= await this.command("server-key", "create", "--project", this.project, "--role", "verifier");
    }

    signal(signal) {
        this.process.kill(signal);
    }

    async ended() {
        if (this.process.exitCode === null && this.process.signalCode === null) await once(this.process, "exit");
    }

    async stop() {
        this.signal("SIGCONT");
        this.signal("SIGTERM");
        await this.ended();
    }

    /** Runs another command of the binary on the same database. */
    async command(...args) {
        const env = { ...process.env, DATABASE_URL: this.env.DATABASE_URL, SESSIOND_SEALING_KEY: readFileSync(join(this.directory, "sealing-key"), "utf8").trim() };
        const child = spawn(SESSIOND_BIN, args, { env, stdio: ["ignore", "pipe", "pipe"] });
        let output = "";
        let errors = "";
        child.stdout.on("data", (part) => (output += part));
        child.stderr.on("data", (part) => (errors += part));
        const [code] = await once(child, "close");
        assert.equal(code, 0, `sessiond ${args.join(" ")}: ${errors}`);
        return output.trim();
    }

    /** Runs statements on the database. */
    sql(statements) {
        execFileSync("psql", ["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--command", statements, this.env.DATABASE_URL]);
    }

    async post(path, body, token = this.serverKey, agent = false) {
        const answer = await call(this.url + path, { method: "POST", token, body, agent });
        assert.equal(answer.status, 200, JSON.stringify(answer.body));
        return answer.body;
    }

    async signIn(user = `user-${Math.random()}`, more = {}, agent = false) {
        return this.post("/auth/sessions", { user_id: user, ...more }, this.serverKey, agent);
    }

    async signOut(token) {
        const answer = await call(`${this.url}/auth/sessions/current`, { method: "DELETE", token });
        assert.equal(answer.status, 200, JSON.stringify(answer.body));
    }
}

/** A relay to sessiond that fails as told. */
export class Relay {
    /**
     * `pass`; `cut`; `swallow`: keeps connections open and delivers nothing until it is `pass` again; `drip`: a byte at a time;
     * `trickle`: responses to requests for the stream begin a byte at a time and never get further, even when it is `pass` again.
     */
    mode = "pass";
    /** Called with each open stream of revocations, to write into it. */
    poison = undefined;
    /** Called with each request for the stream of revocations, to answer it instead of sessiond. */
    stream = undefined;
    /** A response to some requests, instead of sessiond's: `(path) => body | undefined`. */
    instead = () => undefined;
    /** Called with each request. */
    seen = () => undefined;
    #held = [];

    static async open(target) {
        const relay = new Relay();
        relay.target = target;
        relay.sockets = new Set();
        relay.server = http.createServer((request, response) => relay.#pass(request, response));
        relay.server.on("connection", (socket) => {
            if (relay.mode === "cut") return socket.destroy();
            relay.sockets.add(socket);
            socket.on("close", () => relay.sockets.delete(socket)).on("error", () => undefined);
        });
        relay.server.listen(0, "127.0.0.1");
        await once(relay.server, "listening");
        relay.url = `http://127.0.0.1:${relay.server.address().port}`;
        return relay;
    }

    set(mode) {
        this.mode = mode;
        if (mode === "cut" || mode === "trickle") for (const socket of this.sockets) socket.destroy();
        for (const deliver of this.#held.splice(0)) deliver();
    }

    #deliver(act) {
        if (this.mode === "swallow") this.#held.push(() => this.#deliver(act));
        else act();
    }

    #pass(request, response) {
        this.seen(request);
        const own = this.instead(request.url);
        if (own !== undefined) return response.writeHead(200, { "content-type": "application/json", "cache-control": "max-age=3600" }).end(own);
        const isStream = request.url.startsWith("/auth/revocations:watch");
        if (isStream && this.mode === "trickle") {
            const { socket } = response;
            socket.write("HTTP/1.1 200 OK\r\nx: ");
            const more = setInterval(() => socket.write("x"), 200);
            return void socket.on("close", () => clearInterval(more));
        }
        if (isStream && this.stream) {
            response.on("error", () => undefined).writeHead(200, { "content-type": "application/x-ndjson" });
            return this.stream(response);
        }
        const { method, headers } = request;
        const onward = http.request(this.target.url + request.url, { method, headers, agent: false }, (answer) => {
            this.#deliver(() => {
                response.writeHead(answer.statusCode, answer.headers);
                response.flushHeaders();
                if (isStream && answer.statusCode === 200) this.poison?.(response);
            });
            answer.on("data", (part) => this.#deliver(() => this.#write(response, part)));
            answer.on("end", () => this.#deliver(() => response.end())).on("error", () => response.destroy());
            answer.on("aborted", () => this.#deliver(() => response.destroy()));
        });
        onward.on("error", () => this.#deliver(() => response.destroy()));
        response.on("close", () => onward.destroy()).on("error", () => undefined);
        request.pipe(onward);
    }

    #write(response, part) {
        if (this.mode !== "drip") return response.write(part);
        for (const byte of part) response.write(Buffer.of(byte));
    }

    close() {
        this.server.close();
        this.server.closeAllConnections();
    }
}

/** The guards, and how to start a guarded service with each. */
export const GUARDS = {
    node: () => [process.execPath, ["--expose-gc", join(ROOT, "tests/guards/probes/probe.mjs")]],
    python: () => [GUARDS_PYTHON, [join(ROOT, "tests/guards/probes/probe.py")]],
    go: () => [GUARDS_GO ?? join(ROOT, "target/guards/probe"), []],
};

/** What is measured beside them: the guard for Rust, and the sidecar. */
const OTHERS = { rust: () => [GUARDS_RUST, []] };

/** All guards, for what starts each with `startGuard`. */
export const ALL = ["rust", "sidecar", ...Object.keys(GUARDS)];

/** Starts a guarded service, or the sidecar. */
export const startGuard = (guard, options) => (guard === "sidecar" ? Sidecar : Probe).start(guard, options);

/** How long a token is watched. If it is still accepted then, the sign-out was missed. */
const WATCHED_MS = 30_000;

const watching = new http.Agent({ keepAlive: true, maxSockets: 1_024 });

/** A guarded service in another process. */
export class Probe {
    static async start(guard, options) {
        const probe = new Probe();
        const [command, args] = (GUARDS[guard] ?? OTHERS[guard])();
        const env = { ...process.env, PROBE: JSON.stringify(options) };
        probe.guard = guard;
        probe.process = start(command, args, { env, stdio: ["pipe", "pipe", "inherit"] });
        const lines = createInterface({ input: probe.process.stdout });
        const [port] = await Promise.race([once(lines, "line"), once(probe.process, "exit").then(() => assert.fail(`the ${guard} probe has ended`))]);
        probe.url = `http://127.0.0.1:${port}`;
        return probe;
    }

    /** The verdict on a token: `accepted`, or the reason. */
    async verdict(token, headers) {
        const { status, body } = await call(`${this.url}/`, { token, headers });
        return status === 200 ? "accepted" : body.details[0].reason;
    }

    async ask(path, token, timeoutMs = 60_000) {
        return (await call(this.url + path, { token, timeoutMs })).body;
    }

    stats() {
        return this.ask("/stats");
    }

    /**
     * Watches a token until it is refused as signed out: from now on, or, where each look is a request, from `signedOut` on. Returns
     * the Unix time in milliseconds; undefined if it was missed.
     */
    async refused(token, _signedOut) {
        const { nanos } = (await persistently(`${this.url}/refused`, { token, timeoutMs: 2 * WATCHED_MS, agent: watching })).body;
        return nanos ? nanos / 1e6 : undefined;
    }

    /** The time of one verification of a known token, in microseconds. */
    async time(token) {
        return (await this.ask("/time", token)).nanos / 1_000;
    }

    /** How many of these tokens are not refused as signed out. */
    async missed(tokens) {
        return (await persistently(`${this.url}/missed`, { method: "POST", body: tokens, timeoutMs: 60_000, agent: watching })).body.missed;
    }

    async stop() {
        this.process.stdin.end();
        if (this.process.exitCode === null) await once(this.process, "exit");
    }
}

/** `sessiond guard`, which is asked at /verify over loopback. */
export class Sidecar {
    static async start(guard, { url, project, issuer, serverKey, maxStalenessMs, maxEntries, startupTimeoutMs = 20_000 }) {
        const sidecar = new Sidecar();
        const port = await freePort();
        const file = join(mkdtempSync(join(process.env.SESSIOND_GUARDS_DIR ?? "/tmp", "sidecar-")), "key");
        writeFileSync(file, serverKey, { mode: 0o600 });
        const begun = performance.now();
        sidecar.process = start(SESSIOND_BIN, [
            ...["guard", "--listen", `127.0.0.1:${port}`, "--endpoint", url, "--issuer", issuer, "--project", `${project}=${file}`],
            ...["--max-staleness", `${maxStalenessMs}ms`, "--max-entries", maxEntries, "--startup-timeout", `${startupTimeoutMs}ms`],
        ], { stdio: ["ignore", "ignore", process.env.PROBE_LOG ? "inherit" : "ignore"] });
        sidecar.guard = guard;
        sidecar.url = `http://127.0.0.1:${port}`;
        const isReady = async () => (await call(`${sidecar.url}/readyz`)).status === 200;
        await eventually("the sidecar is ready", () => sidecar.process.exitCode !== null || isReady(), startupTimeoutMs);
        assert.equal(sidecar.process.exitCode, null, "the sidecar has ended");
        sidecar.readyMs = performance.now() - begun;
        return sidecar;
    }

    async #isRevoked(token) {
        const { status, body } = await persistently(`${this.url}/verify`, { token, agent: watching });
        return status === 401 && body.details[0].reason === "SESSION_REVOKED";
    }

    async stats() {
        const { body } = await call(`${this.url}/metrics`);
        const entries = Number(/^sessiond_guard_entries\{.*\} (\d+)$/m.exec(body)[1]);
        const pages = Number(readFileSync(`/proc/${this.process.pid}/statm`, "utf8").split(" ")[1]);
        return { entries, readyMs: this.readyMs, rssBytes: pages * 4_096 };
    }

    async refused(token, signedOut) {
        await signedOut;
        for (const begun = performance.now(); performance.now() - begun < WATCHED_MS; await sleep(1)) {
            if (await this.#isRevoked(token)) return performance.timeOrigin + performance.now();
        }
        return undefined;
    }

    /** With the request and its response. */
    async time(token) {
        const rounds = [];
        for (let round = 0; round < 2_000; round += 1) {
            const begun = performance.now();
            await persistently(`${this.url}/verify`, { token, agent: watching });
            rounds.push(performance.now() - begun);
        }
        return rounds.sort((one, other) => one - other)[1_000] * 1_000;
    }

    async missed(tokens) {
        let missed = 0;
        await inParallel(tokens.length, 4, async (at) => (missed += (await this.#isRevoked(tokens[at])) ? 0 : 1));
        return missed;
    }

    async stop() {
        this.process.kill("SIGTERM");
        if (this.process.exitCode === null && this.process.signalCode === null) await once(this.process, "exit");
    }
}
