// Beside the client: the service that creates sessions, another device of the user, an API that takes access tokens, and
// a relay to sessiond that fails as told.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import { inspect } from "node:util";

const env = process.env;
export const { SESSIOND_URL } = env;

/** How long access tokens live. The server rounds to seconds. */
const TTL_MS = 6_000;

/** The project of this run, with access tokens that live for six seconds: one with default rules, or a strict one. */
export const STRICT = env.PROJECT === "strict";
/** A project with tokens in cookies. */
export const COOKIE_PROJECT = "cookies";
export const COOKIE_SERVER_KEY = env.COOKIE_SERVER_KEY;

export const SERVER_KEY = STRICT ? env.STRICT_SERVER_KEY : env.BRIEF_SERVER_KEY;
export const PROJECT = STRICT ? "strict" : "brief";
export const PATIENCE_MS = 30_000;

export const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

/** Until an access token must be renewed: at half of its lifetime. */
export const stale = () => sleep(TTL_MS / 2 + 100);
/** Until it has expired. */
export const expiry = () => sleep(TTL_MS + 100);

export async function eventually(what, holds, patience = PATIENCE_MS) {
    const until = performance.now() + patience;
    while (!(await holds())) {
        assert.ok(performance.now() < until, `not within ${patience} ms: ${what}`);
        await sleep(10);
    }
}

export async function api(method, path, token, body) {
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const response = await fetch(SESSIOND_URL + path, { method, headers, signal, body: body && JSON.stringify(body) });
    const answer = await response.json();
    assert.equal(response.status, 200, JSON.stringify(answer));
    return answer;
}

/** For `assert.rejects`: an error of ours with this reason. */
export const refused = (reason) => (error) => {
    assert.equal(error.name, "SessiondError", inspect(error));
    assert.equal(error.reason, reason, inspect(error));
    return true;
};

let users = 0;
/** A user of no other test. */
export const newUser = () => `user-${process.pid}-${(users += 1)}`;

/** What an app's backend does after it has checked a password. */
export const createSession = (user = newUser(), more = {}) => api("POST", "/auth/sessions", SERVER_KEY, { user_id: user, ...more });

/** A session whose access tokens live for ten minutes. */
export const createLongSession = (user = newUser()) => api("POST", "/auth/sessions", env.SESSIOND_SERVER_KEY, { user_id: user });

export const revoke = (id, key = SERVER_KEY) => api("DELETE", `/auth/sessions/${id}`, key);

export const isActive = async (token, key = SERVER_KEY) => (await api("POST", "/auth/tokens:introspect", key, { token })).active;

async function listen(server) {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return `http://127.0.0.1:${server.address().port}`;
}

/**
 * A relay to sessiond. `rule`, if it is set, gets each request, and may return `lose` (sessiond acts, the answer is
 * lost), `cut` (the connection breaks before that), `silence`, a promise to wait for before the answer is passed on, or a
 * response of its own.
 */
export class Relay {
    asked = [];
    rule = null;

    static async open() {
        const relay = new Relay();
        relay.server = http.createServer((request, response) => relay.#pass(request, response));
        relay.url = await listen(relay.server);
        return relay;
    }

    #pass(request, response) {
        const call = `${request.method} ${request.url.split("?")[0]}`;
        if (request.method !== "OPTIONS") this.asked.push(call);
        const fate = this.rule?.(call);
        if (fate === "cut") return request.socket.destroy();
        if (fate === "silence") return;
        if (fate?.status) return response.writeHead(fate.status, fate.headers).end(fate.body);
        const { method, headers } = request;
        const onward = http.request(SESSIOND_URL + request.url, { method, headers }, async (answer) => {
            if (fate === "lose") return answer.resume().on("end", () => request.socket.destroy());
            await fate;
            response.writeHead(answer.statusCode, answer.headers);
            response.flushHeaders();
            answer.on("error", () => response.destroy()).on("aborted", () => response.destroy()).pipe(response);
        });
        onward.on("error", () => response.destroy());
        response.on("close", () => onward.destroy());
        request.pipe(onward);
    }

    count(call) {
        return this.asked.filter((one) => one === call).length;
    }

    get refreshes() {
        return this.count("POST /auth/sessions/current/refresh");
    }

    get signOuts() {
        return this.count("DELETE /auth/sessions/current");
    }

    close() {
        this.server.close();
        this.server.closeAllConnections();
    }
}

/** An API of the app: accepts what sessiond verifies, or answers as told. */
export class Api {
    asked = [];
    rule = null;

    static async open() {
        const api = new Api();
        api.server = http.createServer(async (request, response) => {
            let body = "";
            for await (const piece of request) body += piece;
            api.asked.push({ path: request.url, body, authorization: request.headers.authorization });
            const fate = api.rule?.(request);
            const cors = { "access-control-allow-origin": "*", "access-control-allow-headers": "authorization" };
            if (request.method === "OPTIONS") return response.writeHead(204, cors).end();
            if (fate) return response.writeHead(fate.status, { ...cors, ...fate.headers }).end();
            const { authorization = "" } = request.headers;
            const verified = await fetch(`${SESSIOND_URL}/projects/${PROJECT}/auth/verify`, { headers: { authorization } });
            response.writeHead(verified.status, cors).end(verified.headers.get("x-user-id"));
        });
        api.url = await listen(api.server);
        return api;
    }

    close() {
        this.server.close();
        this.server.closeAllConnections();
    }
}
