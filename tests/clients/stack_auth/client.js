// Stack Auth's SDKs, unmodified, against a running `sessiond dev`; ./run starts both. One uses the older header prefix,
// one the newer. sessiond has no users: a host in front serves them, as a real one would, and forwards every other
// request unchanged. It also records the prefix of each request.

import assert from "node:assert/strict";
import http from "node:http";
import * as newer from "@stackframe/js";
import * as older from "older";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_SERVER_KEY } = process.env;
const USERS = "/api/v1/users/";

/** User properties that the SDKs expect, and sessiond does not have. */
const user = (id) => ({
    id, display_name: id, primary_email: null, primary_email_verified: false, profile_image_url: null,
    signed_up_at_millis: 0, last_active_at_millis: 0, client_metadata: null, client_read_only_metadata: null,
    server_metadata: null, has_password: false, auth_with_email: false, otp_auth_enabled: false, oauth_providers: [],
    passkey_auth_enabled: false, requires_totp_mfa: false, is_anonymous: false, is_restricted: false,
    restricted_reason: null, selected_team: null, selected_team_id: null, restricted_by_admin: false,
    restricted_by_admin_reason: null, restricted_by_admin_private_details: null, country_code: null,
    risk_scores: { sign_up: { bot: 0, free_trial_abuse: 0 } },
});

/** A token's claims, unverified: this host trusts its tests. */
const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));

const exchanges = [];

function answer(response, status, body, headers = {}) {
    response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
}

const host = http.createServer((request, response) => {
    if (request.url.startsWith(USERS)) {
        const id = request.url.slice(USERS.length);
        if (id !== "me") return answer(response, 200, user(id));
        const token = request.headers["x-stack-access-token"] ?? request.headers["x-hexclave-access-token"];
        if (token) return answer(response, 200, user(claims(token).sub));
        const code = "CANNOT_GET_OWN_USER_WITHOUT_USER";
        return answer(response, 400, { code, error: "nobody" }, { "x-stack-known-error": code });
    }
    const options = { method: request.method, headers: request.headers };
    const onward = http.request(`${SESSIOND_URL}${request.url}`, options, (answered) => {
        const { method, url, headers } = request;
        exchanges.push({ call: `${method} ${url.split("?")[0]}`, headers, status: answered.statusCode, answer: answered.headers });
        response.writeHead(answered.statusCode, answered.headers);
        answered.pipe(response);
    });
    request.pipe(onward);
});
await new Promise((listening) => host.listen(0, "127.0.0.1", listening));
const baseUrl = `http://127.0.0.1:${host.address().port}`;

/** Introspects a token, as a service of the host. */
async function isActive(token) {
    const response = await fetch(`${SESSIOND_URL}/auth/tokens:introspect`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ token }),
    });
    assert.equal(response.status, 200);
    return (await response.json()).active;
}

const known = (code) => (thrown) => {
    assert.equal(thrown.errorCode, code, thrown);
    return true;
};

async function exercise(name, sdk, spelling) {
    exchanges.length = 0;
    const report = (what) => console.log(`@stackframe/js ${name}: ${what}`);
    const common = { projectId: SESSIOND_PROJECT_ID, baseUrl, tokenStore: null, redirectMethod: "none" };
    const service = (secretServerKey) => new sdk.StackServerApp({ ...common, secretServerKey });
    const device = (more) => new sdk.StackClientApp({ ...common, analytics: { enabled: false }, ...more });

    // A service creates sessions, and lists them.
    const seen = await service(SESSIOND_SERVER_KEY).getUser(`${name}-ada`);
    const open = async (options = {}) => await (await seen.createSession(options)).getTokens();
    const [phone, laptop, tablet] = [await open(), await open({ expiresInMillis: 86_400_000 }), await open()];
    const helped = await open({ isImpersonation: true });
    const sid = (tokens) => claims(tokens.accessToken).refresh_token_id;
    const all = await seen.getActiveSessions();
    assert.deepEqual(all.map((one) => one.id), [helped, tablet, laptop, phone].map(sid));
    assert.deepEqual(all.map((one) => one.isImpersonation), [true, false, false, false]);
    assert.ok(all.every((one) => Math.abs(one.createdAt - Date.now()) < 60_000 && one.userId === seen.id), all);
    report("a service created sessions, and listed them");

    // It revokes one by its id.
    await seen.revokeSession(sid(tablet));
    assert.equal(await isActive(tablet.accessToken), false);
    // Errors name the problem.
    await assert.rejects(open({ expiresInMillis: 31_708_800_001 }), known("SCHEMA_ERROR"));
    // Its last character is any of 64.
    const wrongKey = SESSIOND_SERVER_KEY.replace(/.$/, (last) => (last === "_" ? "-" : "_"));
    const stranger = await service(wrongKey).getUser(seen.id);
    await assert.rejects(stranger.createSession({}), known("INVALID_SECRET_SERVER_KEY"));
    report("a service revoked a session by its id");
    report("SCHEMA_ERROR and INVALID_SECRET_SERVER_KEY were decoded");

    // A user lists the devices, and signs another one out.
    const me = await device().getUser({ tokenStore: phone });
    const own = await me.getActiveSessions();
    assert.deepEqual(own.map((one) => [one.id, one.isCurrentSession]), [[sid(laptop), false], [sid(phone), true]]);
    await me.revokeSession(sid(laptop));
    assert.equal(await isActive(laptop.accessToken), false);
    await assert.rejects(me.revokeSession(sid(phone)), known("CANNOT_DELETE_CURRENT_SESSION"));
    await assert.rejects(me.revokeSession(sid(helped)));
    report("a user listed sessions, and revoked another one");

    // With only a refresh token the SDK gets an access token by a grant, with or without a publishable key.
    for (const key of [{}, { publishableClientKey: "pck_anything" }]) {
        const returning = await device(key).getUser({ tokenStore: { accessToken: null, refreshToken: phone.refreshToken } });
        const { accessToken } = await returning.currentSession.getTokens();
        assert.equal(sid({ accessToken }), sid(phone));
        assert.equal(await isActive(accessToken), true);
    }
    report("a user refreshed with only a refresh token");

    // Signing out revokes the session at once; a second device with the same tokens can sign out too.
    const twin = await device().getUser({ tokenStore: phone });
    await me.signOut();
    for (const token of Object.values(phone)) assert.equal(await isActive(token), false);
    assert.deepEqual(await me.currentSession.getTokens(), { accessToken: null, refreshToken: null });
    await twin.signOut();
    report("signed out");
    // Afterwards the user is signed out; a listing in another tab notices, and signs out too.
    const late = { tokenStore: { accessToken: null, refreshToken: phone.refreshToken } };
    assert.equal(await device().getUser(late), null);
    const tab = await device().getUser({ tokenStore: laptop });
    await assert.rejects(tab.getActiveSessions(), known("CANNOT_GET_OWN_USER_WITHOUT_USER"));
    assert.deepEqual(await tab.currentSession.getTokens(), { accessToken: null, refreshToken: null });
    report("no refresh after sign-out");

    // Responses used this SDK's prefix, and every request was answered.
    const calls = new Set(exchanges.map(({ call }) => call.replace(/[0-9a-f-]{36}/, "{id}")));
    assert.deepEqual([...calls].sort(), [
        "DELETE /api/v1/auth/sessions/current",
        "DELETE /api/v1/auth/sessions/{id}",
        "GET /api/v1/auth/sessions",
        "POST /api/v1/auth/oauth/token",
        "POST /api/v1/auth/sessions",
    ]);
    for (const { call, headers, status, answer } of exchanges) {
        const isGrant = call.endsWith("/token");
        assert.equal(headers[`${spelling}project-id`], isGrant ? undefined : SESSIOND_PROJECT_ID, call);
        assert.ok(answer[`${isGrant ? "x-stack-" : spelling}request-id`], call);
        assert.equal(status, isGrant && answer["x-stack-known-error"] ? 401 : 200, call);
    }
}

await exercise("2.8.102", older, "x-stack-");
await exercise("2.8.108", newer, "x-hexclave-");
host.close();
process.exit(0);
