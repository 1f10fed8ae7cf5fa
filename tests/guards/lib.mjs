// What the fault tests, the tests of the examples and the benchmark share: sessiond itself, a relay in front of it that fails as
// told, and guarded services in other processes.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";

export const ROOT = new URL("../..", import.meta.url).pathname;
const { SESSIOND_BIN = join(ROOT, "target/debug/sessiond"), GUARDS_PYTHON = "python3", GUARDS_GO } = process.env;

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

export async function freePort() {
    const server = net.createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address();
    server.close();
    await once(server, "close");
    return port;
}

/** A request over a connection of its own. Returns the status, and the body as JSON if it is. */
export function call(url, { method = "GET", token, body, timeoutMs = 5_000, agent = false } = {}) {
    return new Promise((resolve, reject) => {
        const headers = { ...(token !== undefined && { authorization: `Bearer ${token}` }), ...(body && { "content-type": "application/json" }) };
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

    async post(path, body, token = this.serverKey) {
        const answer = await call(this.url + path, { method: "POST", token, body });
        assert.equal(answer.status, 200, JSON.stringify(answer.body));
        return answer.body;
    }

    async signIn(user = `user-${Math.random()}`, more = {}) {
        return this.post("/auth/sessions", { user_id: user, ...more });
    }

    async signOut(token) {
        const answer = await call(`${this.url}/auth/sessions/current`, { method: "DELETE", token });
        assert.equal(answer.status, 200, JSON.stringify(answer.body));
    }
}

/** A relay to sessiond that fails as told. */
export class Relay {
    /** `pass`, `cut`, `swallow`: keeps connections open and delivers nothing until it is `pass` again; `drip`: a byte at a time. */
    mode = "pass";
    /** Called with each open stream of revocations, to write into it. */
    poison = undefined;
    /** Called with each request for the stream of revocations, to answer it instead of sessiond. */
    stream = undefined;
    /** A response to some requests, instead of sessiond's: `(path) => body | undefined`. */
    instead = () => undefined;
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
        if (mode === "cut") for (const socket of this.sockets) socket.destroy();
        for (const deliver of this.#held.splice(0)) deliver();
    }

    #deliver(act) {
        if (this.mode === "swallow") this.#held.push(() => this.#deliver(act));
        else act();
    }

    #pass(request, response) {
        const own = this.instead(request.url);
        if (own !== undefined) return response.writeHead(200, { "content-type": "application/json", "cache-control": "max-age=3600" }).end(own);
        const isStream = request.url.startsWith("/auth/revocations:watch");
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

/** A guarded service in another process. */
export class Probe {
    static async start(guard, options) {
        const probe = new Probe();
        const [command, args] = GUARDS[guard]();
        const env = { ...process.env, PROBE: JSON.stringify(options) };
        probe.guard = guard;
        probe.process = start(command, args, { env, stdio: ["pipe", "pipe", "inherit"] });
        const lines = createInterface({ input: probe.process.stdout });
        const [port] = await Promise.race([once(lines, "line"), once(probe.process, "exit").then(() => assert.fail(`the ${guard} probe has ended`))]);
        probe.url = `http://127.0.0.1:${port}`;
        return probe;
    }

    /** The verdict on a token: `accepted`, or the reason. */
    async verdict(token) {
        const { status, body } = await call(`${this.url}/`, { token });
        return status === 200 ? "accepted" : body.details[0].reason;
    }

    async ask(path, token, timeoutMs = 60_000) {
        return (await call(this.url + path, { token, timeoutMs })).body;
    }

    stats() {
        return this.ask("/stats");
    }

    async stop() {
        this.process.stdin.end();
        if (this.process.exitCode === null) await once(this.process, "exit");
    }
}
