// Outside of the browser: the service that creates sessions, the user's other devices, and checks whether a session has
// ended.

import assert from "node:assert/strict";

const { SESSIOND_URL, SESSIOND_SERVER_KEY, SESSIOND_METRICS_URL } = process.env;

/** The default bound of every wait. */
export const PATIENCE_MS = 5_000;

/** The bound for immediate delivery. The time taken is printed. */
const AT_ONCE_MS = 2_000;

export const now = () => performance.timeOrigin + performance.now();

export async function rest(method, path, token, body) {
    const headers = { authorization: `Bearer ${token}`, ...(body && { "content-type": "application/json" }) };
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const response = await fetch(SESSIOND_URL + path, { method, headers, body: body && JSON.stringify(body), signal });
    const answered = now();
    const answer = await response.json();
    assert.equal(response.status, 200, JSON.stringify(answer));
    return { ...answer, answered };
}

export const signIn = (user, key = SESSIOND_SERVER_KEY) => rest("POST", "/auth/sessions", key, { user_id: user });
export const signOut = (session) => rest("DELETE", "/auth/sessions/current", session.access_token);
export const bearer = (session) => ({ authorization: `Bearer ${session.access_token}` });

export async function isActive(token) {
    return (await rest("POST", "/auth/tokens:introspect", SESSIOND_SERVER_KEY, { token })).active;
}

export async function eventually(what, patience, check) {
    const deadline = performance.now() + patience;
    while (!(await check())) {
        assert.ok(performance.now() < deadline, `waited ${patience} ms for: ${what}`);
        await new Promise((later) => setTimeout(later, 20));
    }
}

/** How long after another device's 200 something arrived. */
export function lag(told, answered) {
    const ms = told - answered;
    assert.ok(ms < AT_ONCE_MS, `arrived ${ms} ms after`);
    return ms < 0 ? `${(-ms).toFixed(1)} ms before` : `${ms.toFixed(1)} ms after`;
}


/** How many streams of revocations are open at the server. */
export async function subscribers() {
    const page = await (await fetch(SESSIOND_METRICS_URL)).text();
    return Number(/^sessiond_feed_subscribers (\d+)$/m.exec(page)[1]);
}
