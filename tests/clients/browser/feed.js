// The feed with a server key, as services use it; a server key must not be in a browser.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { now, PATIENCE_MS } from "./host.js";

const { SESSIOND_SERVER_KEY } = process.env;
const authorization = `Bearer ${SESSIOND_SERVER_KEY}`;

/** A stream of JSON lines, and its revocations: the ids of sessions and users, and the cursor. */
export class Feed {
    ended = new Set();
    cursor = null;
    /** When the last of them arrived. */
    at = null;
    /** Whether it started with a snapshot instead of after the cursor. */
    begunAnew = false;
    /** Whether the backlog has arrived completely. */
    isCurrent = false;
    /** Why it broke, if it did. */
    broken = null;
    #stop = new AbortController();

    static async open(url, cursor = "") {
        const feed = new Feed();
        const query = new URLSearchParams(cursor && { cursor });
        const options = { headers: { authorization }, signal: feed.#stop.signal };
        const response = await fetch(`${url}/auth/revocations:watch?${query}`, options);
        if (!response.ok) throw new Error(await response.text());
        feed.#read(response.body).catch((error) => { feed.broken = error; });
        return feed;
    }

    async #read(body) {
        let rest = "";
        for await (const text of body.pipeThrough(new TextDecoderStream())) {
            const lines = (rest + text).split("\n");
            rest = lines.pop();
            for (const line of lines) this.note(JSON.parse(line));
        }
    }

    note(told) {
        if (told.error) throw new Error(JSON.stringify(told.error));
        if (told.snapshot_begin) this.begunAnew = true;
        // The first heartbeat comes after the whole snapshot.
        if (told.heartbeat) this.isCurrent = true;
        for (const one of told.revocations?.revocations ?? []) this.ended.add(one.session_id ?? one.user_id);
        if (told.revocations) this.at = now();
        this.cursor = told.cursor ?? this.cursor;
    }

    close() {
        this.#stop.abort();
    }
}

/** slow.py: a client of server-sent events that reads a byte a second, until it is told to hurry. */
export class SlowReader {
    #process;
    #received = [];

    static open(url) {
        const { hostname, port } = new URL(url);
        const request = `GET /auth/revocations:watch HTTP/1.1\r\nhost: ${hostname}\r\nauthorization: ${authorization}\r\n`
            + "accept: text/event-stream\r\nconnection: close\r\n\r\n";
        const reader = new SlowReader();
        const env = { ...process.env, HOST: hostname, PORT: port, REQUEST: request };
        const script = fileURLToPath(new URL("slow.py", import.meta.url));
        reader.#process = spawn(process.env.PYTHON, [script], { env, stdio: ["pipe", "pipe", "inherit"] });
        reader.#process.stdout.on("data", (piece) => reader.#received.push(piece));
        return reader;
    }

    get bytes() {
        return this.#received.reduce((sum, piece) => sum + piece.length, 0);
    }

    /** Reads the rest of the response. Returns whether it was complete, and its revocations. */
    async hurry() {
        const done = once(this.#process, "close", { signal: AbortSignal.timeout(2 * PATIENCE_MS) });
        this.#process.stdin.end("\n");
        await done;
        const feed = new Feed();
        const [isWhole, body] = unchunk(Buffer.concat(this.#received));
        for (const line of body.split("\n")) if (line.startsWith("data: ")) feed.note(JSON.parse(line.slice(6)));
        return [isWhole, feed];
    }

    close() {
        this.#process.kill();
    }
}

/** Whether a chunked response is complete, and its body (RFC 9112 §7.1). */
function unchunk(answer) {
    const pieces = [];
    let at = answer.indexOf("\r\n\r\n") + 4;
    for (;;) {
        const line = answer.indexOf("\r\n", at);
        const size = line < 0 ? NaN : parseInt(answer.toString("latin1", at, line), 16);
        if (!(size > 0)) return [size === 0, Buffer.concat(pieces).toString()];
        pieces.push(answer.subarray(line + 2, line + 2 + size));
        at = line + 4 + size;
    }
}
